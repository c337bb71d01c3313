"""Files are written whole or not at all; shared tensors are one memory in several processes."""

from __future__ import annotations

import errno
import gc
import os
from multiprocessing import resource_sharer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsight.core import files
from fedsight.core.errors import StoreError
from fedsight.core.files import (
    MAX_NAME,
    append_line,
    file_name,
    link_on_the_way,
    make_folder,
    records,
    refuse_links,
    remove,
    write_atomically,
)
from fedsight.core.shared_memory import Shared
from fedsight.engines.pool import context


def test_file_holds_what_was_written_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"old", b"", b"new" * 1000):
        write_atomically(path, data)
        assert path.read_bytes() == data
        assert list(tmp_path.iterdir()) == [path]


NAMES = st.text(st.characters(codec="utf-8"), max_size=300)


@settings(max_examples=30)
@given(NAMES, NAMES)
def test_each_name_has_a_file_of_its_own(one: str, other: str) -> None:
    found = file_name(one)
    assert len(found) <= MAX_NAME
    assert not {"/", ".", "\0"} & set(found)
    assert (found == file_name(other)) is (one == other)
    if "=" not in found:
        assert unquote(found) == one


@pytest.mark.parametrize(
    "site", ["中山大学附属第一医院放射诊断与介入科影像数据中心东院区", "ü" * 500]
)
def test_a_long_name_has_a_file_and_the_same_one_each_time(tmp_path: Path, site: str) -> None:
    write_atomically(tmp_path / f"{file_name(site)}.safetensors", b"model")
    write_atomically(tmp_path / f"{file_name(site + '.')}.safetensors", b"another")
    assert (tmp_path / f"{file_name(site)}.safetensors").read_bytes() == b"model"
    assert file_name(site)[:30] == quote(site)[:30]


def test_links_on_the_way_are_refused_and_removed_alone(tmp_path: Path) -> None:
    (tmp_path / "own" / "a").mkdir(parents=True)
    (tmp_path / "own" / "a" / "file").write_text("")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "link").symlink_to(tmp_path / "own")
    (tmp_path / "given" / "nowhere").symlink_to(tmp_path / "missing")
    for place in ("link", "link/a", "link/a/file", "nowhere/x"):
        with pytest.raises(StoreError, match="is a link, not a folder"):
            refuse_links(tmp_path / "given", "other", place)
    refuse_links(tmp_path / "given" / "link", "a")  # where the folder is, the user has said
    assert link_on_the_way(tmp_path / "given", "link/a") == tmp_path / "given" / "link"
    for name in ("link", "nowhere", "never"):
        remove(tmp_path / "given" / name)
    assert not list((tmp_path / "given").iterdir())
    assert (tmp_path / "own" / "a" / "file").is_file()
    remove(tmp_path / "own")
    assert not (tmp_path / "own").exists()


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("existed", [True, False])
def test_full_disk_leaves_the_old_file_and_no_part_of_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    path = tmp_path / "file"
    if existed:
        path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StoreError, match="No space left on device") as caught:
        write_atomically(path, b"new")
    assert str(path) in caught.value.cause
    assert caught.value.cure
    assert [item.read_bytes() for item in tmp_path.iterdir()] == [b"old"] * existed


def test_missing_folder_is_a_store_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "no" / "file"
    with pytest.raises(StoreError, match="No such file") as caught:
        write_atomically(path, b"")
    assert str(path) in caught.value.cause


@pytest.mark.parametrize("torn", [b'{"time": "20', b"[1]", b"\xff\xfe", b'"text"', b"7"])
def test_a_line_after_a_torn_one_is_a_line_of_its_own(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "log.jsonl"
    assert records(path) == []
    append_line(path, {"number": 1})
    with path.open("ab") as file:
        file.write(torn)
    assert records(path) == [{"number": 1}]
    for number in (2, 3):
        append_line(path, {"number": number})
    assert records(path) == [{"number": 1}, {"number": 2}, {"number": 3}]
    assert path.read_bytes().count(b"\n") == 4


def test_a_new_file_has_the_permissions_that_were_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "usual", b"")
        write_atomically(tmp_path / "private", b"", 0o600)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"usual": 0o644, "private": 0o600}


def test_folder_is_made_with_its_parents_or_refused_by_name(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot create the folder .*file/under"):
        make_folder(tmp_path / "file" / "under")


def double(shared: Shared, pipe: Any) -> None:
    """Runs in another process: doubles at each message."""
    pipe.recv()
    shared.tensor.mul_(2)
    pipe.send(shared.tensor.sum().item())
    pipe.recv()


def test_another_process_sees_and_changes_the_same_memory() -> None:
    shared = Shared.of(torch.arange(6, dtype=torch.int64).view(2, 3))
    made = context()  # the engine's: a fork server started otherwise would lack its imports
    ours, theirs = made.Pipe()
    child = made.Process(target=double, args=(shared, theirs), daemon=True)
    child.start()
    shared.tensor.add_(1)  # after it was handed over
    ours.send("go")
    assert ours.recv() == 42
    assert shared.tensor.tolist() == [[2, 4, 6], [8, 10, 12]]
    ours.send("end")
    child.join()
    assert child.exitcode == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 4)])
def test_shared_copy_has_shape_type_and_values(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.ones(shape).to(dtype)
    tensor = Shared.of(values).tensor
    assert (tensor.shape, tensor.dtype) == (values.shape, dtype)
    assert torch.equal(tensor, values)
    assert Shared(shape, dtype).tensor.to(torch.float32).sum() == 0


def test_memory_is_given_back_when_nobody_holds_it() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        Shared((1000,), torch.float32)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_systems_without_anonymous_files_use_an_unlinked_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    shared = Shared.of(torch.tensor([1.0, 2.0]))
    assert shared.tensor.tolist() == [1.0, 2.0]


def test_what_is_handed_over_is_the_memory_itself() -> None:
    shared = Shared.of(torch.arange(4.0).view(2, 2))
    try:
        rebuild, given = shared.__reduce__()
        other = rebuild(*given)
    finally:
        resource_sharer.stop()
    other.tensor[1, 0] = 9
    assert shared.tensor.tolist() == [[0, 1], [9, 3]]


def test_a_long_file_of_lines_is_trimmed_to_its_newest(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    files.trim(path, 100)
    assert not path.exists()
    with path.open("ab", buffering=0) as other:  # as another process that goes on
        for number in range(50):
            other.write(b"%03d\n" % number)
        files.trim(path, 200)
        assert len(files.whole_lines(path)) == 50
        files.trim(path, 100, lambda line: line in (b"007", b"049"))
        other.write(b"050\n")
    kept = files.whole_lines(path)
    assert kept[0] == b"007"
    assert kept[1:] == [b"%03d" % number for number in range(38, 51)]
    path.write_bytes(b"x" * 1000)  # one line, torn
    files.trim(path, 100)
    assert path.read_bytes() == b""
