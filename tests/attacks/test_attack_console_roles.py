"""Somebody with a token that permits less, or permits nothing any more, acts with it all the same.

A token that only shows was taken from a screen; an operator who may pause runs starts one, which
sites would take for the work of the operator whose key the console has; one who was revoked keeps
the page open, on which everything goes on appearing; a token is tried after another.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from consoles import Client, secured, served, served_site_as
from federation_folders import ANNA, BEN, folder_with_run
from site_folders import make_site

from fedsight.console import changes, sessions, tokens
from fedsight.console.pages import Console
from fedsight.console.rights import Right, of_operators, of_token
from fedsight.console.sessions import Attempts, Sessions
from fedsight.console.shell import Shell
from fedsight.console.tokens import Known, TokenFile
from fedsight.core import locks
from fedsight.deploy.membership import operators
from fedsight.deploy.membership.federation import OPERATOR, FederationFolder
from fedsight.deploy.site.state import is_drained

FORMS = ("/new", "/do/pause/first", "/do/stop/first", "/do/resume/first", "/withdraw/1")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at each time, and listeners asked often."""
    monkeypatch.setattr(tokens, "GLANCE", 0.0)
    monkeypatch.setattr(operators, "GLANCE", 0.0)
    monkeypatch.setattr(changes, "GLANCE", 0.05)


@pytest.fixture
def federation(tmp_path: Path) -> FederationFolder:
    return folder_with_run(tmp_path / "wards")


@contextmanager
def console_of(federation: FederationFolder) -> Iterator[Client]:
    known = Known(TokenFile.within(federation.folder), of_operators(federation))
    with served(federation.runs, federation, Sessions(known, own=False)) as client:
        client.console.queue.close()  # what is put in the queue waits for ever
        with locks.hold(federation.runs / "first" / ".lock", 1.0, ValueError()):  # it goes on
            yield client


def enter(client: Client, federation: FederationFolder, name: str, **given: bool) -> None:
    client.enter(TokenFile.within(federation.folder).add(name, **given)[0])


def acts(client: Client, federation: FederationFolder) -> list[str]:
    """Which forms do anything."""
    found, folder = [], federation.runs / "first"
    for place in FORMS:
        code = client.post(place, {"example": "fashion"}).code
        asked = (folder / ".asked").exists() or client.console.queue.jobs()
        (folder / ".asked").unlink(missing_ok=True)
        for job in client.console.queue.jobs():
            client.console.queue.withdraw(job.id)
        if asked or code not in (403, 404):
            found.append(place)
    return found


def test_a_token_that_shows_steers_where_rights_are_not_asked_for(
    federation: FederationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "needed", lambda *_: Right.LOOK)
    with console_of(federation) as client:
        enter(client, federation, BEN)
        assert {"/new", "/do/pause/first", "/do/stop/first"} <= set(acts(client, federation))


@pytest.mark.parametrize("name", [BEN, OPERATOR])
def test_ours_shows_and_does_nothing_for_who_looks_on(
    federation: FederationFolder, name: str
) -> None:
    with console_of(federation) as client:
        enter(client, federation, name, read_only=True)
        assert client.get("/run/first").code == 200
        for place in ("/", "/run/first", "/new", "/sites"):
            text = client.get(place).text
            assert text.count("<form") == 2  # to log out, and for the language
        assert acts(client, federation) == []
    assert [one["event"] for one in federation.events()] == []


def test_whoever_may_pause_starts_runs_in_anothers_name_where_all_rights_are_one(
    federation: FederationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "needed", lambda *_: Right.STEER)
    with console_of(federation) as client:
        enter(client, federation, ANNA)
        assert "/new" in acts(client, federation)


def test_ours_lets_them_pause_and_stop_and_says_who_did(federation: FederationFolder) -> None:
    with console_of(federation) as client:
        enter(client, federation, ANNA)
        assert acts(client, federation) == ["/do/pause/first", "/do/stop/first"]
        page = client.get("/run/first").text
        assert 'id="pause"' in page
        assert "/new" not in page
    told = [(one["what"], one["run"], one["operator"]) for one in federation.events()]
    assert told == [("pause", "first", ANNA), ("stop", "first", ANNA)]


def test_ours_lets_the_operator_whose_key_it_has_start(federation: FederationFolder) -> None:
    with console_of(federation) as client:
        enter(client, federation, OPERATOR)
        assert {"/new", "/do/pause/first", "/do/stop/first"} <= set(acts(client, federation))


