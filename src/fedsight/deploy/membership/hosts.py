"""The host of a server: a name, or an IPv4 or IPv6 address, and what FLARE calls it.

FLARE writes a host before a colon and a port, and cuts at the first colon. So in its files an IPv6
address has the form that Windows uses for the same reason: `2001-db8--7.ipv6-literal.net` for
`2001:db8::7`. That name is never looked up; `deploy/flare/addresses.py` connects to the address.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from fedsight.core.errors import DeployError
from fedsight.core.text import printable

MAX_HOST = 253  # characters of a name (RFC 1035)
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
# Seconds for an address to answer, if there is another one; an operator's log-in waits for 5.
CONNECT_TIMEOUT = 2.0
_LITERAL = ".ipv6-literal.net"
_EXAMPLE = "for example fl.example.org"


def checked_host(host: str) -> str:
    """The host as invitations name it: a name as it is, an address in its shortest form.

    Raises DeployError unless sites could reach a server there.
    """
    if "/" in host or "[" in host or host.count(":") == 1:
        raise _not_alone(host)
    if "%" in host:
        cause = f"'{printable(host, 80)}' has a zone, which only this machine knows"
        raise DeployError(cause, "give an address that is the same everywhere, or a name")
    if (address := _address(host)) is not None:
        return _checked_address(address)
    if not _NAME.fullmatch(host) or len(host) > MAX_HOST or host.rpartition(".")[2].isdecimal():
        cause = f"'{printable(host, 80)}' cannot be the name or address of a machine"
        raise DeployError(cause, f"use letters, digits, - and ., {_EXAMPLE}")
    return host


def written(host: str, port: int) -> str:
    """Host and port as one reads them in an address: an IPv6 address in brackets (RFC 3986)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def engine_name(host: str) -> str:
    """What FLARE's files call the host."""
    if ":" not in host:
        return host
    padded = f"0{host}" if host.startswith(":") else host
    padded = f"{padded}0" if padded.endswith(":") else padded
    return padded.replace(":", "-") + _LITERAL


def host_of(name: str) -> str:
    """The host that FLARE's files call `name`."""
    address = _address(name.removesuffix(_LITERAL).replace("-", ":"))
    if not name.endswith(_LITERAL) or not isinstance(address, ipaddress.IPv6Address):
        return name
    return address.compressed


def loopback_address(host: str) -> str | None:
    """The only address on which a server of this host listens; None if it listens on all."""
    if host.rstrip(".").lower() == "localhost":
        return "127.0.0.1"
    address = _address(host)
    return str(address) if address is not None and address.is_loopback else None


def wildcard() -> str:
    """The address that stands for all addresses of this machine."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def family(address: str) -> socket.AddressFamily:
    """The kind of an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def connected(host: str, port: int, patience: float | None = None) -> socket.socket:
    """A connection to the first address of the host that answers; OSError if none does.

    `patience`: seconds for the last address; otherwise as many as the system waits. Where processes
    of one machine connect to each other, only 127.0.0.1 is tried for `localhost`: there they
    listen, and on the other address anybody could.
    """
    own = loopback_address(host)
    found = socket.getaddrinfo(own or host, port, type=socket.SOCK_STREAM)
    found.sort(key=lambda one: one[0] != socket.AF_INET)
    for place, (kind, _, _, _, address) in enumerate(found):
        sock = socket.socket(kind, socket.SOCK_STREAM)
        try:
            sock.settimeout(CONNECT_TIMEOUT if place + 1 < len(found) else patience)
            sock.connect(address)
            sock.settimeout(patience)
            return sock
        except OSError:
            sock.close()
            if place + 1 == len(found):
                raise
    raise OSError(f"the name {host} has no address")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _checked_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_unspecified or address.is_multicast:
        cause = f"'{address}' is not the address of one machine"
        raise DeployError(cause, "give the address or the name at which sites reach this machine")
    if isinstance(address, ipaddress.IPv6Address) and address.is_link_local:
        cause = f"'{address}' is valid on one network link only"
        raise DeployError(cause, "give an address that is the same everywhere, or a name")
    return address.compressed


def _not_alone(text: str) -> DeployError:
    """What to give instead of a URL, or of a host with a port."""
    whole = "/" in text
    cause = f"'{printable(text, 80)}' is " + ("a URL" if whole else "more than a host")
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, port = parts.hostname or "", parts.port
        checked_host(host)
    except (ValueError, DeployError):
        return DeployError(cause, f"give only the name or the address, {_EXAMPLE}")
    option = "" if port is None else f" --port {port}"
    return DeployError(cause, f"give the host alone: --host {host}{option}")
