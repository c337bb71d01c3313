"""What is hashed of a data set: pieces of each file, or every byte of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_files import write
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.core.progress import listening
from fedsight.data import contents as data_contents
from fedsight.data.base import Dataset, sources
from fedsight.data.contents import PIECE, Hashed, contents, stamp


def folder(root: Path) -> Path:
    """Eight uncompressed pictures, each of 48 kB and another grey."""
    for number in range(8):
        path = root / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((128, 128, 3), 20 * number, np.uint8)
        pixels[:64] = number
        Image.fromarray(pixels).save(path)
    return root


def opened(root: Path, in_memory: bool = False) -> Dataset:
    return sources.get("folder")(path=root, size=8, in_memory=in_memory).open()


def changed(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_every_byte_counts_if_files_are_hashed_whole(tmp_path: Path) -> None:
    data = opened(folder(tmp_path / "images"))
    pieces, whole = contents(data), contents(data, "whole")
    assert pieces.hashes.keys() == whole.hashes.keys()
    assert pieces.hashes["training labels"] == whole.hashes["training labels"]
    changed(tmp_path / "images/a/0.bmp", 2 * PIECE)  # between the first piece and the second
    changed(tmp_path / "images/b/1.bmp", 2 * PIECE)
    assert contents(data).hashes == pieces.hashes
    assert contents(data, "whole").hashes != whole.hashes
    changed(tmp_path / "images/a/0.bmp", PIECE - 1)
    changed(tmp_path / "images/b/1.bmp", PIECE - 1)
    assert contents(data).hashes != pieces.hashes


def test_images_in_memory_are_hashed_by_their_pixels_or_their_files(tmp_path: Path) -> None:
    data = opened(folder(tmp_path / "images"), in_memory=True)
    pixels, whole = contents(data).hashes, contents(data, "whole").hashes
    for path in (tmp_path / "images").rglob("*.bmp"):
        changed(path, 2 * PIECE)
    assert contents(data).hashes == pixels  # those that are trained on are still in memory
    assert contents(data, "whole").hashes != whole


@pytest.mark.parametrize("how", ["pieces", "whole"])
def test_moved_files_are_the_same(tmp_path: Path, how: Hashed) -> None:
    before = contents(opened(folder(tmp_path / "images")), how)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert contents(opened(tmp_path / "elsewhere"), how) == before


def test_progress_is_told_and_a_lost_file_named(tmp_path: Path) -> None:
    data = opened(folder(tmp_path))
    heard: list[tuple[str, int, int]] = []
    with listening(lambda *said: heard.append(said)):
        contents(data)
    assert [said[0] for said in heard] == ["files hashed"] * 8
    for path in tmp_path.rglob("*.bmp"):
        path.unlink()
    with pytest.raises(DataError, match=r"\.bmp' cannot be read: No such file") as caught:
        contents(data)
    assert "start a new run without it" in caught.value.cure


def test_a_stamp_changes_with_the_files_that_are_read_again(tmp_path: Path) -> None:
    of = opened(folder(tmp_path))
    before = stamp(of)
    assert before == stamp(of) != ""
    Image.new("L", (8, 8), 99).save(tmp_path / "a" / "2.bmp")
    changed = stamp(of)
    assert changed != before
    (tmp_path / "b" / "3.bmp").unlink()
    assert stamp(of) not in (before, changed)


def test_a_file_of_many_images_is_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.stack([np.full((4, 4), level, np.uint16) for level in (0, 100, 200)])
    for label in "ab":
        for number in range(2):
            write(tmp_path / label / f"{number}.dcm", frames + number)
    of = sources.get("dicom")(path=tmp_path, size=8, frames="each", in_memory=False).open()
    asked: list[str] = []
    monkeypatch.setattr(data_contents, "_times", lambda path: asked.append(str(path)) or "")
    assert len(of.train) + len(of.test) == 12
    assert stamp(of) != ""
    assert len(asked) == len({*asked}) == 4


def test_images_in_memory_have_no_stamp(tmp_path: Path) -> None:
    assert stamp(opened(folder(tmp_path), in_memory=True)) == ""
