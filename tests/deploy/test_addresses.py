"""Connections over IPv4 and IPv6: every address of a name is tried, and `localhost` is one only."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

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
    with listener(IPV6) as port, hosts.connected("fl.example.org", port) as sock:
        assert sock.getpeername()[0] == IPV6  # nobody is there at the other one
        assert sock.gettimeout() is None
    with pytest.raises(ConnectionRefusedError):
        hosts.connected("fl.example.org", port)


def test_an_address_that_swallows_packets_leaves_time_for_the_other_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An operator's log-in is given up after 5 seconds."""
    patience: list[float | None] = []

    class Swallows(socket.socket):
        def connect(self, address: Any) -> None:
            patience.append(self.gettimeout())
            if self.family == socket.AF_INET:
                raise TimeoutError
            super().connect(address)

    resolve(monkeypatch, IPV6, "127.0.0.1")
    with listener(IPV6) as port:
        monkeypatch.setattr(socket, "socket", Swallows)
        with hosts.connected("fl.example.org", port) as sock:
            assert sock.getpeername()[0] == IPV6
        with hosts.connected("fl.example.org", port, 7.0) as sock:
            assert sock.gettimeout() == 7.0
    assert patience == [hosts.CONNECT_TIMEOUT, None, hosts.CONNECT_TIMEOUT, 7.0]


def test_an_address_is_connected_to_by_its_name_in_the_engines_files() -> None:
    with listener(IPV6) as port:
        host = hosts.host_of(hosts.engine_name(IPV6))
        with hosts.connected(host, port) as sock:
            assert sock.getpeername()[:2] == (IPV6, port)


def test_a_neighbour_on_the_other_loopback_address_gets_no_connection() -> None:
    """FLARE's own processes meet at `localhost`, without TLS, on 127.0.0.1."""
    with listener(IPV6) as port, pytest.raises(ConnectionRefusedError):
        hosts.connected("localhost", port)


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


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.7", "192.0.2.8", False),
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_what_one_machine_has_counts_as_one_address(one: str, other: str, same: bool) -> None:
    assert (addresses.network_of(one) == addresses.network_of(other)) == same
