"""Which outcomes the run scheduler takes as those of its current job."""

from __future__ import annotations

from pathlib import Path

from fedsight.coordinator.store import RunStore
from fedsight.deploy.server.job import JOB_FILE, read_outcome


def test_the_outcome_of_an_earlier_job_does_not_count(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    assert read_outcome(store, 7) is None
    store.write_json(JOB_FILE, {"number": 6, "state": "finished"})
    assert read_outcome(store, 7) is None
    store.write_json(JOB_FILE, {"number": 7, "state": "finished"})
    assert read_outcome(store, 7) == {"number": 7, "state": "finished"}
