"""What keeps a run from going on is told once, with its end, by what can be seen of processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import authorities
import pytest
from clocks import heard_ago
from processes import wait_until

from fedsight.coordinator.live import LIVE
from fedsight.core.errors import DeployError
from fedsight.core.package import RUNNING, Package, installed
from fedsight.core.process_facts import is_suspended
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.federation import FederationFolder, Invitation
from fedsight.deploy.processes import supervisor
from fedsight.deploy.server import server
from fedsight.deploy.server.signs import Signs

SILENT = (
    "site 'a' has not been heard from for 8 seconds: its machine, its network or its FedSight may "
    "be down. It is waited for"
)
SUSPENDED = "site 'a' is connected, but one of its processes is suspended (SIGSTOP)"


@pytest.fixture
def child() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process.pid
        process.kill()


class Federation:
    """A server's folder, and what is told of it."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "server"
        (self.home / "sites").mkdir(parents=True)
        self.run = folder / "runs" / "first"
        self.run.mkdir(parents=True)
        self.said: list[str] = []
        self.folder = FederationFolder(folder, Invitation("wards", "localhost", 8002, "SHA256:00"))
        self.signs = Signs(self.folder, self.run, self.said.append)

    def serve(self, process: int) -> None:
        (self.home / supervisor.PROCESS_FILE).write_text(str(process))

    def beat(self, state: presence.State = "", package: str = "") -> None:
        presence.record(self.home / "sites", "a", "process", None, package, state)

    def silence(self) -> None:
        heard_ago(self.home / "sites" / "a.json", presence.HEARTBEAT_TIMEOUT + 1)

    def told(self, began: float | None = None) -> list[str]:
        """What is new, of several looks."""
        self.said.clear()
        for _ in range(3):
            self.signs.look(["a"], began)
        return [*self.said]


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


@pytest.fixture
def served(federation: Federation) -> Iterator[Federation]:
    with supervisor.exclusive(federation.home, "the server"):
        federation.serve(os.getpid())
        yield federation


def suspend(process: int) -> None:
    os.kill(process, signal.SIGSTOP)
    wait_until(lambda: is_suspended(process))


def test_a_server_that_is_not_there_is_told_and_no_site_is_blamed(federation: Federation) -> None:
    federation.beat()
    federation.silence()
    assert federation.told() == ["the server is not running: fedsight server start"]
    with ExitStack() as stack:
        stack.enter_context(supervisor.exclusive(federation.home, "the server"))
        assert federation.told() == []  # it is starting
        federation.serve(os.getpid())
        assert federation.told() == ["the server runs again"], "the site may not have come yet"
        federation.beat()
        assert federation.told() == []
    assert federation.told() == ["the server is not running: fedsight server start"]


def test_a_server_whose_certificate_has_ended_needs_another_one(federation: Federation) -> None:
    startup = federation.home / "kit" / "startup"
    startup.mkdir(parents=True)
    certificate = authorities.certify("localhost", "server", -1, begins=-9)
    (startup / "server.crt").write_bytes(certificate)
    ended = (datetime.now(UTC) - timedelta(1)).date()
    assert federation.told() == [
        f"the server is not running, and its certificate ended on {ended}: fedsight federation "
        "renew, then fedsight server start"
    ]
    with pytest.raises(DeployError, match=f"'localhost' ended on {ended}") as caught:
        server.start(federation.folder, None, print)
    assert "fedsight federation renew" in caught.value.cure


def test_other_code_is_told_before_anybody_is_asked(served: Federation) -> None:
    ours, other = installed(), Package("0.0.8", "ab" * 32)
    served.beat(package=str(other))
    assert served.told() == [
        f"site 'a' runs FedSight {other}, and this machine {ours}: it can take part in no run "
        "until both are the same"
    ]
    served.beat(package=str(ours))
    assert served.told() == ["site 'a' is there again"]
    for _ in range(2):  # the second time as well
        (served.home / RUNNING).write_text(json.dumps(other.table()))
        assert served.told() == [
            f"the server was started with FedSight {other}, and this machine has {ours}: start the "
            "server again"
        ]
        (served.home / RUNNING).write_text(json.dumps(ours.table()))
        assert served.told() == []


def test_a_revoked_site_is_not_called_silent(served: Federation) -> None:
    served.beat()
    (served.folder.folder / "admitted").mkdir()
    (served.folder.folder / "admitted" / "a.toml").touch()
    served.folder.revoke("a", "left the study")
    assert served.told() == ["site 'a' was revoked: nothing counts from it any more"]
    served.silence()
    assert served.told() == []


def test_a_server_that_is_suspended_is_told(served: Federation, child: int) -> None:
    served.serve(child)
    served.beat()
    assert served.told() == []
    suspend(child)
    served.silence()
    assert served.told() == ["a process of the server is suspended (SIGSTOP): kill -CONT"]
    os.kill(child, signal.SIGCONT)
    wait_until(lambda: not is_suspended(child))
    assert served.told() == ["the server runs again"], "it has heard nobody meanwhile"


def test_a_server_that_is_restarted_is_told(served: Federation) -> None:
    served.serve(999_999_999)
    assert served.told() == ["the server's process has ended and is being restarted"]
    served.serve(os.getpid())
    assert served.told() == ["the server runs again"]


def test_a_silent_site_is_told_with_its_return(served: Federation) -> None:
    served.beat()
    assert served.told() == []
    served.silence()
    assert served.told() == [SILENT]
    served.beat()
    assert served.told() == ["site 'a' is there again"]
    served.beat("stopped")
    assert served.told() == [SUSPENDED]
    served.beat()
    assert served.told() == ["site 'a' is there again"]
    served.beat("leaving")  # the round itself tells what becomes of it
    served.silence()
    assert served.told() == []


def test_a_site_that_is_late_is_not_called_silent(served: Federation) -> None:
    served.beat()
    heard_ago(served.home / "sites" / "a.json", presence.HEARTBEAT_TIMEOUT - 2)
    assert served.told() == []


def test_a_coordinator_that_is_suspended_is_told(served: Federation, child: int) -> None:
    served.beat()
    (served.run / LIVE).write_text(json.dumps({"process": child, "began": 100.0}))
    suspend(child)
    assert served.told(200.0) == [], "the process of an earlier job"
    assert served.told(50.0) == [
        f"the coordinator's process of this run ({child}) is suspended (SIGSTOP)"
    ]
    os.kill(child, signal.SIGCONT)
    wait_until(lambda: not is_suspended(child))
    assert served.told(50.0) == ["the coordinator's process goes on"]
    for broken in ("", "[]", '{"process": "x", "began": 1}', '{"process": true}'):
        (served.run / LIVE).write_text(broken)
        assert served.told(50.0) == []
