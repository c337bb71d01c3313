"""What a site says of itself: drained by its owner, about to stop, its trainer at a standstill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import federations
import pytest
import site_services
from command_line import done
from processes import wait_until
from site_services import FaultyLink, Places

from fedsight.core.process_facts import is_suspended
from fedsight.deploy.membership import presence
from fedsight.deploy.server.joining import propose
from fedsight.deploy.site import state

DRAINED = "its owner has drained this site: it takes part in nothing new"


@pytest.fixture
def south(places: Places) -> Iterator[Path]:
    home = places.root / "south"
    (home / "identity.toml").touch()  # what makes it a site's folder
    yield home
    state.drain(home, False)
    (home / "identity.toml").unlink()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def test_a_process_that_is_held_by_a_signal_is_noticed(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    assert state.state_of(tmp_path) == ""
    with state.at_work(tmp_path, child.pid, "training in round 3"):
        (found,) = state.works(tmp_path)
        assert (found.process, found.doing) == (child.pid, "training in round 3")
        assert state.state_of(tmp_path) == ""
        os.kill(child.pid, signal.SIGSTOP)
        wait_until(lambda: is_suspended(child.pid))
        assert state.state_of(tmp_path) == "stopped"
        os.kill(child.pid, signal.SIGCONT)
        wait_until(lambda: state.state_of(tmp_path) == "")
    assert state.works(tmp_path) == []


def test_jobs_at_the_same_time_each_have_a_notice(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    with state.at_work(tmp_path, os.getpid(), "training in round 3"):
        with state.at_work(tmp_path, child.pid, "measuring round 1"):
            doing = [one.doing for one in state.works(tmp_path)]
            assert doing == ["training in round 3", "measuring round 1"]
            os.kill(child.pid, signal.SIGSTOP)
            wait_until(lambda: state.state_of(tmp_path) == "stopped")
        assert [one.doing for one in state.works(tmp_path)] == ["training in round 3"]
        assert state.state_of(tmp_path) == ""
    assert state.works(tmp_path) == []


def test_a_notice_that_is_left_over_reports_no_other_process(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    """The site's job was killed, and another process has got the number of its trainer."""
    with state.at_work(tmp_path, child.pid, "training in round 3"):
        (notice,) = (tmp_path / state.WORK).iterdir()
        before = json.loads(notice.read_bytes())
    notice.write_text(json.dumps({**before, "started": before["started"] - 1}))
    os.kill(child.pid, signal.SIGSTOP)
    wait_until(lambda: is_suspended(child.pid))
    assert (state.works(tmp_path), state.state_of(tmp_path)) == ([], "")
    notice.write_text(json.dumps(before))
    assert state.state_of(tmp_path) == "stopped"
    state.arrive(tmp_path)
    assert state.works(tmp_path) == []


def test_a_site_that_leaves_is_not_waited_for(tmp_path: Path) -> None:
    state.drain(tmp_path, True)
    assert state.state_of(tmp_path) == "drained"
    state.leave(tmp_path)
    assert state.state_of(tmp_path) == "leaving"
    state.arrive(tmp_path)
    assert state.state_of(tmp_path) == "drained", "that holds over restarts"
    told = {}
    for said in ("", "drained", "stopped", "leaving"):
        heartbeat = presence.Heartbeat("token", "p", None, "0.1.0 (abc)", said).encode()  # type: ignore[arg-type]
        found = presence.Heartbeat.decode(heartbeat)
        presence.record(tmp_path, "a", "p", None, found.package, found.state)
        one = presence.presence(tmp_path, "a")
        assert one is not None
        told[said] = (one.alive, one.ready)
    assert told == {
        "": (True, True),
        "drained": (True, False),
        "stopped": (True, True),
        "leaving": (False, False),
    }
    unknown = json.dumps({"token": "t", "process": "p", "state": "[asleep]"})
    assert presence.Heartbeat.decode(unknown).state == ""


def test_a_drained_site_takes_part_in_no_new_run(
    places: Places, site_images: Path, south: Path
) -> None:
    program = site_services.program(site_images, rounds={"quorum": 2})
    assert "has nothing to finish" in done("site", "drain", south).out
    found, absent, refused, _ = propose(program, "drained1", places.sit(), {})
    assert set(found) == {"north", "west"}
    assert absent == {"south": f"site 'south': {DRAINED}"}
    assert refused == {}  # it may come back
    assert json.loads(done("site", "drain", south, "--end", "--json").out) == {
        "drained": False,
        "doing": None,
    }
    assert propose(program, "drained1", places.sit(), {}).absent == {}


@pytest.mark.parametrize("masked", [False, True])
def test_a_site_that_is_drained_finishes_its_round(
    places: Places, site_images: Path, south: Path, masked: bool
) -> None:
    secure = {"name": "secagg", "corrupt": 0.0} if masked else {}
    rounds = {"rounds": 3, "quorum": 2, **({"weighting": "uniform"} if masked else {})}
    program = site_services.program(site_images, rounds=rounds, secure=secure)

    def alter(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[str, bytes]:
        if kind == ("share" if masked else "train"):  # in the first round
            state.drain(south, True)
        return text, data

    federation, link = places.meet(program)
    diary = federations.Diary()
    faulty = FaultyLink(link, "south", alter)
    site_services.learn(federation, faulty, diary, name=places.run)
    assert diary.lines[0]["sites"] == ["north", "south", "west"]
    for line in diary.lines[1:]:
        assert line["sites"] == ["north", "west"]
        assert DRAINED in line["rejected"]["south"]
    measured = [kind for site, kind in faulty.asked if site == "south" and kind == "measure"]
    assert measured, "figures of what it helped to train are given"
    assert all("not_measured" not in line for line in diary.lines)
