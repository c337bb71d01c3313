"""Rows that processes share: what is put is what is got, within limits that are kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from fedsight.core.rows import Rows
from fedsight.engines.pool import context

WIDTH = 5
VALUES = torch.arange(40 * WIDTH, dtype=torch.float32).view(40, WIDTH)


def filled(rows: Rows, numbers: list[int]) -> Rows:
    rows.put(torch.tensor(numbers), VALUES[numbers])
    return rows


def there(rows: Rows) -> list[int]:
    every = torch.arange(len(rows))
    found, known = rows.get(every)
    assert torch.equal(found[known], VALUES[: len(rows)][known])
    assert torch.equal(known, rows.has(every))
    return known.nonzero().flatten().tolist()


def test_rows_go_to_memory_then_to_a_file_then_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    each = 4 * WIDTH
    rows = filled(Rows(40, WIDTH, 3 * each, 4 * each, tmp_path), [7, 3, 30])
    assert rows.bytes == (3 * each, 0)
    filled(rows, [0, 3, 7, 39])
    assert rows.bytes == (3 * each, 2 * each), "what is there is not put again"
    assert not caplog.text
    filled(rows, [10, 11, 12, 13])
    assert rows.bytes == (3 * each, 4 * each)
    assert there(rows) == [0, 3, 7, 10, 11, 30, 39]
    assert caplog.text.count("is full") == 1
    assert list(tmp_path.iterdir()) == [], "the file has no name"


def test_a_row_that_is_there_is_not_replaced() -> None:
    rows = filled(Rows(4, WIDTH, 1 << 20), [2])
    rows.put(torch.tensor([2]), torch.zeros(1, WIDTH))
    assert there(rows) == [2]


def test_the_file_can_be_read_by_nobody_else(tmp_path: Path) -> None:
    rows = filled(Rows(4, WIDTH, 0, 1 << 20, tmp_path), [1])
    state = os.fstat(rows._file)
    assert state.st_mode & 0o077 == 0
    assert state.st_nlink == 0


def test_a_folder_that_cannot_be_written_is_said_and_gone_on_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = filled(Rows(4, WIDTH, 4 * WIDTH, 1 << 20, tmp_path / "nowhere"), [0, 1])
    assert there(rows) == [0]
    assert str(tmp_path / "nowhere") in caplog.text
    assert "cache_folder" in caplog.text


def test_a_full_disk_is_said_once_and_gone_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = filled(Rows(6, WIDTH, 4 * WIDTH, 1 << 20, tmp_path), [0, 1])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    filled(rows, [2, 3])
    monkeypatch.undo()
    filled(rows, [4])
    assert there(rows) == [0, 1]
    assert caplog.text.count("No space left on device") == 1


def test_processes_share_rows_and_their_limit(tmp_path: Path) -> None:
    rows = filled(Rows(40, WIDTH, 6 * 4 * WIDTH, 9 * 4 * WIDTH, tmp_path), [39])
    shares = [list(range(at, 36, 3)) for at in range(3)]
    others = [context().Process(target=filled, args=(rows, share)) for share in shares]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert [other.exitcode for other in others] == [0, 0, 0]
    assert len(there(rows)) == 6 + 9
    assert rows.bytes == (6 * 4 * WIDTH, 9 * 4 * WIDTH)
    assert 39 in there(rows)
