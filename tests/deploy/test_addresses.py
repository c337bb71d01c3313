"""Connections over IPv4 and IPv6: every address of a name is tried, and `localhost` is one only."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from loopback import IPV6

from fedsight.deploy.flare import addresses
from fedsight.deploy.membership import hosts
from fedsight.deploy.processes.supervisor import LISTEN_VARIABLE


@contextmanager
def listener(address: str, port: int = 0) -> Iterator[int]:
    """Something that listens on an address; gives its port."""
    with socket.socket(hosts.family(address)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen()
        yield sock.getsockname()[1]


def resolve(monkeypatch: pytest.MonkeyPatch, *found: str) -> None:
    """Let a name stand for these addresses, in this order."""
    real = socket.getaddrinfo

    def look_up(host: str, port: int, **how: int) -> list[tuple]:
        names = found if host == "fl.example.org" else (host,)
        return [one for name in names for one in real(name, port, **how)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_the_addresses_of_a_name_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, IPV6, "127.0.0.1")
    with listener(IPV6) as port, addresses.connected("fl.example.org", port) as sock:
        assert sock.getpeername()[0] == IPV6  # nobody is there at the other one
        assert sock.gettimeout() is None
    with pytest.raises(ConnectionRefusedError):
        addresses.connected("fl.example.org", port)


def test_an_address_is_connected_to_by_its_name_in_the_engines_files() -> None:
    with listener(IPV6) as port:
        host = hosts.host_of(hosts.engine_name(IPV6))
        with addresses.connected(host, port) as sock:
            assert sock.getpeername()[:2] == (IPV6, port)


def test_a_neighbour_on_the_other_loopback_address_gets_no_connection() -> None:
    """FLARE's own processes meet at `localhost`, without TLS, on 127.0.0.1."""
    with listener(IPV6) as port, pytest.raises(ConnectionRefusedError):
        addresses.connected("localhost", port)


@pytest.mark.parametrize(
    ("listen", "host", "reached"),
    [
        ("", "", {"127.0.0.1", IPV6}),
        (IPV6, "", {IPV6}),
        ("", "127.0.0.1", {"127.0.0.1"}),
    ],
)
def test_a_server_listens_where_it_is_to(
    monkeypatch: pytest.MonkeyPatch, listen: str, host: str, reached: set[str]
) -> None:
    monkeypatch.setenv(LISTEN_VARIABLE, listen)
    connector = SimpleNamespace(params={"host": host, "port": "0"})
    server = addresses.DualStackServer(SimpleNamespace(), connector)
    try:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        for address in {"127.0.0.1", IPV6}:
            with socket.socket(hosts.family(address)) as sock:
                code = sock.connect_ex((address, port))
            assert (code == 0) == (address in reached), address
    finally:
        server.shutdown()
        server.server_close()
