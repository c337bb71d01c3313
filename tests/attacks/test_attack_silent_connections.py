"""Somebody on the network connects to the server's port and says nothing: no certificate is needed.

FLARE makes each TLS handshake before it accepts the next connection, so one silent connection would
keep all sites out that are not connected yet, for as long as it lasts.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from authorities import certificate_of_itself
from nvflare.fuel.f3.drivers.tcp_driver import TcpStreamServer

from fedsight.deploy.flare import addresses
from fedsight.deploy.flare.addresses import DualStackServer


@pytest.fixture
def served(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A listener; its address, the context of a site, and the names that have come through."""
    pem = str(certificate_of_itself(tmp_path, "north"))
    names: list[str] = []
    arrived = threading.Event()

    def finish(self: Any, connection: Any, address: Any) -> None:
        names.append(connection.getpeercert()["subject"][0][0][1])
        arrived.set()

    monkeypatch.setattr(TcpStreamServer, "finish_request", finish)
    params = {"scheme": "stcp", "host": "127.0.0.1", "port": "0", "secure": True}
    params |= {"ca_cert": pem, "server_cert": pem, "server_key": pem}
    server = request.param(SimpleNamespace(), SimpleNamespace(params=params))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(pem)
    context.load_cert_chain(pem)
    yield SimpleNamespace(
        address=server.socket.getsockname(), context=context, names=names, arrived=arrived
    )
    if request.param is DualStackServer:  # the other one hangs
        server.shutdown()
    server.server_close()


def joins(served: Any, patience: float) -> bool:
    """Whether a site gets through."""
    with socket.create_connection(served.address, patience) as plain:
        try:
            with served.context.wrap_socket(plain):
                return bool(served.arrived.wait(10))
        except TimeoutError:
            return False


@pytest.mark.parametrize("served", [TcpStreamServer], indirect=True)
def test_one_silent_connection_keeps_everybody_out_of_flares_own(served: Any) -> None:
    with socket.create_connection(served.address):
        assert not joins(served, 1.0)
    assert joins(served, 10.0)  # now that it is gone


@pytest.mark.parametrize("served", [DualStackServer], indirect=True)
def test_silent_connections_keep_nobody_out_and_are_closed(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "HANDSHAKE_TIMEOUT", 0.5)
    silent = [socket.create_connection(served.address) for _ in range(50)]
    try:
        assert joins(served, 10.0)
        assert served.names == ["north"]
        for one in silent:
            one.settimeout(10)
            assert one.recv(1) == b"", "it was not closed"
    finally:
        for one in silent:
            one.close()


@pytest.mark.parametrize("served", [DualStackServer], indirect=True)
def test_who_does_not_speak_tls_gets_no_further(served: Any) -> None:
    with socket.create_connection(served.address, 10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert plain.recv(100)[:1] in (b"", b"\x15"), "an alert at most"
    assert joins(served, 10.0)
    assert served.names == ["north"]
