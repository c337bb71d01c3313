"""FLARE's TCP connections, over IPv6 as well as IPv4 (it knows only the latter), without waiting
for who says nothing, and not any number of one name.

A server listens on both, unless its host is a loopback address; then on that alone. Whoever
connects tries all addresses of a name, IPv4 first.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from nvflare.fuel.f3.drivers import tcp_driver
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.drivers.net_utils import get_ssl_context
from nvflare.fuel.f3.drivers.socket_conn import SocketConnection
from nvflare.fuel.hci.security import get_certificate_common_name

from fedsight.core.text import printable
from fedsight.deploy.membership.hosts import connected, family, host_of, wildcard
from fedsight.deploy.processes.supervisor import LISTEN_VARIABLE

HANDSHAKE_TIMEOUT = 20.0  # seconds for who has connected to begin, and complete, the TLS handshake
MAX_HANDSHAKES = 200  # unfinished at a time; further connections are closed
MAX_FROM_ONE = 8  # of these, from one address; of IPv6 from one /64, all of which one machine has
# Connections of one certified name at a time: a site has one for each of its processes, an operator
# for each session. Each has a thread here, an open file, and a frame (`bounds.MAX_FRAME`).
MAX_HELD = 32
log = logging.getLogger(__name__)
_HOST, _PORT = DriverParams.HOST.value, DriverParams.PORT.value


def use_both_kinds() -> None:
    """Have FLARE do so in this process; AttributeError if it no longer has what is replaced."""
    for holder, name, value in (
        (tcp_driver, "TcpStreamServer", DualStackServer),
        (tcp_driver.TcpDriver, "connect", connect),
    ):
        getattr(holder, name)
        setattr(holder, name, value)


class Counts:
    """What others can have happen as often as they like: the log has a line for the 1st time, the
    2nd, the 4th and so on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: Counter[tuple[str, str]] = Counter()  # by text, and by whose it is

    def add(self, level: int, text: str, *facts: object, of: str = "") -> None:
        """Write a text with a number and facts the first time, and whenever the number doubles."""
        with self._lock:
            self._said[text, of] += 1
            count = self._said[text, of]
        if not count & (count - 1):
            log.log(level, text, count, *facts)


class Handshakes:
    """The TLS handshakes that are not completed yet: whoever can reach the port makes as many
    connections as they like without a certificate."""

    def __init__(self, counts: Counts) -> None:
        self._lock, self._counts = threading.Lock(), counts
        self._open: Counter[str] = Counter()  # by network

    def begin(self, address: str) -> bool:
        """Whether a connection from this address may make its handshake; then `end` follows."""
        place = network_of(address)
        with self._lock:
            if self._open.get(place, 0) < MAX_FROM_ONE and self._open.total() < MAX_HANDSHAKES:
                self._open[place] += 1
                return True
        text = "refused %d connections: too many TLS handshakes at a time; the last one: %s"
        self._counts.add(logging.WARNING, text, address)
        return False

    def end(self, address: str) -> None:
        """A handshake is over, whether it was completed or not."""
        place = network_of(address)
        with self._lock:
            self._open[place] -= 1
            if not self._open[place]:
                del self._open[place]


class Connections:
    """The connections that are open under each certified name. Of too many the oldest give way:
    those of a machine that has vanished are the oldest."""

    def __init__(self, counts: Counts) -> None:
        self._lock, self._counts = threading.Lock(), counts
        self._open: dict[str, list[socket.socket]] = {}

    @contextmanager
    def held(self, name: str, connection: socket.socket) -> Iterator[None]:
        """Count a connection of this name meanwhile."""
        with self._lock:
            own = self._open.setdefault(name, [])
            own.append(connection)
            over, own[:] = own[:-MAX_HELD], own[-MAX_HELD:]
        for one in over:  # who reads from it hears that it has ended, and closes it
            text = "closed %d connections of '%s', the oldest first: it had more than %d at a time"
            self._counts.add(logging.WARNING, text, printable(name), MAX_HELD, of=name)
            with suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)
        try:
            yield
        finally:
            with self._lock:
                own = self._open.get(name, [])
                if connection in own:  # it has not given way
                    own.remove(connection)
                if not own:
                    self._open.pop(name, None)


def network_of(address: str) -> str:
    """The addresses that count as one: an IPv4 address, or the /64 of an IPv6 address."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


class DualStackServer(tcp_driver.TcpStreamServer):
    """FLARE's listener. What FLARE has listen on all addresses listens on those of both kinds, or
    on the one that the server's environment names.

    FLARE's own makes each TLS handshake before it accepts the next connection, without a limit of
    time. Here each connection makes it in its own thread.
    """

    def __init__(self, driver: Any, connector: Any) -> None:
        params = connector.params
        if not params[_HOST]:
            params[_HOST] = os.environ.get(LISTEN_VARIABLE) or wildcard()
        self.address_family = family(params[_HOST])
        self._counts = Counts()
        self._handshakes, self._connections = Handshakes(self._counts), Connections(self._counts)
        super().__init__(driver, connector)
        if self.ssl_context:
            self.socket.do_handshake_on_connect = False  # of the connections that it accepts

    def server_bind(self) -> None:
        """Bind the socket; the wildcard of IPv6 takes IPv4 connections, too."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Called in a thread for each connection: the handshake, then FLARE's own, which returns
        when the connection has ended."""
        if not self.ssl_context:
            super().finish_request(request, client_address)
        elif self._shaken(request, client_address):
            name = get_certificate_common_name(request.getpeercert())
            with self._connections.held(str(name), request):
                super().finish_request(request, client_address)

    def _shaken(self, request: Any, client_address: Any) -> bool:
        """Make the handshake; whether it was completed."""
        address = client_address[0]
        if not self._handshakes.begin(address):
            return False
        try:
            request.settimeout(HANDSHAKE_TIMEOUT)
            request.do_handshake()
            request.settimeout(None)
        except OSError as error:
            text = "closed %d connections without a TLS handshake; the last one: %s (%s)"
            self._counts.add(logging.INFO, text, address, error)
            return False
        finally:
            self._handshakes.end(address)
        return True


def connect(driver: Any, connector: Any) -> None:
    """FLARE's `TcpDriver.connect`, to all addresses of the host in turn."""
    driver.connector = connector
    params = connector.params
    context = get_ssl_context(params, ssl_server=False)
    plain = connected(host_of(params[_HOST]), int(params[_PORT]))
    try:
        sock = context.wrap_socket(plain) if context else plain
    except BaseException:
        plain.close()
        raise
    connection = SocketConnection(sock, connector, bool(context))
    driver.add_connection(connection)
    connection.read_loop()
    driver.close_connection(connection)
