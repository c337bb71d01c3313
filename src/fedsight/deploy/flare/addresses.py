"""FLARE's TCP connections, over IPv6 as well as IPv4 (it knows only the latter), and without
waiting for who says nothing.

A server listens on both, unless its host is a loopback address; then on that alone. Whoever
connects tries all addresses of a name, IPv4 first.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import Any

from nvflare.fuel.f3.drivers import tcp_driver
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.drivers.net_utils import get_ssl_context
from nvflare.fuel.f3.drivers.socket_conn import SocketConnection

from fedsight.deploy.membership.hosts import family, host_of, loopback_address, wildcard
from fedsight.deploy.processes.supervisor import LISTEN_VARIABLE

CONNECT_TIMEOUT = 10.0  # seconds for an address to answer, if there is another one
HANDSHAKE_TIMEOUT = 20.0  # seconds for who has connected to begin, and complete, the TLS handshake
MAX_HANDSHAKES = 200  # at a time; further connections are closed
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
        self._handshakes = threading.BoundedSemaphore(MAX_HANDSHAKES)
        super().__init__(driver, connector)
        if self.ssl_context:
            self.socket.do_handshake_on_connect = False  # of the connections that it accepts

    def server_bind(self) -> None:
        """Bind the socket; the wildcard of IPv6 takes IPv4 connections, too."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Called in a thread for each connection: the handshake, then FLARE's own."""
        if not self.ssl_context or self._shaken(request, client_address):
            super().finish_request(request, client_address)

    def _shaken(self, request: Any, client_address: Any) -> bool:
        """Make the handshake; whether it was completed."""
        if not self._handshakes.acquire(blocking=False):
            log.warning("refused %s: too many TLS handshakes at a time", client_address[0])
            return False
        try:
            request.settimeout(HANDSHAKE_TIMEOUT)
            request.do_handshake()
            request.settimeout(None)
        except OSError as error:
            log.info("no TLS handshake with %s: %s", client_address[0], error)
            return False
        finally:
            self._handshakes.release()
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


def connected(host: str, port: int) -> socket.socket:
    """A connection to the first address of the host that answers; OSError if none does.

    Where processes of one machine connect to each other, only 127.0.0.1 is tried for `localhost`:
    there they listen, and on the other address anybody could.
    """
    own = loopback_address(host)
    found = socket.getaddrinfo(own or host, port, type=socket.SOCK_STREAM)
    found.sort(key=lambda one: one[0] != socket.AF_INET)
    for place, (kind, _, _, _, address) in enumerate(found):
        sock = socket.socket(kind, socket.SOCK_STREAM)
        try:
            sock.settimeout(CONNECT_TIMEOUT if place + 1 < len(found) else None)
            sock.connect(address)
            sock.settimeout(None)
            return sock
        except OSError:
            sock.close()
            if place + 1 == len(found):
                raise
    raise OSError(f"the name {host} has no address")
