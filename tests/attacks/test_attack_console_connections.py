"""Another user of the machine opens connections to the console, and says nothing on them.

Anybody on the machine can reach the port. Each connection is an open file of the console's process,
and was kept for as long as the other end liked. With none left the console answered nobody, wrote
megabytes of errors, and could start no run: what waited in the queue ended with an error.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from consoles import Client, served

from fedsight.console import server

MOST = 4


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", MOST)
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs") as found:
        yield found


def answered(client: Client, silent: int) -> bytes:
    """What is answered to a request that comes while so many connections say nothing."""
    request = f"GET {client.console.base}/session HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with contextlib.ExitStack() as all_open:
        for _ in range(silent):
            all_open.enter_context(socket.create_connection(("127.0.0.1", client.port)))
        asking = all_open.enter_context(socket.create_connection(("127.0.0.1", client.port)))
        with contextlib.suppress(ConnectionError):  # closed before or after it is sent
            asking.sendall(request.encode())
            return asking.recv(12)
    return b""


def test_any_number_of_connections_is_held(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 10**9)
    assert answered(client, 10 * MOST) == b"HTTP/1.1 200"


def test_ours_holds_some_and_closes_what_comes_then(client: Client) -> None:
    assert answered(client, MOST - 1) == b"HTTP/1.1 200"
    assert answered(client, 10 * MOST) == b""


def test_a_connection_on_which_nothing_is_asked_is_closed(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.01)
    silent = socket.create_connection(("127.0.0.1", client.port))
    with silent, contextlib.suppress(ConnectionError):
        assert silent.recv(1) == b""
    assert client.get("/session").code == 200
