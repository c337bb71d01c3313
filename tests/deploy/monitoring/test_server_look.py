"""What is seen of a server: sites, runs and their ends, told once, whatever the files hold."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import authorities
import pytest
import tomli_w
from clocks import heard_ago

from fedsight.coordinator.folders import LOCK
from fedsight.core import locks
from fedsight.core.errors import StoreError
from fedsight.deploy.membership import hosts, presence
from fedsight.deploy.monitoring import server_look
from fedsight.deploy.monitoring.look import Look
from fedsight.deploy.monitoring.metrics import METRICS, exposition
from fedsight.deploy.monitoring.server_look import ServerLook
from fedsight.deploy.monitoring.settings import HookSettings

SITES = ("lyon", "oslo", "pisa")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    invitation = {"federation": "wards", "host": "localhost", "port": 1, "fingerprint": "f" * 64}
    (tmp_path / "invitation.toml").write_text(tomli_w.dumps(invitation))
    for name in ("admitted", "runs", "server/sites"):
        (tmp_path / name).mkdir(parents=True)
    for site in SITES:
        (tmp_path / "admitted" / f"{site}.toml").touch()
    return tmp_path


def looks_at(folder: Path, known: dict[str, Any] | None = None, lost: float = 0.0) -> ServerLook:
    return ServerLook(folder, HookSettings(lost_after=lost), time.time(), known or {})


def beat(folder: Path, site: str, state: presence.State = "", ago: float = 0.0) -> None:
    presence.record(folder / "server" / "sites", site, "process", None, state=state)
    if ago:
        heard_ago(folder / "server" / "sites" / f"{site}.json", ago)


def run(folder: Path, name: str, **live: Any) -> Path:
    path = folder / "runs" / name
    path.mkdir(exist_ok=True)
    (path / "run.json").write_text(json.dumps({"id": "1", "name": name, "rounds": 3}))
    (path / "live.json").write_text(json.dumps(live))
    return path


def line(path: Path, round: int, rejected: dict[str, str] | None = None) -> None:
    table = {"round": round, "replies": 2, "rejected": rejected or {}, "seconds": 1.5, "score": 0.5}
    with (path / "history.jsonl").open("a") as file:
        file.write(json.dumps(table) + "\n")


def told(look: Look) -> list[tuple[str, str]]:
    return [(one.event, one.subject) for one in look.happened if "certificate" not in one.event]


def held(path: Path) -> Any:
    return locks.hold(path / LOCK, 0, StoreError("held", ""))


def test_sites_by_state(folder: Path) -> None:
    beat(folder, "lyon")
    beat(folder, "oslo", "drained")
    beat(folder, "stranger")  # connected once, under a name that is no longer admitted
    look = looks_at(folder).look()
    assert look.values["sites"] == {"ready": 1, "drained": 1, "stopped": 0, "absent": 1}
    assert look.values["sites_expected"] == {"": 3}
    assert look.values["site_up"] == {"lyon": 1, "oslo": 1, "pisa": 0}


def test_a_site_is_lost_only_when_it_was_there_and_said_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_look, "LOOK_AGAIN", 0.0)
    seen = looks_at(folder)
    for site in SITES:
        beat(folder, site)
    assert told(seen.look()) == [("site_connected", site) for site in SITES]
    beat(folder, "lyon", ago=60)
    beat(folder, "oslo", "leaving", ago=60)
    beat(folder, "pisa", ago=presence.HEARTBEAT_TIMEOUT - 1)  # late, and not lost
    look = seen.look()
    assert told(look) == [("site_lost", "lyon"), ("site_left", "oslo")]
    (silent,) = (one.facts["silent_seconds"] for one in look.happened if "lost" in one.event)
    assert silent >= 60
    assert told(seen.look()) == []
    # After a restart of the process nothing is told again, and what happened meanwhile is.
    beat(folder, "pisa", ago=60)
    again = looks_at(folder, json.loads(json.dumps(seen.known)))
    assert told(again.look()) == [("site_lost", "pisa")]


def test_a_site_that_is_silent_for_a_moment_is_not_lost(folder: Path) -> None:
    seen = looks_at(folder, lost=30.0)
    beat(folder, "lyon")
    seen.look()
    beat(folder, "lyon", ago=20)
    assert told(seen.look()) == []
    beat(folder, "lyon", ago=86_400)  # the clock was set, and the next heartbeat is due
    assert told(seen.look()) == []


def test_a_run_begins_goes_on_and_ends(folder: Path) -> None:
    old = run(folder, "old")
    (old / "summary.json").write_text("{}")
    seen = looks_at(folder)
    assert told(seen.look()) == []  # what had ended before is not told
    path = run(folder, "lungs", round=2, rounds=3, waiting=["lyon"])
    with held(path):
        line(path, 1)
        line(path, 2, {"oslo": "contract.rounds: too many", "pisa": "it went away"})
        look = seen.look()
        assert told(look) == [
            ("run_began", "lungs"),
            ("round_ended", "lungs"),
            ("round_ended", "lungs"),
        ]
        assert look.values["runs"] == {"": 1}
        assert look.values["run_round"] == {"lungs": 2}
        assert look.values["run_rounds"] == {"lungs": 3}
        assert look.values["run_waiting"] == {"lungs": 1}
        assert look.values["round_seconds"] == {"lungs": 1.5}
        line(path, 3)
    (path / "live.json").unlink()
    (path / "summary.json").write_text(json.dumps({"score": 0.5}))
    look = seen.look()
    assert told(look) == [("round_ended", "lungs"), ("run_ended", "lungs")]
    assert look.happened[-1].facts == {"run": "lungs", "how": "finished", "rounds": 3}
    assert look.values["run_round"] == {}  # no series of a run that is over
    assert look.values["replies_total"] == {"accepted": 6, "rejected": 2}
    assert look.values["refusals_total"] == {"rounds": 1, "other": 1}
    assert look.values["runs_ended_total"]["finished"] == 1
    with held(path):  # resumed: its rounds are not counted again
        look = seen.look()
    assert told(look) == [("run_began", "lungs")]
    assert look.values["rounds_total"] == {"": 3}


def test_a_run_that_fails_says_why_also_after_a_restart(folder: Path) -> None:
    seen = looks_at(folder)
    path = run(folder, "lungs")
    with held(path):
        seen.look()
    ended = {"how": "failed", "at": 1.0, "cause": "a site\x1b[2J is missing", "cure": "start it"}
    (path / "live.json").write_text(json.dumps({"ended": ended}))
    look = looks_at(folder, seen.known).look()
    assert told(look) == [("run_failed", "lungs")]
    assert look.happened[-1].facts["cause"] == "a site\\u001b[2J is missing"


def test_a_run_whose_processes_are_gone_has_failed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = looks_at(folder)
    path = run(folder, "lungs")
    with held(path):
        seen.look()
    assert told(seen.look()) == []  # the next job may be about to begin
    run(folder, "made")  # nobody has begun to work at it
    monkeypatch.setattr(server_look, "UNDECIDED", 0.0)
    assert told(seen.look()) == [("run_failed", "lungs")]
    assert told(seen.look()) == []


def test_many_runs_and_sites_make_few_series(folder: Path) -> None:
    for number in range(250):
        (folder / "admitted" / f"site-{number:03}.toml").touch()
    files = [held(run(folder, f"run-{number:03}", round=1)) for number in range(30)]
    look = looks_at(folder).look()
    for file in files:
        file.close()
    assert look.values["runs"] == {"": 30}
    assert len(look.values["run_round"]) == server_look.MAX_RUNS
    assert len(look.values["site_up"]) == server_look.MAX_SITES
    assert look.values["sites_expected"] == {"": 253}


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", '{"sites": 3}', '{"sites": {"lyon": [1, "2"]}, "time": []}']
)
def test_no_file_that_is_broken_ends_it(folder: Path, text: str) -> None:
    path = run(folder, "lungs")
    for name in ("live.json", "run.json", "job.json"):
        (path / name).write_text(text)
    lines = ('{"round": "x", "replies": -1}', '{"seconds": NaN}', f'{{"seconds": 1{"0" * 400}}}')
    (path / "history.jsonl").write_text("\n".join((text, *lines, "")))
    (folder / "server" / "traffic.json").write_text(text)
    (folder / "server" / "sites" / "lyon.json").write_text(text)
    (folder / "server" / "process.pid").write_text(text)
    seen = looks_at(folder, {"runs": [], "up": []})
    with held(path):
        look = seen.look()
    assert "the server's process is not running" in look.reasons
    look.set("up_to_date_seconds", 1.0)
    look.set("healthy", 0.0)
    look.values["hooks_total"] = {}
    assert look.values.keys() == METRICS["server"].keys()  # each is there from the start
    assert exposition("server", look.values)


def test_health_knows_a_process_that_stands_still(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "server" / "process.pid").write_text(str(os.getpid()))
    traffic = folder / "server" / "traffic.json"
    sites = {"lyon": [10, 1], "oslo": [20, 2]}
    traffic.write_text(json.dumps({"run": "a", "time": time.time(), "sites": sites}))
    monkeypatch.setattr(server_look, "SETTLING", 0.0)
    look = looks_at(folder).look()
    assert look.values["bytes_total"] == {"received": 30, "sent": 3}
    assert look.reasons == ["the server's port does not accept connections"]
    traffic.write_text(json.dumps({"run": "a", "time": time.time() - 60, "sites": sites}))
    monkeypatch.setattr(server_look, "SILENCE", -1.0)
    assert looks_at(folder).look().reasons == [
        "the server's process has written nothing for a while"
    ]


def test_the_port_is_looked_for_where_the_server_listens(folder: Path) -> None:
    (folder / "server" / "process.pid").write_text(str(os.getpid()))
    for address in ("::1", "127.0.0.2"):
        with socket.create_server((address, 0), family=hosts.family(address)) as listener:
            port = listener.getsockname()[1]
            table = {"federation": "wards", "host": address, "port": port, "fingerprint": "f" * 64}
            (folder / "invitation.toml").write_text(tomli_w.dumps(table))
            assert looks_at(folder).look().reasons == []
        assert looks_at(folder).look().reasons == ["the server's port does not accept connections"]


def test_the_authority_is_told_of_a_year_before_also_where_its_folder_is_not(folder: Path) -> None:
    authorities.give(folder)
    startup = folder / "server" / "kit" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "rootCA.pem").write_bytes(authorities.certify("wards", "client", 300))
    shutil.rmtree(folder / "ca")
    look = looks_at(folder).look()
    (found,) = look.happened
    assert (found.event, found.subject) == ("certificate_near_end", "authority")
    assert found.facts["days_left"] in (299, 300)


def test_a_certificate_near_its_end_is_told(folder: Path) -> None:
    authorities.give(folder)
    short = authorities.certify("wards", "client", 0.9)  # days
    (folder / "ca" / "rootCA.pem").write_bytes(short)
    look = looks_at(folder).look()
    (found,) = look.happened
    assert (found.event, found.subject) == ("certificate_near_end", "authority")
    assert found.facts["days_left"] == 0
    assert 0 < look.values["certificate_seconds"]["authority"] < 86400
