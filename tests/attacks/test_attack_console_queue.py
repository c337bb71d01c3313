"""Runs from somebody else, with a queue beside them: commands, for a console that shows the runs.

What waits in the console's queue is in a file in the folder of the runs, and the next console
starts it. In a folder from elsewhere the file is somebody else's, and so are the commands:
`fedsight run` with a plug-in is any code. The name of an entry is that of a file, too. To look at
runs must not run anything. Ours takes only what the same user has put there, which a secret of
theirs shows.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import write_config

from fedsight.console import queue
from fedsight.console.queue import FILE, KEY, PLACE, Queue
from fedsight.core.errors import StoreError
from fedsight.data.fetch.cache import VARIABLE


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's, with a secret."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "own"))
    return tmp_path / "own"


def theirs(tmp_path: Path, said: Path) -> Path:
    """A folder of runs in whose queue a command waits, with a plug-in that writes `said`."""
    code = tmp_path / "evil.py"
    code.write_text(f"open({str(said)!r}, 'w').write('here')\n")
    config = write_config(tmp_path, "evil")
    root = tmp_path / "runs"
    (root / PLACE).mkdir(parents=True)
    arguments = ["run", "--plugin", str(code), "--out", str(root / "x"), "--", str(config)]
    job = {"id": "a", "arguments": arguments, "folder": "x", "state": "waiting"}
    table = {"jobs": [job | {"code": None, "said": ""}], "mark": "0" * 64}
    (root / PLACE / FILE).write_text(json.dumps(table))
    return root


def shown(root: Path, until: float) -> list[Any]:
    """A console that is open for a while; what is in its queue when it begins."""
    console = Queue(root)
    jobs = console.jobs()
    console.start()
    end = time.monotonic() + until
    while time.monotonic() < end and any(job.state != "ended" for job in console.jobs()):
        time.sleep(0.05)
    console.close()
    return jobs


def test_the_command_runs_where_any_queue_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    monkeypatch.setattr(queue, "_mark", lambda jobs, path, key: "0" * 64)
    assert len(shown(theirs(tmp_path, said), 60.0)) == 1
    monkeypatch.undo()
    assert said.read_text() == "here"


def test_ours_starts_nothing(tmp_path: Path) -> None:
    said = tmp_path / "said"
    root = theirs(tmp_path, said)
    assert shown(root, 0.0) == []
    assert not said.exists()
    assert not (root / "x").exists()


def test_a_queue_of_the_users_own_holds_in_its_folder_alone(
    tmp_path: Path, own_folder: Path
) -> None:
    root, other = tmp_path / "mine", tmp_path / "other"
    first = Queue(root)
    job = first.begin("run", ["--example", "fashion"], "fashion")
    first.close()
    assert (own_folder / KEY).stat().st_mode & 0o077 == 0
    (other / PLACE).mkdir(parents=True)
    (other / PLACE / FILE).write_bytes((root / PLACE / FILE).read_bytes())
    for folder, jobs in ((root, [job]), (other, [])):
        console = Queue(folder)
        assert console.jobs() == jobs
        console.close()


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / PLACE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is a link"):
        Queue(tmp_path / "runs")
