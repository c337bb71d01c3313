"""What is checked and cleaned up in a kit's folder at every start."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from nvflare.apis.job_def import RunStatus

from fedsight.core.errors import DeployError
from fedsight.deploy.membership import kits
from fedsight.deploy.membership.retention import Keep

KEEP_JOBS = Keep().job_days * 86400


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused_with_its_mode(tmp_path: Path, mode: int) -> None:
    (tmp_path / "startup").mkdir()
    key = tmp_path / "startup" / "client.key"
    key.touch(0o600)
    kits.check_keys_private(tmp_path)
    key.chmod(mode)
    with pytest.raises(DeployError, match=rf"client\.key has the mode {mode:04o}") as caught:
        kits.check_keys_private(tmp_path)
    assert "chmod 600 client.key" in caught.value.cure


def test_only_folders_of_old_jobs_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = "0b2f8a7e-1111-4222-8333-0123456789ab", "1b2f8a7e-1111-4222-8333-0123456789ab"
    for name in (old, "startup", "local", "transfer"):
        (tmp_path / name).mkdir()
    (tmp_path / old / "log.txt").touch()
    kits.clear_old_jobs(tmp_path)
    assert (tmp_path / old).exists()
    now = kits.time.time()
    monkeypatch.setattr(kits.time, "time", lambda: now + KEEP_JOBS + 60)
    (tmp_path / new).mkdir()
    os.utime(tmp_path / new, (now + KEEP_JOBS, now + KEEP_JOBS))
    kits.clear_old_jobs(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {new, "startup", "local", "transfer"}


@pytest.mark.parametrize("why", ["age", "number"])
def test_a_server_keeps_the_record_of_a_job_that_has_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """FLARE writes it only when the job's status changes, and cannot end a job without it."""
    names = {
        status: f"{number:x}b2f8a7e-1111-4222-8333-0123456789ab"
        for number, status in enumerate((*RunStatus, "", "{"))
    }
    for status, name in names.items():
        for home in (tmp_path, tmp_path / "jobs"):
            (home / name).mkdir(parents=True)
        meta = json.dumps({"status": status}) if len(status) > 1 else status
        (tmp_path / "jobs" / name / "meta").write_text(meta)
    if why == "age":
        later = kits.time.time() + KEEP_JOBS + 60
        monkeypatch.setattr(kits.time, "time", lambda: later)
    else:
        Keep(jobs=0).write(tmp_path)
    kits.clear_old_jobs(tmp_path)
    going = {RunStatus.SUBMITTED, RunStatus.APPROVED, RunStatus.DISPATCHED, RunStatus.RUNNING}
    for home in (tmp_path, tmp_path / "jobs"):
        kept = {path.name for path in home.iterdir()} - {"jobs", "keep.json"}
        assert kept == {names[status] for status in going}


def test_a_job_that_goes_on_for_weeks_keeps_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, ended = "0b2f8a7e-1111-4222-8333-0123456789ab", "1b2f8a7e-1111-4222-8333-0123456789ab"
    for home in (tmp_path, tmp_path / "jobs"):
        for name in (going, ended):
            (home / name).mkdir(parents=True)
            (home / name / "log.txt").touch()
    now = kits.time.time()
    later = now + KEEP_JOBS + 60
    monkeypatch.setattr(kits.time, "time", lambda: later)
    for home in (tmp_path, tmp_path / "jobs"):
        os.utime(home / going / "log.txt", (later, later))
    kits.clear_old_jobs(tmp_path)
    for home in (tmp_path, tmp_path / "jobs"):
        assert (home / going).exists()
        assert not (home / ended).exists()
