"""Another user of the machine opens connections to the console, and says little on them.

Anybody on the machine can reach the port. Each connection is an open file of the console's process,
and was kept for as long as the other end liked. With none left the console answered nobody, wrote
megabytes of errors, and could start no run: what waited in the queue ended with an error.

Where there is room for some alone, and who comes later is sent away, the others keep the owner out
by taking it all. They need no session for that: one request that is answered, and half of another,
of which nobody ever waited for the rest. And whoever may only look on needs just to look on often.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from consoles import Client, secured, served
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedsight.console import server
from fedsight.console.server import Connection

MOST = 4


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", MOST)
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs") as found:
        yield found


def connect(client: Client, others: contextlib.ExitStack) -> socket.socket:
    return others.enter_context(socket.create_connection(("127.0.0.1", client.port), timeout=20))


def request(client: Client, place: str = "/session", method: str = "GET", **headers: str) -> bytes:
    lines = [f"{method} {client.console.base}{place} HTTP/1.1", "host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer(connection: socket.socket, asked: bytes) -> bytes:
    """The beginning of what is answered; empty from a closed connection."""
    with contextlib.suppress(ConnectionError):  # closed before or after it is sent
        connection.sendall(asked)
        return connection.recv(12)
    return b""


def is_open(connection: socket.socket) -> bool:
    """Whether the console has not closed it, after all that it has sent."""
    connection.setblocking(False)
    with contextlib.suppress(ConnectionError):
        try:
            while connection.recv(1 << 16):
                pass
        except BlockingIOError:
            return True
    return False


def answered(client: Client, silent: int) -> tuple[bytes, int]:
    """What is answered to a request that comes after so many connections that say nothing, and how
    many of them are held then."""
    with contextlib.ExitStack() as others:
        held = [connect(client, others) for _ in range(silent)]
        said = answer(connect(client, others), request(client))
        return said, sum(is_open(one) for one in held)


def left_to_the_owner(client: Client) -> bytes:
    """What the owner is answered after connections with an answered request and half another."""
    with contextlib.ExitStack() as others:
        for _ in range(MOST):
            taken = connect(client, others)
            assert answer(taken, request(client)) == b"HTTP/1.1 200"
            taken.sendall(b"GET /")
        return answer(connect(client, others), request(client))


def test_any_number_of_connections_is_held(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 10**9)
    assert answered(client, 10 * MOST) == (b"HTTP/1.1 200", 10 * MOST)


def test_half_requests_take_all_room_where_newer_connections_are_closed(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(connection: Connection) -> None:
        if len(connection.connections) > MOST:
            connection.transport.abort()

    def unless_asked_once(connection: Connection) -> None:
        if connection.cycle is None:
            connection.transport.abort()

    monkeypatch.setattr(Connection, "_make_room", refuse)
    monkeypatch.setattr(Connection, "_unless_asked", unless_asked_once)
    monkeypatch.setattr(Connection, "on_response_complete", H11Protocol.on_response_complete)
    assert left_to_the_owner(client) == b""


def test_ours_holds_some_and_the_oldest_give_way(client: Client) -> None:
    assert answered(client, MOST - 1) == (b"HTTP/1.1 200", MOST - 1)
    assert answered(client, 10 * MOST) == (b"HTTP/1.1 200", MOST - 1)
    assert left_to_the_owner(client) == b"HTTP/1.1 200"


def test_ours_keeps_what_a_session_has_open(client: Client) -> None:
    client.enter()
    with contextlib.ExitStack() as others:
        stream = connect(client, others)
        events = request(client, "/events", cookie=client.cookie)
        assert answer(stream, events) == b"HTTP/1.1 200"
        assert answered(client, 10 * MOST) == (b"HTTP/1.1 200", MOST - 2)
        assert is_open(stream)


def left_beside(client: Client, looking_on: int) -> tuple[bytes, int]:
    """What is answered to somebody else while one session listens on so many connections, and how
    many of these are held then."""
    client.enter()
    with contextlib.ExitStack() as others:
        streams = [connect(client, others) for _ in range(looking_on)]
        events = request(client, "/events", cookie=client.cookie)
        for one in streams:
            assert answer(one, events) == b"HTTP/1.1 200"
        said = answer(connect(client, others), request(client))
        return said, sum(is_open(one) for one in streams)


def test_one_holder_takes_all_room_and_with_ours_gives_way(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.MOST_OF_ONE > MOST  # weakened: as if nobody ever held too many
    assert left_beside(client, MOST) == (b"", MOST)
    monkeypatch.setattr(server, "MOST_OF_ONE", MOST - 2)
    assert left_beside(client, MOST) == (b"HTTP/1.1 200", MOST - 1)


def test_ours_speaks_no_web_sockets(client: Client) -> None:
    wanted = {"connection": "Upgrade", "upgrade": "websocket", "sec_websocket_version": "13"}
    with contextlib.ExitStack() as others:
        asked = request(client, sec_websocket_key="AAAAAAAAAAAAAAAAAAAAAA==", **wanted)
        assert answer(connect(client, others), asked) == b"HTTP/1.1 200"


@pytest.fixture
def with_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", MOST)
    (tmp_path / "more").mkdir()
    with served(tmp_path / "more", door=secured(tmp_path / "tls")) as found:
        yield found


def handshakes(client: Client, silent: int, said: bytes) -> tuple[int, int]:
    """The same over TLS: what is answered while so many connections have begun no handshake, or
    half of one, and how many of them are held then."""
    with contextlib.ExitStack() as others:
        held = [connect(client, others) for _ in range(silent)]
        for one in held:
            one.sendall(said)
        code = client.get("/session").code
        return code, sum(is_open(one) for one in held)


HALF = bytes.fromhex("1603010200010001fc0303")  # the beginning of a TLS greeting


@pytest.mark.parametrize("said", [b"", HALF], ids=["nothing", "half"])
def test_any_number_of_handshakes_is_held_where_only_complete_ones_count(
    with_tls: Client, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "make_room", lambda _: None)
    assert handshakes(with_tls, 10 * MOST, said) == (200, 10 * MOST)


@pytest.mark.parametrize("said", [b"", HALF], ids=["nothing", "half"])
def test_ours_holds_a_few_handshakes_for_a_while(
    with_tls: Client, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, held = handshakes(with_tls, 10 * MOST, said)
    assert code == 200
    assert held < MOST
    monkeypatch.setattr(server, "PATIENCE", 0.05)
    with contextlib.ExitStack() as others:
        silent = connect(with_tls, others)
        silent.sendall(said)
        with contextlib.suppress(ConnectionError):
            while silent.recv(1 << 16):
                pass
    assert with_tls.get("/session").code == 200


def test_ours_keeps_what_a_session_has_open_over_tls(with_tls: Client) -> None:
    with_tls.enter()
    assert with_tls.trusts is not None
    with contextlib.ExitStack() as others:
        plain = connect(with_tls, others)
        stream = others.enter_context(
            with_tls.trusts.wrap_socket(plain, server_hostname="127.0.0.1")
        )
        lines = request(with_tls, "/events", cookie=with_tls.cookie)
        assert answer(stream, lines.replace(b"localhost", b"127.0.0.1")) == b"HTTP/1.1 200"
        handshakes(with_tls, 10 * MOST, b"")
        stream.settimeout(20)
        assert stream.recv(1 << 16)  # the rest of the head, and it is not closed


@pytest.mark.parametrize("asked", ["nothing", "half a head", "half a body", "half of a second one"])
def test_a_connection_without_a_complete_request_is_closed(
    client: Client, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    client.enter()
    form = {"origin": "http://localhost", "content_type": "application/x-www-form-urlencoded"}
    body = request(client, "/new", "POST", cookie=client.cookie, content_length="9", **form)
    with contextlib.ExitStack() as others, monkeypatch.context() as patch:
        patch.setattr(server, "PATIENCE", 0.05)
        silent = connect(client, others)
        with contextlib.suppress(ConnectionError):
            if asked == "half of a second one":
                silent.sendall(request(client))
            silent.sendall({"nothing": b"", "half a body": body + b"name"}.get(asked, b"GET /"))
            while silent.recv(1 << 16):
                pass
    assert client.get("/session").code == 200
