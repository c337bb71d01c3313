"""Only who has the token gets in, and only a page of the console changes anything."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from command_line import refused
from consoles import Client

from fedsight.console.access import Guard
from fedsight.console.door import bound
from fedsight.console.sessions import MOST_SESSIONS, Sessions
from fedsight.core.errors import StoreError

PAGES = ("/", "/new", "/run/first", "/report/first", "/sites", "/events", "/?fragment")
FORMS = ("/new", "/do/stop/first", "/do/resume/first", "/withdraw/1")


@pytest.mark.parametrize("path", PAGES)
def test_without_a_session_no_page_tells_anything(
    outside: Client, make_run: Callable[..., Path], path: str
) -> None:
    make_run("first")
    for cookie in ("", "fedsight_console=", "fedsight_console=guess", "fedsight_console"):
        outside.cookie = cookie
        answer = outside.get(path)
        assert answer.code in (303, 401)
        assert "first" not in answer.text


@pytest.mark.parametrize("path", FORMS)
def test_without_a_session_nothing_is_done(
    outside: Client, make_run: Callable[..., Path], path: str
) -> None:
    folder = make_run("first")
    before = sorted(folder.iterdir())
    assert outside.post(path, {"example": "fashion"}).code == 401
    assert sorted(folder.iterdir()) == before
    assert outside.console.queue.jobs() == []


@pytest.mark.parametrize("token", ["", "guess", "é" * 43, "x" * 60000])
def test_a_wrong_token_gives_no_session(outside: Client, token: str) -> None:
    answer = outside.post("/session", {"token": token})
    assert answer.code == 403
    assert "set-cookie" not in answer.headers


def test_the_token_gives_a_session_that_scripts_and_other_sites_and_ports_cannot_use(
    outside: Client,
) -> None:
    answer = outside.enter()
    kept = answer.headers["set-cookie"]
    assert "HttpOnly" in kept
    assert "SameSite=strict" in kept
    # A browser sends a cookie to every port of a machine, but only below its path: a server of
    # another user, at another port, would have to know the path.
    assert f"Path={outside.console.base}" in kept
    assert len(outside.console.base) > 10
    assert outside.get("/").code == 200


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize("origin", ["", "null", "http://evil.example", "http://127.0.0.1:1"])
def test_a_page_from_elsewhere_cannot_act_with_the_users_session(
    client: Client, make_run: Callable[..., Path], path: str, origin: str
) -> None:
    folder = make_run("first")
    before = sorted(folder.iterdir())
    assert client.post(path, {"example": "fashion"}, origin=origin).code == 403
    assert sorted(folder.iterdir()) == before
    assert client.console.queue.jobs() == []


def test_a_guard_that_does_not_look_at_the_origin_would_let_it_act(
    client: Client, make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("first")
    monkeypatch.setattr(Guard, "_refusal", lambda *_: None)
    answer = client.post("/do/resume/first", origin="http://evil.example")
    assert answer.code == 303
    assert [job.folder for job in client.console.queue.jobs()] == ["first"]
    client.console.queue._over.set()


def test_a_name_that_leads_here_from_elsewhere_is_refused(client: Client) -> None:
    """DNS rebinding: the attacker's name has this machine's address by now."""
    for host in ("evil.example", f"evil.example:{client.port}", "127.0.0.1.evil.example", "[::1"):
        answer = client.get("/", host=host, origin=f"http://{host}")
        assert answer.code == 403
    assert client.get("/", host=f"localhost:{client.port}").code == 200


def test_every_answer_forbids_foreign_scripts_frames_and_caches(
    client: Client, make_run: Callable[..., Path]
) -> None:
    make_run("first")
    for path in ("/", "/run/first", "/report/first", "/static/console.js", "/nothing"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe-eval" not in policy
        assert "script-src 'unsafe" not in policy
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in client.get("/report/first").headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/run/../../etc/passwd", "/run/..%2f..%2fsecret", "/report/%2e%2e/secret", "/run//etc",
        "/static/../pages.py", "/static/..%2fpages.py", "/run/first%00", "/run/" + "a" * 10000,
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_folder(client: Client, path: str) -> None:
    secret = client.console.root.parent / "secret"
    secret.mkdir()
    (secret / "run.json").write_text('{"name": "top secret"}')
    answer = client.get(path)
    assert answer.code in (303, 400, 404)
    assert "top secret" not in answer.text


def test_a_linked_run_folder_is_not_shown(client: Client, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").write_text('{"name": "elsewhere"}')
    (client.console.root / "link").symlink_to(other)
    assert "/run/" not in client.get("/?fragment").text


def test_names_are_text_never_html(client: Client, make_run: Callable[..., Path]) -> None:
    bad = "<script>alert(1)</script>"
    make_run("first", name=bad, algorithm=bad, headline=bad)
    folder = client.console.root / "first"
    (folder / "live.json").write_text(json.dumps({"ended": {"how": "failed", "cause": bad}}))
    for path in ("/", "/run/first", "/report/first"):
        answer = client.get(path)
        assert answer.code == 200
        assert bad not in answer.text
    assert "&lt;script&gt;" in client.get("/run/first").text


def test_a_form_that_is_too_large_is_refused_and_the_console_goes_on(client: Client) -> None:
    assert client.post("/new", {"changes": "x" * 2_000_000}).code == 413
    assert client.get("/").code == 200


def test_an_old_session_ends_when_many_new_ones_begin() -> None:
    sessions = Sessions()
    first = sessions.enter(sessions.token)
    assert first is not None
    assert sessions.who(first)
    for _ in range(MOST_SESSIONS):
        newest = sessions.enter(sessions.token)
    assert newest is not None
    assert sessions.who(newest)
    assert not sessions.who(first)


def test_the_console_cannot_be_reached_from_another_machine(outside: Client) -> None:
    """It listens at the loopback address alone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            own = probe.getsockname()[0]
        except OSError:
            own = "127.0.0.2"  # no network: another address of this machine shows the same
    connection = http.client.HTTPConnection(own, outside.port, timeout=2)
    with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
        connection.request("GET", "/")


def test_a_port_that_is_taken_is_named_with_the_cure(outside: Client) -> None:
    with pytest.raises(StoreError, match=f"port {outside.port}") as caught:
        bound(outside.port)
    assert "--port" in caught.value.cure


def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedsight", "console", "--port", "0", "--runs", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = urlsplit(process.stdout.readline().rpartition(" ")[2].strip())
        assert address.hostname == "127.0.0.1"
        assert address.port is not None
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
        connection.request("GET", address.path)
        assert connection.getresponse().status == 200
        connection.close()
        process.terminate()
        assert process.wait() in (0, -signal.SIGTERM)


def test_the_command_refuses_what_it_cannot_serve(outside: Client, tmp_path: Path) -> None:
    words = ("console", "--runs", outside.console.root, "--port", outside.port)
    assert f"port {outside.port}" in refused(7, *words)
    again = refused(7, "console", "--runs", outside.console.root, "--port", 0)
    assert "another console serves" in again
    federation = refused(8, "console", "--federation", tmp_path)
    assert "Traceback" not in federation
