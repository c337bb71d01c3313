"""The monitoring process: off unless wanted; a look that fails ends nothing and names no file."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import authorities
import pytest

from fedsight.core.errors import DeployError
from fedsight.deploy.monitoring import process
from fedsight.deploy.monitoring.endpoint import Published
from fedsight.deploy.monitoring.keeper import kept
from fedsight.deploy.monitoring.lines import output
from fedsight.deploy.monitoring.process import Job, Monitor
from fedsight.deploy.monitoring.settings import HookSettings, LogFormat, MonitoringSettings


def job(home: Path, log: LogFormat = "json") -> Job:
    party = {"site": "lyon", "federation": "wards"}
    return Job("site", str(home), party, HookSettings().table(), log, time.time())


def test_nothing_is_started_unless_somebody_wants_to_know(tmp_path: Path) -> None:
    said: list[str] = []
    out = output("text", said.append, {}, tmp_path)
    with kept(job(tmp_path), MonitoringSettings(), HookSettings(), out) as keeper:
        assert keeper is None
    hooks = HookSettings(url="https://alerts.example.org/")
    with kept(job(tmp_path), MonitoringSettings(), hooks, out) as keeper:
        assert keeper is not None
    assert said == []


def test_a_port_that_is_taken_is_named_with_the_cure(tmp_path: Path) -> None:
    out = output("text", print, {}, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monitoring = MonitoringSettings(port=port)
        with (
            pytest.raises(DeployError, match=f"127.0.0.1:{port}: Address already in use") as error,
            kept(job(tmp_path), monitoring, HookSettings(), out),
        ):
            pass
    assert "--metrics" in error.value.cure


def test_a_look_that_fails_is_said_once_and_names_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = Published()
    monitor = Monitor(job(tmp_path), published)
    for _ in range(3):
        monitor.fault(OSError(5, "input/output error", "/srv/films/Mustermann.png"))
    (line,) = capsys.readouterr().out.splitlines()
    assert "Mustermann" not in line
    assert json.loads(line)["event"] == "monitor_failed"
    assert published.reasons == ["monitoring has failed (OSError)"]
    details = tmp_path / "monitor.txt"
    assert "Mustermann" in details.read_text(encoding="utf-8")
    assert details.stat().st_mode & 0o077 == 0
    monitor.look()
    assert published.metrics
    assert published.reasons == ["the server does not answer", "the contract cannot be read"]


@pytest.mark.parametrize("text", ["", "[]", '{"seen": 3, "told": []}', '{"told": {"a": "b"}}'])
def test_what_it_remembers_may_be_broken(tmp_path: Path, text: str) -> None:
    (tmp_path / process.KNOWN).write_text(text)
    Monitor(job(tmp_path), Published()).look()
    assert json.loads((tmp_path / process.KNOWN).read_text())["told"] == {}


def test_what_happened_while_nobody_looked_for_long_is_not_told_as_new(tmp_path: Path) -> None:
    Monitor(job(tmp_path), Published()).look()
    path = tmp_path / process.KNOWN
    known = json.loads(path.read_text())
    known["seen"] = {"up": True, "received": ["a", "b"]}
    for at, expected in ((time.time(), ["a", "b"]), (time.time() - 2 * process.GAP, None)):
        path.write_text(json.dumps({**known, "at": at}))
        received = Monitor(job(tmp_path), Published())._look._received  # type: ignore[union-attr]
        assert (received and sorted(received)) == expected


def test_an_event_that_lasts_has_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authorities.give_kit(tmp_path, "ward", days=0.9)
    monitor = Monitor(job(tmp_path), Published())
    for _ in range(3):
        monitor.look()
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (line["event"], line["days_left"]) == ("certificate_near_end", 0)
    assert line["message"] == "a certificate is near its end"
