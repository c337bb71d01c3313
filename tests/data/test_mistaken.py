"""Files that are no data sets are called what they are, and the cure fits them."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import opened_sources
import pytest
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.mistaken import mistaken
from fedsight.program.draft.base import Asked
from fedsight.program.draft.guess import look
from fedsight.program.locate import find_source


def archive(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=stream, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("a/1.png"))
    elif kind == "gz":
        stream.write(gzip.compress(b"path,label\n"))
    else:
        with zipfile.ZipFile(stream, "w") as packed:
            packed.writestr("a/1.png", b"x")
    return stream.getvalue()


def photo() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


FILES = {
    "images.zip": (archive("zip"), "a ZIP archive", "extract it"),
    "images.tar": (archive("tar"), "a tar archive", "extract it"),
    "list.csv.gz": (archive("gz"), "a gzip archive", "extract it"),
    "table.xlsx": (archive("zip"), "an Excel workbook", "save the sheet as CSV"),
    "table.xls": (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "an Excel workbook",
        "save the sheet as CSV",
    ),
    "train.parquet": (b"PAR1\x15\x04PAR1", "a Parquet file", "save_to_disk"),
    "one.png": (photo(), "an image", "the folder of the images"),
}


@pytest.mark.parametrize("name", FILES)
def test_whoever_is_given_it_says_what_it_is(tmp_path: Path, name: str) -> None:
    content, what, cure = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    for source in ("manifest", "folder", "masks", "coco", "texts"):
        size = {} if source == "texts" else {"size": 8}
        error = opened_sources.refused(source, path, **size)
        assert f"'{path}' is {what}" in error.cause
        assert cure in error.cure
    with pytest.raises(DataError, match=what) as caught:
        find_source(str(path), [])
    assert cure in caught.value.cure
    with pytest.raises(DataError, match=what) as caught:
        look(path, Asked())
    assert cure in caught.value.cure


def test_texts_and_what_is_not_there_are_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label\n")
    assert mistaken(tmp_path / "list.csv") is None
    assert mistaken(tmp_path / "none.csv") is None
    assert mistaken(tmp_path) is None
