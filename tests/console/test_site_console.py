"""What the console of a site's owner shows, who can use it, and what its buttons do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import done, refused
from consoles import Client, served_site
from site_folders import OPERATOR, ask, make_site, some_program, write_log

from fedsight.console import changes, site_view
from fedsight.console.access import Guard
from fedsight.console.site_pages import look_at_site
from fedsight.console.site_view import LedgerReader
from fedsight.deploy.findings import settings_in_force
from fedsight.deploy.processes import supervisor
from fedsight.deploy.site import approvals, state
from fedsight.deploy.site.refusals import Asked
from fedsight.governance.contract import Contract
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger

PAGES = ("/", "/programs", "/left", "/ledger", "/contract", "/recognisers", "/health")
BAD = "<script>alert(1)\x1b[2J\u202e"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_site(tmp_path / "lyon", epsilon=8.0)


@pytest.fixture
def client(home: Path) -> Iterator[Client]:
    with served_site(home) as made:
        yield made


def test_every_page_is_there_in_both_languages_and_writes_nothing(
    client: Client, home: Path
) -> None:
    before = sorted(home.rglob("*"))
    for language in ("en", "zh"):
        for page in PAGES:
            answer = client.get(page, accept_language=language)
            assert answer.code == 200, (page, answer.text)
            assert f'lang="{"en" if language == "en" else "zh-Hans"}"' in answer.text
            assert client.get(f"{page}?fragment").code == 200
    assert sorted(home.rglob("*")) == before
    assert client.get("/nothing").code == 404
    assert client.get(f"/program/{'0' * 64}").code == 404
    assert client.get("/program/..%2f..%2fetc").code == 404


def test_the_owner_sees_what_waits_and_approves_it(client: Client, home: Path) -> None:
    program = some_program()
    ask(home, program)
    for page in ("/", "/programs"):
        text = client.get(page).text
        assert f"/program/{program.fingerprint}" in text
        assert OPERATOR in text
    page = f"/program/{program.fingerprint}"
    text = client.get(page).text
    assert program.fingerprint in text
    assert "name = &#34;mlp&#34;" in text, "all settings"
    assert client.post(f"{page}/delete").code == 404
    assert client.post(f"{page}/approve").code == 303
    assert ask(home, program) == ""
    assert "/approve" not in client.get(page).text
    assert "approved" in client.get("/ledger").text
    other = some_program(train={"lr": 0.3})
    ask(home, other)
    assert "train.lr: 0.05 -&gt; 0.3" in client.get(f"/program/{other.fingerprint}").text, (
        "what differs"
    )


def test_a_decision_is_shown_at_once_however_long_the_ledger_takes(
    client: Client, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = some_program()
    ask(home, program)
    Ledger(home).append(LedgerEntry("clock"))
    page = f"/program/{program.fingerprint}"
    assert "/approve" in client.get(page).text

    def late(self: site_view.Pace) -> bool:
        return self._not_before == 0.0  # it took long before, and a new one has not

    monkeypatch.setattr(site_view, "QUICK", -1.0)  # all of it takes long
    monkeypatch.setattr(site_view.Pace, "due", property(late))
    client.get(page)
    assert client.post(f"{page}/approve").code == 303
    assert "/approve" not in client.get(page).text


def test_two_consoles_at_once_leave_one_decision(client: Client, home: Path) -> None:
    program = some_program()
    ask(home, program)
    page = f"/program/{program.fingerprint}"
    with served_site(home) as other:
        assert "/approve" in client.get(page).text
        assert "/approve" in other.get(page).text
        assert client.post(f"{page}/refuse").code == 303
        late = other.post(f"{page}/approve")
        assert late.code == 409
        assert "that is final" in late.text
        assert "/approve" not in other.get(page).text
    assert "has refused" in ask(home, program)


def test_the_site_is_drained_and_takes_part_again(client: Client, home: Path) -> None:
    assert client.post("/drain/begin").code == 303
    assert state.is_drained(home)
    assert "drained" in client.get("/").text
    assert client.post("/drain/end").code == 303
    assert not state.is_drained(home)


def test_without_a_session_or_from_elsewhere_nothing_is_told_or_done(
    client: Client, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = some_program("a-secret-study")
    ask(home, program)
    page = f"/program/{program.fingerprint}"
    forms = (f"{page}/approve", f"{page}/refuse", "/drain/begin")
    session = client.cookie
    client.cookie = "fedsight_console=guess"
    for one in (*PAGES, page, "/events", "/?fragment"):
        answer = client.get(one)
        assert answer.code in (303, 401)
        assert "a-secret-study" not in answer.text
    for form in forms:
        assert client.post(form).code == 401
    client.cookie = session
    for origin in ("", "null", "http://evil.example", "http://127.0.0.1:1"):
        for form in forms:
            assert client.post(form, origin=origin).code == 403
    assert client.get("/", host="evil.example").code == 403
    assert client.get(f"{page}/approve").code == 405, "a link or an image changes nothing"
    assert not state.is_drained(home)
    assert Ledger(home).entries() == []
    monkeypatch.setattr(Guard, "_refusal", lambda *_: None)
    assert client.post(forms[0], origin="http://evil.example").code == 303
    assert len(Ledger(home).entries()) == 1, "a guard that does not look lets it act"


def test_whatever_others_chose_is_text_and_visible(client: Client, home: Path) -> None:
    long = BAD + "x" * 10_000
    program = some_program(long, data={"name": "folder", "path": "x", "classes": [BAD, "b"]})
    ask(home, program, (long,))
    approvals.decide(home, program.fingerprint, approve=True)
    ask(home, some_program(long, seed=1), (long,))
    line = {"run": long, "why": long, "what": long, "program": long, "asked_by": [long]}
    write_log(
        *(home, {"event": "refused", **line}, {"event": long, **line, "bytes": "many"}),
        {"event": "update", "run": 3, "round": [long], "bytes": 7, "protections": [long]},
        {"event": "refused", "asked_by": long, "times": long},
    )
    for page in (*PAGES, f"/program/{program.fingerprint}"):
        answer = client.get(page)
        assert answer.code == 200, (page, answer.text)
        assert "<script>alert" not in answer.text
        assert not {"\x1b", "\u202e"} & set(answer.text)
        assert len(answer.text) < 30_000
    assert "&lt;script&gt;" in client.get("/programs").text


def test_no_page_shows_the_name_of_an_image(client: Client, home: Path) -> None:
    name = "meier-hans-1952.png"
    write_log(
        home,
        {"event": "failed", "what": "training in round 1", "why": f"{name} is corrupt"},
        {"event": "refused", "what": "propose", "why": f"/srv/{name} is corrupt"},
        {"event": "refused", "what": "propose", "why": f"{name} is", "names_images": True},
        {"event": "refused", "what": "propose", "why": "contract.tasks: not permitted"},
    )
    for page in PAGES:
        assert name not in client.get(page).text
    assert "not permitted" in client.get("/programs").text
    assert client.get("/programs").text.count("it is in log.jsonl") == 2


def test_a_running_site_goes_by_what_it_was_started_with(client: Client, home: Path) -> None:
    shutil.copy(home / "site.toml", home / "owner.toml")
    (home / "site.toml").write_text("[contract]\nunknown = 1\napproval = false\n")
    program = some_program()
    ask(home, program)
    assert refused(2, "site", "ledger", home)
    assert "Approved" in done("site", "approve", home, program.fingerprint).out
    with supervisor.exclusive(home, "the site"):
        assert settings_in_force(home) == ("owner.toml", True)
        assert client.get("/contract").code == 200
        assert done("site", "ledger", home).out


def test_a_folder_that_changes_or_goes_while_it_is_shown(client: Client, home: Path) -> None:
    Ledger(home).append(LedgerEntry("clock"))
    assert "intact" in client.get("/ledger").text
    (home / "log.jsonl").write_text('{"event": "started"}\n{"event": "upda')
    assert client.get("/left").code == 200
    with sqlite3.connect(home / "ledger.sqlite") as table:
        table.execute("DROP TRIGGER no_update")
        table.execute("UPDATE entries SET body = replace(body, 'clock', 'sum')")
    table.close()
    for page in ("/", "/programs", "/ledger", "/health"):
        answer = client.get(page)
        assert answer.code == 200
        assert "was altered" in answer.text
    (home / "site.toml").write_text("[contract]\nunknown = 1\n")
    assert client.get("/contract").code == 409
    shutil.rmtree(home)
    for page in PAGES:
        assert client.get(page).code in (200, 409)
    assert client.post("/drain/begin").code == 409
    assert client.post(f"/program/{'0' * 64}/approve").code == 409
    assert "does not contain a site" in client.post(f"/program/{'0' * 64}/approve").text


def test_the_pages_follow_what_changes(home: Path) -> None:
    look = look_at_site(home)

    def changed(before: dict[str, tuple[object, ...]]) -> set[str]:
        now = look()
        return {name for name in now if now[name] != before[name]}

    before = look()
    ask(home, some_program())
    assert changed(before) >= {"now", "programs"}
    before = look()
    approvals.decide(home, some_program().fingerprint, approve=True)
    assert changed(before) >= {"now", "programs", "ledger"}
    before = look()
    state.drain(home, True)
    assert changed(before) == {"now"}
    before = look()
    write_log(home, {"event": "started"})
    assert changed(before) == {"left", "programs"}
    assert look() == look()


def test_the_pages_follow_also_after_a_look_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "INTERVAL", 0.01)
    monkeypatch.setattr(changes, "PAUSE", 0.01)
    number = itertools.count()

    def look() -> dict[str, tuple[object, ...]]:
        if (seen := next(number)) in (0, 3):
            raise FileNotFoundError(2, "gone meanwhile")
        return {"left": (seen,)}

    async def heard() -> list[str]:
        events = changes.Changes(look).events(lambda: True)
        async with contextlib.aclosing(events), asyncio.timeout(30):
            return [await anext(events) for _ in range(6)]

    assert asyncio.run(heard())[-1] == 'data: ["left"]\n\n'
    assert next(number) > 3


def test_a_job_is_shown_with_who_asks_and_what_the_site_does(home: Path) -> None:
    asked = Asked("run7", "a" * 64, "lungs", (OPERATOR,))
    state.tell_job(home, asked, 0)
    state.tell_job(home, asked, 3)
    with state.at_work(home, os.getpid(), "training in round 3", "run7"):
        (job,), (work,) = state.jobs(home), state.works(home)
    assert (job.run, job.name, job.operators, job.round) == ("run7", "lungs", (OPERATOR,), 3)
    assert work.run == job.run
    path = home / state.WORK / f"{os.getpid()}.job"
    told = json.loads(path.read_text())
    gone = home / state.WORK / "1.job"
    gone.write_text(json.dumps({**told, "process": 1, "started": -1}))
    assert len(state.jobs(home)) == 1, "a process that is gone is not shown"
    state.tell_job(home, asked, 4)
    assert not gone.exists()
    state.forget_job(home)
    assert state.jobs(home) == []


def test_the_cost_is_computed_at_most_for_a_small_part_of_the_time(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, contract = LedgerReader(home), Contract(epsilon=8.0)
    assert reader.epsilons(contract) is None
    event = {"kind": "gaussian", "noise": 4.0, "neighbours": "add_remove"}
    one = LedgerEntry("update", data_set="images", event=event, enforced=True, delta=1e-5)
    Ledger(home).append(one)
    found = reader.epsilons(contract)
    assert found is not None
    (line,) = found[1]
    assert line["permitted"] == 8.0
    assert 0 < line["spent"] < 8
    monkeypatch.setattr(reader._accounting, "_not_before", float("inf"))
    Ledger(home).append(one)
    later = reader.epsilons(contract)
    assert later == found, "as of entry 1"
    monkeypatch.setattr(reader._accounting, "_not_before", 0.0)
    newest = reader.epsilons(contract)
    assert newest is not None
    assert newest[0] == 2
    assert newest[1][0]["spent"] > line["spent"]


def test_what_takes_long_is_not_done_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(site_view.time, "monotonic", lambda: now[0])
    pace = site_view.Pace()
    with pace.timed():
        now[0] += 0.04
    assert pace.due, "what is quick may be done at any time"
    with pace.timed():
        now[0] += 1.0
    assert not pace.due
    now[0] += 19.0
    assert not pace.due
    now[0] += 1.1
    assert pace.due


def test_the_command_refuses_what_it_cannot_serve(
    client: Client, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"port {client.port}" in refused(7, "site", "console", home, "--port", client.port)
    assert "does not contain a site" in refused(8, "site", "console", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: home.stat().st_uid + 1)
    assert "belongs to another user" in refused(8, "site", "console", home, "--port", 0)
