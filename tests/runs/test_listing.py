"""The list of runs tells each run's state from its files, whatever is missing or broken in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import done, refused
from hypothesis import given
from hypothesis import strategies as st

from fedsight.coordinator.folders import CARRIED, LOCK
from fedsight.core import locks
from fedsight.core.errors import StoreError
from fedsight.language.current import using
from fedsight.runs.listing import control, listed, look, state_words

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(name: str, lines: int = 1, **files: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        facts = {"name": name, "created": "2026-01-02T03:04:05+00:00", "rounds": 4}
        files = {"run": facts, **files}
        for stem, value in files.items():
            (folder / f"{stem}.json").write_text(json.dumps(value))
        line = json.dumps({"round": 1, "score": 0.5, "bytes_up": 3, "bytes_down": 4})
        (folder / "history.jsonl").write_text(f"{line}\n" * lines)
        return folder

    return make


def held(folder: Path, name: str) -> Any:
    return locks.hold(folder / name, 0.0, StoreError("held"))


FAILED = {"how": "failed", "cause": "a disk is full", "cure": "free it"}


@pytest.mark.parametrize(
    ("files", "state", "words"),
    [
        ({"summary": {"score": 0.75}}, "finished", "finished"),
        ({"live": {"ended": {"how": "paused"}}}, "paused", "paused"),
        ({"live": {"ended": {"how": "stopped"}}}, "stopped", "stopped"),
        ({"live": {"ended": FAILED}}, "failed", "failed: a disk is full"),
        ({"live": {"phase": "training"}}, "interrupted", "interrupted"),
        ({"live": {"ended": "odd"}}, "interrupted", "interrupted"),
        ({}, "interrupted", "interrupted"),
        ({"job": {"state": "failed", "cause": "x"}}, "failed", "failed: x"),
        ({"job": {"state": "failed", "family": "Paused"}}, "paused", "paused"),
        ({"job": {"state": "running"}}, "interrupted", "interrupted"),
        ({"job": {"state": "failed"}, "summary": {"score": 1}}, "finished", "finished"),
    ],
)
def test_the_state_of_a_run_that_nobody_works_on(
    make: Make, files: dict[str, Any], state: str, words: str
) -> None:
    found = look(make("first", **files))
    assert found.state == state
    with using("en"):
        assert str(state_words(found)) == words
    assert found.live == {}
    assert (found.round, found.rounds, found.bytes) == (1, 4, 7)


@pytest.mark.parametrize("name", [LOCK, CARRIED])
def test_a_run_goes_on_while_a_process_holds_it(make: Make, name: str) -> None:
    folder = make("first", live={"phase": "training", "ended": FAILED})
    with held(folder, name):
        found = look(folder)
        assert found.state == "running"
        assert found.live["phase"] == "training"
        assert found.cause == ""
        control(folder, "pause")
        assert look(folder).asked == "pause"
    assert look(folder).state == "failed"
    assert look(folder).asked is None  # a request to what has ended is not shown


def test_baselines_do_not_pause(make: Make) -> None:
    folder = make("first", live={"phase": "baselines"})
    with held(folder, LOCK):
        with pytest.raises(StoreError, match="no rounds left"):
            control(folder, "pause")
        control(folder, "stop")


def test_runs_of_a_series_are_listed_too_the_newest_first(make: Make, tmp_path: Path) -> None:
    make("old")
    make("series/seed-0", run={"name": "b", "created": "2026-02-01T00:00:00+00:00"})
    make("series/seed-1", run={"name": "c", "created": "2026-03-01T00:00:00+00:00"})
    names = [str(one.folder.relative_to(tmp_path)) for one in listed(tmp_path)]
    assert names == ["series/seed-1", "series/seed-0", "old"]


def test_links_are_not_followed(make: Make, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(make("outside"))
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    assert [one.folder.name for one in listed(tmp_path)] == ["outside"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = ("name", "rounds", "population", "score", "ended", "state", "created", "epsilon", "bytes_up")


@given(
    value=JSON, key=st.sampled_from(KEYS), stem=st.sampled_from(["run", "summary", "live", "job"])
)
def test_whatever_is_in_the_files_the_list_is_made(
    tmp_path_factory: pytest.TempPathFactory, value: Any, key: str, stem: str
) -> None:
    folder = tmp_path_factory.mktemp("odd") / "first"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / f"{stem}.json").write_text(json.dumps({key: value}))
    (folder / "history.jsonl").write_text(json.dumps({key: value}) + "\n[1]\nnot json\n")
    found = look(folder)
    assert json.loads(json.dumps(found.table()))["folder"] == str(folder)
    str(state_words(found))


def test_the_command_lists_and_asks(make: Make, tmp_path: Path) -> None:
    folder = make("first", summary={"score": 0.75})
    table = done("runs", "list", "--runs", tmp_path).out
    assert "first" in table
    assert "75.00%" in table
    [one] = json.loads(done("runs", "list", "--runs", tmp_path, "--json").out)
    assert (one["state"], one["score"], one["rounds"]) == ("finished", 0.75, 4)
    assert "it is finished" in refused(7, "runs", "stop", folder)
    second = make("second")
    with held(second, LOCK):
        assert "will pause" in done("runs", "pause", second).out
        assert json.loads(done("runs", "stop", second, "--json").out)["asked"] == "stop"
        assert look(second).asked == "stop"
    assert "no folder" in refused(7, "runs", "list", "--runs", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no runs" in done("runs", "list", "--runs", tmp_path / "empty").out
