"""`fedsight health`: what is wrong with the processes of a server or a site, by files alone.

Real ones are asked in `tests/faults/test_faults_absent.py`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import cli, done
from processes import wait_until

from fedsight.core import disk
from fedsight.core.errors import DeployError
from fedsight.core.process_facts import is_suspended
from fedsight.deploy import health
from fedsight.deploy.membership import presence
from fedsight.deploy.processes import supervisor
from fedsight.deploy.site import state


@pytest.fixture
def process() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        yield child.pid
        child.kill()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The folder of a site that was never started."""
    home = tmp_path / "lyon"
    home.mkdir()
    (home / "identity.toml").touch()
    return home


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    """The folder of a federation whose server was never started."""
    folder = tmp_path / "hospitals"
    for part in ("admitted", "server"):
        (folder / part).mkdir(parents=True)
    (folder / "invitation.toml").touch()
    return folder


def fault(folder: Path, connected: bool = False) -> str:
    (found,) = health.look(folder, connected)
    return str(found.fault)


def test_a_site_is_well_while_its_processes_are(site: Path, process: int) -> None:
    (site / "process.pid").write_text(str(process))
    assert fault(site) == "not running", "a number left over from before"
    with supervisor.exclusive(site, "the site"):
        assert fault(site) == "", "it opens its images, and must not be killed for that"
        assert fault(site, connected=True) == "it is still starting"
        (site / "process.pid").write_text("999999999")
        assert fault(site) == "its process has ended and is being restarted"
        (site / "process.pid").write_text(str(process))
        assert fault(site) == ""
        with state.at_work(site, process, "training"):
            os.kill(process, signal.SIGSTOP)
            wait_until(lambda: is_suspended(process))
            assert fault(site) == "its process is suspended"
        os.kill(process, signal.SIGCONT)
        wait_until(lambda: fault(site) == "")
    assert fault(site) == "not running"


def test_a_site_may_be_well_without_a_server(site: Path, process: int) -> None:
    with supervisor.exclusive(site, "the site"):
        (site / "process.pid").write_text(str(process))
        assert fault(site) == ""
        assert fault(site, connected=True) == "the server does not answer"
        presence.record_answer(site)
        assert fault(site, connected=True) == ""


def test_a_stopped_trainer_is_a_fault(site: Path, process: int) -> None:
    with supervisor.exclusive(site, "the site"), state.at_work(site, process, "training"):
        (site / "process.pid").write_text(str(os.getpid()))
        os.kill(process, signal.SIGSTOP)
        wait_until(lambda: is_suspended(process))
        assert fault(site) == "one of its processes is suspended"


def test_a_server_that_does_nothing_is_not_well(federation: Path, process: int) -> None:
    home = federation / "server"
    assert fault(federation) == "not running"
    with supervisor.exclusive(home, "the server"):
        assert fault(federation) == "", "it has not started its process yet"
        (home / "process.pid").write_text(str(process))
        assert fault(federation) == "its process does not respond"
        (home / presence.TRAFFIC_FILE).touch()
        assert fault(federation) == ""
        before = time.time() - health.SILENCE - 1
        os.utime(home / presence.TRAFFIC_FILE, (before, before))
        assert fault(federation) == "its process does not respond"


def test_a_full_disk_ends_no_server(
    federation: Path, process: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart would not free it, and would cost the run in progress its round."""
    home = federation / "server"
    with supervisor.exclusive(home, "the server"):
        (home / "process.pid").write_text(str(process))
        assert fault(federation) == "its process does not respond"
        monkeypatch.setattr(disk, "FULL", 1 << 62)
        assert fault(federation) == ""
        assert fault(federation, connected=True) == "its disk is full"


def test_all_that_is_in_a_folder_has_to_be_well(
    tmp_path: Path, site: Path, federation: Path, process: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeployError, match="neither a federation nor a site"):
        health.look(tmp_path / "nothing", False)
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "lost+found")
    (tmp_path / "lost+found" / "admitted").mkdir(parents=True)
    (tmp_path / "lost+found" / "identity.toml").touch()
    with supervisor.exclusive(site, "the site"):
        (site / "process.pid").write_text(str(process))
        assert done("health", site).out == "site lyon: works\n"
        both = cli("health", tmp_path)
        assert both.code == 1
        assert both.out == "server of the federation hospitals: not running\nsite lyon: works\n"
        table = json.loads(cli("health", tmp_path, "--json").out)
    assert table == [
        {"what": "server of the federation hospitals", "fault": "not running"},
        {"what": "site lyon", "fault": None},
    ]
