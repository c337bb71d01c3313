"""A malicious coordinator fills a site's disk with what FLARE writes down about its orders."""

from __future__ import annotations

import json
import logging
import logging.config
from collections.abc import Iterator
from pathlib import Path

import pytest
from nvflare.fuel.sec.audit import Auditor

from fedsight.deploy.flare import records
from fedsight.deploy.flare.records import BoundedAuditor, BoundedFormatter
from fedsight.deploy.membership.kits import write_policies
from fedsight.deploy.membership.retention import Keep
from fedsight.deploy.processes import supervisor

LONG = "x\n" * (1 << 19)


@pytest.mark.parametrize("auditor", [Auditor, BoundedAuditor])
def test_an_order_takes_a_short_line_whoever_sends_it(
    tmp_path: Path, auditor: type[Auditor]
) -> None:
    path = tmp_path / "audit.log"
    made = auditor(str(path))
    for _ in range(3):
        made.add_event(LONG, LONG, LONG)
        made.add_job_event(LONG, LONG, task_name=LONG)
    made.add_event(None, 7, ref=[LONG])
    made.close()
    if auditor is Auditor:
        assert path.stat().st_size > 10 << 20
    else:
        assert path.stat().st_size < 10_000  # an unsafe character takes six
        assert len(path.read_text().splitlines()) == 7


def test_the_audit_log_keeps_the_newest_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as the owner's settings say."""
    (tmp_path / "kit").mkdir()
    Keep(audit_size=0.1).write(tmp_path / "kit")
    monkeypatch.setenv("FEDSIGHT_HOME", str(tmp_path))
    made = BoundedAuditor(str(tmp_path / "audit.log"))
    for number in range(3000):
        made.add_event("operator", f"order {number}")
    made.close()
    lines = (tmp_path / "audit.log").read_text().splitlines()
    assert 40_000 < (tmp_path / "audit.log").stat().st_size < 101_000
    assert [line.rpartition("[A:")[2] for line in lines] == [
        f"order {number}]" for number in range(3000 - len(lines), 3000)
    ]


@pytest.fixture
def flare_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The log files of a kit, set up as FLARE does."""
    write_policies(tmp_path, "site", Keep(log_size=0.1, logs=2))
    config = json.loads((tmp_path / "local" / "log_config.json").read_text())
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    config["root"] = config["loggers"].pop("root")
    logging.config.dictConfig(config)
    yield tmp_path / "log.txt"
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = before, level


def test_a_record_of_the_log_is_cut_off(flare_log: Path) -> None:
    """The files are rotated by their size, but one record could have any."""
    logging.getLogger("nvflare").error("no callback for request %s", LONG)
    assert records.MAX_RECORD <= len(flare_log.read_text()) <= records.MAX_RECORD + 1
    assert isinstance(logging.getLogger().handlers[0].formatter, BoundedFormatter)


def test_as_many_logs_are_kept_as_the_owners_settings_say(flare_log: Path) -> None:
    for number in range(1000):
        logging.getLogger("nvflare").error("line %d %s", number, "x" * 400)
    for name in ("log.txt", "error_log.txt"):
        files = sorted(flare_log.parent.glob(f"{name}*"))
        assert [path.name for path in files] == [name, f"{name}.1", f"{name}.2"]
        assert all(path.stat().st_size <= 100_000 for path in files)
        assert "line 999 " in files[0].read_text()


def test_what_a_process_prints_is_trimmed_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MAX_OUTPUT_BYTES", 100_000)
    monkeypatch.setattr(supervisor, "TRIM_INTERVAL", 0.0)
    path = tmp_path / "process.txt"
    made = supervisor.Supervisor("chatter", [], tmp_path, tmp_path)
    with path.open("ab") as output:
        for _ in range(40):
            output.write(b"line " + b"x" * 9_994 + b"\n")
            output.flush()
            made._trim_output()
    assert path.read_bytes().count(b"\n") <= 10
    assert set(path.read_text().splitlines()) == {"line " + "x" * 9_994}