def told_after(
    client: Client, federation: FederationFolder, happens: Callable[[], None]
) -> tuple[bool, int]:
    """Whether an open page hears of a run that begins after something has happened, and what it is
    answered when it asks."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    place = f"{client.console.base}/events"
    connection.request("GET", place, headers={"cookie": client.cookie})
    stream = connection.getresponse()
    assert stream.status == 200
    assert stream.readline() == b"retry: 2000\n"
    while b"*" not in stream.readline():
        pass
    happens()
    time.sleep(0.3)
    (federation.runs / "second").mkdir()
    (federation.runs / "second" / "run.json").write_text("{}")
    heard = b""
    while line := stream.readline():
        heard += line
        if b"second" in heard:
            break
    connection.close()
    return b"second" in heard, client.get("/?fragment").code


def revoke(federation: FederationFolder) -> None:
    (federation.folder / "revoked.json").write_text(json.dumps({BEN: "has left"}))


def test_an_open_page_goes_on_hearing_where_the_session_is_looked_at_once(
    federation: FederationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = changes.Changes.events
    monkeypatch.setattr(changes.Changes, "events", lambda self, _: kept(self, lambda: True))
    with console_of(federation) as client:
        enter(client, federation, BEN)
        assert told_after(client, federation, lambda: revoke(federation)) == (True, 401)


@pytest.mark.parametrize("how", ["operator", "token", "rotated", "expired"])
def test_ours_ends_what_a_revoked_operator_hears(
    federation: FederationFolder, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = TokenFile.within(federation.folder)

    def expire() -> None:
        monkeypatch.setattr(tokens.Token, "ended", True)

    happens: dict[str, Callable[[], object]] = {
        "operator": lambda: revoke(federation),
        "token": lambda: file.revoke(BEN),
        "rotated": lambda: file.rotate(BEN),
        "expired": expire,
    }
    with console_of(federation) as client:
        enter(client, federation, BEN)
        assert told_after(client, federation, lambda: None)[0]
        (federation.runs / "second" / "run.json").unlink()
        (federation.runs / "second").rmdir()
        heard = told_after(client, federation, lambda: (happens[how](), None)[1])
        assert heard == (False, 401)


def tried(client: Client, times: int) -> list[int]:
    return [client.post("/session", {"token": f"guess {n}"}).code for n in range(times)]


@pytest.fixture
def from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection seems to come from another machine."""
    may_try, wrong = Attempts.may_try, Attempts.wrong
    monkeypatch.setattr(Attempts, "may_try", lambda self, _: may_try(self, "192.0.2.7"))
    monkeypatch.setattr(Attempts, "wrong", lambda self, _: wrong(self, "192.0.2.7"))


@pytest.mark.usefixtures("from_elsewhere")
def test_any_number_of_tokens_is_tried_without_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MOST_WRONG", 10**9)
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs", door=secured(tmp_path / "tls")) as client:
        assert tried(client, 8) == [403] * 8


@pytest.mark.usefixtures("from_elsewhere")
def test_ours_takes_a_few_from_one_address_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sessions, "MOST_WRONG", 4)
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs", door=secured(tmp_path / "tls")) as client:
        assert tried(client, 7) == [403] * 4 + [429] * 3
        assert client.enter().code == 429  # the right one is not looked at either
        monkeypatch.setattr(sessions, "WRONG_WITHIN", 0.0)  # all that is long ago
        assert client.enter().code == 303
    assert "wrong tokens so far: 4; the latest from 192.0.2.7" in caplog.text
    assert "guess" not in caplog.text


def test_ours_lets_nobody_on_this_machine_lock_the_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MOST_WRONG", 4)
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs") as client:
        assert tried(client, 6) == [403] * 6
        assert client.enter().code == 303


def test_addresses_count_by_who_has_them_and_are_not_kept_without_end() -> None:
    attempts = Attempts()
    for _ in range(sessions.MOST_WRONG):
        attempts.wrong("2001:db8::1")
        attempts.wrong("::ffff:192.0.2.7")
        attempts.wrong("::ffff:127.0.0.1")
    assert not attempts.may_try("2001:db8::2")  # the same /64
    assert not attempts.may_try("192.0.2.7")
    for free in ("2001:db8:0:1::1", "192.0.2.8", "127.0.0.1", "::1"):
        assert attempts.may_try(free)
    for at in range(sessions.MOST_ADDRESSES + 10):
        attempts.wrong(f"10.{at >> 8}.0.{at & 255}")
    assert len(attempts._wrong) == sessions.MOST_ADDRESSES


@pytest.mark.parametrize(
    ("right", "code"), [(Right.LOOK, 403), (Right.ALL, 303)], ids=["ours", "any right will do"]
)
def test_who_looks_on_drains_no_site(
    tmp_path: Path, right: Right, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if code == 303:
        monkeypatch.setattr(Shell, "needed", lambda *_: Right.LOOK)
    home = make_site(tmp_path / "site")
    secret, _ = TokenFile.within(home).add("night shift", read_only=True)
    known = Known(TokenFile.within(home), of_token)
    with served_site_as(home, Sessions(known, own=False)) as client:
        client.enter(secret)
        assert client.get("/").code == 200
        assert ('id="drain"' in client.get("/").text) is False
        assert client.post("/drain/begin").code == code
        assert is_drained(home) == (code == 303)
