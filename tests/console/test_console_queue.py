"""What waits is started one after the other, and survives the console."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import write_config
from consoles import served
from hypothesis import given
from hypothesis import strategies as st

from fedsight.console.queue import FILE, PLACE, Queue, _mark, _read
from fedsight.core.errors import StoreError
from fedsight.runs.listing import look


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    """A queue that starts nothing."""
    queue = Queue(tmp_path)
    yield queue
    queue.close()


def until(happened: Callable[[], bool]) -> None:
    """Wait; a test that waits for ever is ended by the suite's own limit."""
    while not happened():
        time.sleep(0.05)


def test_runs_take_turns_and_one_that_cannot_begin_shows_its_last_words(tmp_path: Path) -> None:
    good, bad = write_config(tmp_path), write_config(tmp_path, "bad", train={"lr": -1.0})
    root = tmp_path / "runs"
    root.mkdir()
    with served(root) as client:
        client.enter()
        for config in (bad, good, good):
            assert client.post("/new", {"config": str(config)}).code == 303
        jobs = client.console.queue.jobs()
        assert [job.folder for job in jobs] == ["bad", "tiny", "tiny-2"]
        assert client.post(f"/withdraw/{jobs[2].id}").code == 303
        assert not (root / "tiny-2").exists()
        at_once: set[int] = set()

        def over() -> bool:
            jobs = client.console.queue.jobs()
            at_once.add(sum(job.state == "running" for job in jobs))
            return [job.state for job in jobs] == ["ended"]

        until(over)
        assert at_once <= {0, 1}
        assert look(root / "tiny").state == "finished"
        [job] = client.console.queue.jobs()
        assert (job.folder, job.code) == ("bad", 2)
        page = client.get("/").text
        assert "ended with code 2" in page
        assert "train.lr" in page
        assert "Traceback" not in page
        assert client.post(f"/withdraw/{job.id}").code == 303
        assert client.console.queue.jobs() == []
        assert not list((root / PLACE).glob("*.log"))


def test_what_waits_is_there_for_the_next_console(tmp_path: Path) -> None:
    first = Queue(tmp_path)
    job = first.begin("run", ["--example", "fashion"], "fashion")
    with pytest.raises(StoreError, match="another console"):
        Queue(tmp_path)
    first.close()
    second = Queue(tmp_path)
    assert second.jobs() == [job]
    with pytest.raises(StoreError, match="in the queue already"):
        second.resume(tmp_path / "fashion")
    second.withdraw(job.id)
    with pytest.raises(StoreError, match="is gone"):
        second.withdraw(job.id)
    second.close()


@given(
    content=st.binary(max_size=40)
    | st.sampled_from([b"[1]", b"{}", b'{"jobs": [], "mark": 3}', b"null"])
)
def test_a_broken_queue_is_an_empty_one(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("broken") / FILE
    path.write_bytes(content)
    assert _read(path, b"key") == []
    jobs = [{"id": "a", "arguments": ["run"], "folder": 7, "state": "waiting"}]
    path.write_text(json.dumps({"jobs": jobs, "mark": _mark(jobs, path, b"key")}))
    assert _read(path, b"key") == []


def test_names_are_given_once(queue: Queue) -> None:
    folders = [queue.begin("run", [], "same").folder for _ in range(3)]
    assert folders == ["same", "same-2", "same-3"]
