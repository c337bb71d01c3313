"""The port of /healthz and /metrics against clients that are slow, many, or look for more."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator

import pytest
from processes import wait_until

from fedsight.deploy.monitoring import endpoint
from fedsight.deploy.monitoring.endpoint import BACKLOG, MAX_CONNECTIONS, Endpoint, Published

TEXT = b"fedsight_server_healthy 1.0\n"


@pytest.fixture
def published() -> Published:
    found = Published()
    found.publish(TEXT, [])
    return found


@pytest.fixture
def server(published: Published) -> Iterator[Endpoint]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    found = Endpoint(listener, published)
    thread = threading.Thread(target=found.serve_forever, args=(0.05,))
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def port(server: Endpoint) -> int:
    return int(server.socket.getsockname()[1])


def ask(
    server: Endpoint, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=10)
    try:
        connection.request(method, path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def raw(server: Endpoint, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port(server)), 10) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        found = b""
        while part := client.recv(4096):
            found += part
        return found


def test_health_says_why(server: Endpoint, published: Published) -> None:
    assert ask(server, "/healthz")[:2] == (200, b'{"status": "ok", "reasons": []}\n')
    published.publish(TEXT, ["the disk is nearly full"])
    code, body, headers = ask(server, "/healthz")
    assert code == 503
    assert json.loads(body) == {"status": "failing", "reasons": ["the disk is nearly full"]}
    assert headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers


def test_what_is_old_is_not_healthy(
    server: Endpoint, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "STALE", -1.0)  # whoever looks has been held by a signal
    code, body, _ = ask(server, "/healthz")
    assert code == 503
    assert b"nothing was looked at" in body


def test_before_the_first_look_nothing_is_claimed(server: Endpoint) -> None:
    server.published = Published()
    assert ask(server, "/healthz")[0] == 503
    assert ask(server, "/metrics")[0] == 503


def test_a_thousand_scrapes(server: Endpoint) -> None:
    found = [ask(server, "/metrics") for _ in range(1000)]
    assert {(code, body) for code, body, _ in found} == {(200, TEXT)}
    assert found[0][2]["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    wait_until(lambda: not server._open, 10)  # nothing is left of them


@pytest.mark.parametrize(
    "path",
    ["/", "/metrics/", "/metrics?x=1", "/../../etc/passwd", "/%2e%2e/ledger.sqlite", "/healthz/x"],
)
def test_there_is_nothing_else(server: Endpoint, path: str) -> None:
    code, body, _ = ask(server, path)
    assert code == 404
    assert body == b"there are /healthz and /metrics\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"])
def test_nothing_can_be_changed(server: Endpoint, method: str) -> None:
    code, _, headers = ask(server, "/metrics", method)
    assert code == 405
    assert headers["Allow"] == "GET, HEAD"


def test_head_has_no_body(server: Endpoint) -> None:
    code, body, headers = ask(server, "/metrics", "HEAD")
    assert (code, body, headers["Content-Length"]) == (200, b"", str(len(TEXT)))


def test_a_page_whose_name_leads_here_learns_nothing(server: Endpoint) -> None:
    """A web page can have its own host name resolve to 127.0.0.1 and then read what is there."""
    code, body, _ = ask(server, "/metrics", host="evil.example.org")
    assert code == 421
    assert TEXT not in body
    for host in ("localhost:9464", "127.0.0.1:9464", "[::1]:9464", "localhost"):
        assert ask(server, "/metrics", host=host)[0] == 200
    server.local = False  # where other machines ask, they do so by a name
    assert ask(server, "/metrics", host="fl.example.org:9464")[0] == 200


@pytest.mark.parametrize(
    "data",
    [b"", b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET /metrics HTTP/9.9\r\n\r\n", b"A" * 70_000],
)
def test_what_is_no_request_ends_nothing(server: Endpoint, data: bytes) -> None:
    assert TEXT not in raw(server, data)
    assert ask(server, "/healthz")[0] == 200


def test_slow_clients_keep_nobody_from_asking_and_are_cut_off(
    server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take all places, more than there are, and never end their request."""
    slow = [
        socket.create_connection(("127.0.0.1", port(server)), 10)
        for _ in range(2 * MAX_CONNECTIONS)
    ]
    for client in slow:
        with contextlib.suppress(ConnectionError):  # it was cut off already
            client.sendall(b"GET /met")
    assert ask(server, "/healthz")[0] == 200
    wait_until(lambda: len(server._open) <= MAX_CONNECTIONS, 10)
    monkeypatch.setattr(endpoint, "REQUEST_TIMEOUT", 0.0)
    wait_until(lambda: not server._open, 10)
    for client in slow:
        with contextlib.suppress(ConnectionError):
            assert client.recv(1) == b""
        client.close()
