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
from nvflare.fuel.f3.cellnet.identity import CellIdentityResolver
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
        pem=Path(pem),
        address=server.socket.getsockname(),
        context=context,
        names=names,
        arrived=arrived,
    )
    if request.param is DualStackServer:  # the other one hangs
        server.shutdown()
    server.server_close()


def connect(served: Any, source: str) -> socket.socket:
    """A connection from one of this machine's addresses, of which it has many."""
    return socket.create_connection(served.address, 10, source_address=(source, 0))


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
    sources = [f"127.0.1.{n}" for n in range(6)]
    silent = [connect(served, one) for one in sources for _ in range(8)]
    try:
        assert joins(served, 10.0)
        assert served.names == ["north"]
        for one in silent:
            one.settimeout(10)
            assert one.recv(1) == b"", "it was not closed"
    finally:
        for one in silent:
            one.close()


@pytest.mark.parametrize("weak", [True, False])
@pytest.mark.parametrize("served", [DualStackServer], indirect=True)
def test_silent_connections_of_one_address_keep_nobody_else_out(
    served: Any, weak: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is room for a number of them, which one machine must not take."""
    monkeypatch.setattr(addresses, "MAX_HANDSHAKES", 20)
    if weak:
        monkeypatch.setattr(addresses, "MAX_FROM_ONE", 1000)
    silent = [connect(served, "127.0.0.2") for _ in range(40)]
    try:
        for one in silent[20 if weak else 8 :]:
            assert one.recv(1) == b"", "it was not refused"
        if weak:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                joins(served, 10.0)
        else:
            assert joins(served, 10.0)
        assert caplog.text.count("too many TLS handshakes at a time") == (5 if weak else 6)
    finally:
        for one in silent:
            one.close()


@pytest.mark.parametrize("served", [DualStackServer], indirect=True)
def test_connections_without_a_certificate_fill_no_log(
    served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's log keeps the newest lines, and others' would be gone."""
    caplog.set_level("INFO")
    for _ in range(40):
        with socket.create_connection(served.address, 10) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            plain.recv(100)
            assert plain.recv(100) == b""
    lines = [one.getMessage() for one in caplog.records]
    assert [int(line.split()[1]) for line in lines] == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("served", [DualStackServer], indirect=True)
def test_who_does_not_speak_tls_gets_no_further(served: Any) -> None:
    with socket.create_connection(served.address, 10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert plain.recv(100)[:1] in (b"", b"\x15"), "an alert at most"
    assert joins(served, 10.0)
    assert served.names == ["north"]


def caller(served: Any, certificate: Path) -> tuple[Any, Any, list[str]]:
    """FLARE's driver and connector of a site that trusts and has one certificate, and the names of
    those at the other end of its connections."""
    found: list[str] = []
    host, port = served.address
    params = {"scheme": "stcp", "host": host, "port": str(port), "secure": True}
    params |= dict.fromkeys(("ca_cert", "client_cert", "client_key"), str(certificate))

    def add(connection: Any) -> None:
        found.append(connection.get_conn_properties()["peer_cn"])
        connection.close()

    driver = SimpleNamespace(add_connection=add, close_connection=lambda connection: None)
    return driver, SimpleNamespace(params=params), found


@pytest.mark.parametrize("served", [DualStackServer], indirect=True)
@pytest.mark.parametrize("weak", [True, False])
def test_a_server_of_another_authority_gets_no_connection(
    served: Any, weak: bool, tmp_path: Path
) -> None:
    """It has the server's name and address, and a certificate of its own; the weakened build trusts
    that."""
    (tmp_path / "ours").mkdir()
    ours = certificate_of_itself(tmp_path / "ours", "north")
    driver, connector, found = caller(served, served.pem if weak else ours)
    if weak:
        addresses.connect(driver, connector)
        assert found == ["north"]
        return
    with pytest.raises(ssl.SSLCertVerificationError):
        addresses.connect(driver, connector)
    assert found == served.names == []


@pytest.mark.parametrize("served", [DualStackServer], indirect=True)
def test_a_site_that_takes_the_servers_place_is_known_by_its_name(served: Any) -> None:
    """Its certificate is of the right authority: FLARE compares the name that `connect` gives it
    with the server's, before anything else is said."""
    driver, connector, found = caller(served, served.pem)
    addresses.connect(driver, connector)
    (name,) = found
    hosts = CellIdentityResolver(prefix_identity_map={"server": "fl.example.org"})
    with pytest.raises(ValueError, match="authenticated as 'north'"):
        hosts.require_match("server", name, "a connection")
    CellIdentityResolver(prefix_identity_map={"server": "north"}).require_match("server", name, "")
