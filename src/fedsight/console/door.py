"""Where a console listens, and under which names browsers find it.

Alone, it listens on this machine, without TLS. Other machines reach it over TLS only: with its own
certificate, or through a proxy on this machine that has one.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fedsight.console.certificate import CURE, Certificate
from fedsight.core.errors import StoreError
from fedsight.core.text import printable

LOOPBACK = "127.0.0.1"
OWN_NAMES = ("127.0.0.1", "localhost", "::1")
_HOST = re.compile(r"[A-Za-z0-9.:\-]{1,253}")


@dataclass(frozen=True)
class Wish:
    """How a console is to be reached, as the user says it."""

    port: int
    host: str = LOOPBACK
    certificate: Path | None = None
    key: Path | None = None
    proxy: str | None = None  # https://NAME, of a proxy on this machine

    @property
    def remote(self) -> bool:
        """Whether browsers on other machines are to reach it."""
        return self.proxy is not None or not _is_loopback(self.host)


@dataclass(frozen=True)
class Door:
    """What browsers have to have come through."""

    names: tuple[str, ...] = OWN_NAMES
    certificate: Certificate | None = None
    proxied: bool = False

    @property
    def scheme(self) -> str:
        """`https`, but for browsers on this machine."""
        return "https" if self.proxied or self.certificate is not None else "http"

    @property
    def secure(self) -> bool:
        """Whether browsers keep its cookies for TLS alone."""
        return self.scheme == "https"

    @property
    def cookie(self) -> str:
        """The name of the cookie with a session. No page without TLS can set one that begins like
        the longer one (RFC 6265bis)."""
        return "__Secure-fedsight_console" if self.secure else "fedsight_console"

    def is_named(self, host: str) -> bool:
        """Whether `host`, from the header of that name, is a name of this console's."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        own = self.certificate is not None and not self.proxied and self.certificate.covers(name)
        return bool(name) and (own or name in self.names)

    def is_own(self, origin: str | None, host: str) -> bool:
        """Whether a request to `host` comes from a page of this console's."""
        return origin == f"{self.scheme}://{host}"


@dataclass(frozen=True)
class Opened:
    """A door that is open."""

    door: Door
    listening: socket.socket
    origin: str  # how its address begins, for people

    def close(self) -> None:
        """Listen no more."""
        self.listening.close()


def open_door(wish: Wish, own: tuple[Path, Path] | None = None) -> Opened:
    """Listen as is wished for; `own`: a certificate and its key to use if no other is given.

    Raises StoreError for what is not safe, is not possible, or is taken.
    """
    door = _door(wish, own)
    listening = bound(wish.port, wish.host)
    try:
        return Opened(door, listening, _origin(wish, door, listening))
    except BaseException:
        listening.close()
        raise


def bound(port: int, host: str = LOOPBACK) -> socket.socket:
    """A socket at `port` of an address of this machine, 0 for any that is free; StoreError if it is
    taken."""
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(kind, socket.SOCK_STREAM)
    except OSError as error:
        cause = f"{printable(host, 80)} is not an address of this machine: {error.strerror}"
        raise StoreError(cause, "give one of its addresses with --host") from None
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen()  # whoever reads the address may come at once
    except OSError as error:
        found.close()
        at = f"port {port}" if host == LOOPBACK else f"port {port} of {host}"
        why = error.strerror or str(error)
        raise StoreError(
            f"cannot serve the console at {at}: {why}",
            "choose another with --port, or end what uses it; --port 0 takes one that is free",
        ) from error
    return found


def _door(wish: Wish, own: tuple[Path, Path] | None) -> Door:
    """What browsers have to come through; StoreError if it would not be safe."""
    if not _HOST.fullmatch(wish.host):
        cause = f"'{printable(wish.host, 80)}' is not the name or address of a machine"
        raise StoreError(cause, "give one of this machine's addresses, for example 0.0.0.0")
    if (wish.certificate is None) != (wish.key is None):
        raise StoreError("a certificate and its key belong together", CURE)
    given = None if wish.certificate is None or wish.key is None else (wish.certificate, wish.key)
    if wish.proxy is not None:
        if given or not _is_loopback(wish.host):
            cause = "a proxy has its own certificate, and reaches the console on this machine"
            raise StoreError(cause, "give --proxy without --host, --certificate and --key")
        return Door((_proxy_name(wish.proxy),), proxied=True)
    if given is None and _is_loopback(wish.host):
        return Door()
    if given is None and own is None:
        cause = f"{wish.host} can be reached from other machines, so the console needs TLS there"
        raise StoreError(cause, f"{CURE}; or leave --host out, and use a tunnel or a proxy")
    return Door((), Certificate(*(given or own or ())))


def _origin(wish: Wish, door: Door, listening: socket.socket) -> str:
    port = listening.getsockname()[1]
    if door.proxied:
        return str(wish.proxy).rstrip("/")
    if door.certificate is None:
        return f"http://{_written(wish.host)}:{port}"
    names = [one for one in door.certificate.names if not one.startswith("*")]
    name = wish.host if door.certificate.covers(wish.host) else next(iter(names), None)
    if name is None:
        cause = f"the certificate is for {', '.join(door.certificate.names)}, not {wish.host}"
        raise StoreError(cause, "give --host a name that it is for")
    return f"https://{_written(name)}:{port}"


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _proxy_name(address: str) -> str:
    """The name in the address of a proxy."""
    try:
        found = urlsplit(address)
        name, _ = found.hostname, found.port
    except ValueError:
        name = None
    if not name or found.scheme != "https" or found.path.strip("/") or "@" in found.netloc:
        cause = f"'{printable(address, 80)}' is not the address of a proxy that speaks TLS"
        raise StoreError(cause, "give for example --proxy https://fl.example.org")
    return name


def _is_loopback(host: str) -> bool:
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
