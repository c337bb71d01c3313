"""What the pages show, in both languages, and what their buttons do."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from consoles import Client, served

from fedsight.coordinator.folders import LOCK
from fedsight.coordinator.live import LIVE
from fedsight.core import locks
from fedsight.core.errors import StoreError
from fedsight.runs.listing import look

Make = Callable[..., Path]
TRAINING = {
    "phase": "training", "round": 3, "rounds": 4, "asked": 3, "answered": 1,
    "refused": {"site-01": "site-01 sent an update that is not finite"}, "waiting": ["site-02"],
}  # fmt: skip


def held(folder: Path) -> Any:
    return locks.hold(folder / LOCK, 0.0, StoreError("held"))


def test_a_round_in_progress_shows_who_has_answered_who_is_refused_and_why(
    client: Client, make_run: Make
) -> None:
    folder = make_run("first")
    (folder / LIVE).write_text(json.dumps(TRAINING))
    with held(folder):
        page = client.get("/run/first").text
    assert "running" in page
    assert "Round 3" in page
    assert "1 of 3 sites have answered" in page
    assert "not finite" in page
    assert "site-02" in page
    assert f'action="{client.console.base}/do/pause/first"' in page
    assert "<svg" in page  # the curves
    assert "52.0" in client.get("/").text  # the last round's figure


def test_pausing_and_stopping_reach_the_run(client: Client, make_run: Make) -> None:
    folder = make_run("series/seed-0")
    (folder / LIVE).write_text(json.dumps(TRAINING))
    with held(folder):
        answer = client.post("/do/pause/series/seed-0")
        assert answer.code == 303
        assert answer.headers["location"].endswith("/run/series/seed-0")
        assert look(folder).asked == "pause"
        assert "/do/pause/" not in client.get("/run/series/seed-0").text
        client.post("/do/stop/series/seed-0")
        assert look(folder).asked == "stop"
    refused = client.post("/do/stop/series/seed-0")
    assert refused.code == 409
    assert "is not running" in refused.text


def test_a_run_that_failed_says_why_and_what_to_do(client: Client, make_run: Make) -> None:
    folder = make_run("first")
    ended = {"how": "failed", "cause": "the disk is full", "cure": "free some space"}
    (folder / LIVE).write_text(json.dumps({"ended": ended}))
    page = client.get("/run/first").text
    assert "the disk is full" in page
    assert "free some space" in page
    assert "/do/resume/first" in page


def test_a_run_before_its_first_round_or_with_a_torn_line_has_a_page(
    client: Client, make_run: Make
) -> None:
    folder = make_run("first", rounds=0)
    assert client.get("/run/first").code == 200
    (folder / "history.jsonl").write_text('{"round": 1, "sco')
    assert client.get("/run/first").code == 200
    assert client.get("/report/first").code == 409  # there is nothing to report yet, it says


@pytest.mark.parametrize(
    "live",
    [
        {"asked": 3}, {"asked": "three", "answered": 1}, {"refused": []}, {"waiting": "all"},
        {"phase": "baselines", "baselines": [1]}, {"phase": "baselines", "baselines": 7},
    ],
)  # fmt: skip
def test_a_notice_that_no_run_writes_is_not_shown(
    client: Client, make_run: Make, live: dict[str, Any]
) -> None:
    folder = make_run("first")
    (folder / LIVE).write_text(json.dumps(live))
    with held(folder):
        assert client.get("/run/first").code == 200


def test_names_that_are_not_unicode_have_pages_too(client: Client, make_run: Make) -> None:
    make_run("first", algorithm="a\ud800b")
    odd = os.fsdecode(b"odd-\xff")
    make_run(odd, name="odd")
    assert client.get("/run/first").code == 200
    page = client.get("/").text
    assert "odd-" in page
    assert client.get("/run/odd-%3F").code == 200


def test_the_browsers_language_is_followed_and_can_be_changed(
    client: Client, make_run: Make
) -> None:
    make_run("first")
    english = client.get("/", accept_language="fr,en;q=0.5").text
    chinese = client.get("/", accept_language="zh-CN,en;q=0.5").text
    assert 'lang="en"' in english
    assert 'lang="zh-Hans"' in chinese
    assert "Main figure" in english
    assert "Main figure" not in chinese
    choice = client.post("/language/zh").headers["set-cookie"].partition(";")[0]
    client.cookie += f"; {choice}"
    assert 'lang="zh-Hans"' in client.get("/", accept_language="en").text


def test_a_page_that_is_not_there_says_so(client: Client) -> None:
    for path in ("/run/nothing", "/report/nothing", "/sites"):
        answer = client.get(path)
        assert answer.code == 404
        assert "no such page" in answer.text


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({}, "expected either an example or a file"),
        ({"example": "fashion", "config": "x.toml"}, "expected either an example or a file"),
        ({"example": "nothing"}, "no example"),
        ({"config": "nowhere.toml"}, "no file"),
        ({"config": "--help"}, "no file"),
        ({"example": "fashion", "changes": "--out=/etc"}, "is not a setting"),
        ({"example": "fashion", "changes": "train.lr"}, "is not a setting"),
        ({"example": "fashion", "changes": "name=a\0b"}, "is not a setting"),
        ({"config": "x" * 5000}, "no file"),
        ({"config": "a\0b"}, "no file"),
        ({str(number): "x" for number in range(30)}, "expected either an example or a file"),
        ({"example": "fashion", "command": "resume"}, "does not train"),
    ],
)
def test_a_form_that_cannot_be_run_says_what_is_wrong_and_keeps_what_was_typed(
    client: Client, form: dict[str, str], said: str
) -> None:
    answer = client.post("/new", form)
    assert answer.code == 422
    assert said in answer.text
    assert form.get("changes", "").replace("\0", "\ufffd") in answer.text.replace("\0", "\ufffd")
    assert client.console.queue.jobs() == []


def test_listeners_hear_of_what_has_changed(client: Client, make_run: Make) -> None:
    folder = make_run("first")
    make_run("second")
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    connection.request("GET", f"{client.console.base}/events", headers={"Cookie": client.cookie})
    answer = connection.getresponse()
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.readline() == b"retry: 2000\n"
    assert answer.readline() == b"\n"
    assert answer.readline() == b'data: ["*"]\n'  # look at everything once
    assert answer.readline() == b"\n"
    with (folder / "history.jsonl").open("a") as file:
        file.write('{"round": 3, "score": 0.9}\n')
    assert answer.readline() == b'data: ["first"]\n'
    connection.close()


def test_the_sites_of_a_federation_are_shown_with_what_they_declare(tmp_path: Path) -> None:
    from fedsight.deploy.membership import presence
    from fedsight.deploy.membership.federation import FederationFolder

    federation = FederationFolder.create(tmp_path / "wards", "localhost", 8010)
    declared = {"source": "<b>scans</b>", "train": 1234, "test": 56, "classes": ["a", "b"]}
    presence.record(federation.presences, "ward-1", "p", declared)
    presence.record(federation.presences, "ward-2", "p", {"train": "many", "classes": 7})
    federation.runs.mkdir(exist_ok=True)
    with served(federation.runs, federation) as client:
        client.enter()
        page = client.get("/sites").text
        assert "1,234" in page
        assert "&lt;b&gt;scans" in page
        assert page.count(">connected<") == 2
        assert "the server is not running" in page
        refused = client.post("/new", {"example": "fashion", "command": "compare"})
        assert refused.code == 422
        assert "stay at their sites" in refused.text
