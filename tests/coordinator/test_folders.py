"""Run folders: a free name for each process, and one process at a time in each."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from fedsight.coordinator.folders import claimed, free_folder
from fedsight.core.errors import StoreError


def test_a_free_folder_is_made(tmp_path: Path) -> None:
    (tmp_path / "a-2").touch()
    names = [free_folder(tmp_path, "a").name for _ in range(3)]
    assert names == ["a", "a-3", "a-4"]
    with pytest.raises(StoreError, match="cannot create the folder"):
        free_folder(tmp_path / "a-2", "b")


def test_processes_that_ask_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(free_folder, [(tmp_path, "a")] * 40, chunksize=1)
    assert len(set(found)) == 40


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claimed(folder):
        with pytest.raises(StoreError, match="another process is at work"), claimed(folder):
            raise AssertionError("never reached")
        (folder / "run.toml").touch()
    with claimed(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["run.toml"]


def test_a_folder_in_which_nothing_was_written_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no data"), claimed(tmp_path / "run"):
        raise ValueError("no data")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").mkdir()
    with pytest.raises(StoreError, match="cannot write in"), claimed(tmp_path / "run"):
        raise AssertionError("never reached")
