"""Every file of a folder is read, or counted by its reason; what a folder mostly lacks is said."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import write
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from fedsight.cli.app import app
from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, sources
from fedsight.data.listing import tree
from fedsight.data.passed_over import Tally, reason_for

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)


def picture(path: Path, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)
    return path


def classes(root: Path, *names: str, count: int = 5) -> Path:
    for place, name in enumerate(names or ("cat", "dog")):
        for number in range(count):
            picture(root / name / f"{number}.png", 20 * place + number)
    return root


def opened(source: str, path: Path, **more: Any) -> Dataset:
    return sources.get(source)(path=path, size=8, **more).open()


def touched(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.MP4", b"x", ".mp4"),
        ("a.Jpg_original", b"x", ".jpg_original"),
        ("a.tar.gz", b"x", ".tar.gz"),
        ("A.ZIP", b"PK", ".zip"),
        ("Thumbs.db", b"x", "system files"),
        ("DESKTOP.INI", b"x", "system files"),
        (".DS_Store", b"x", "system files"),
        ("DICOMDIR", b"x", "system files"),
        ("._0.png", b"x", "hidden"),
        ("README", b"read me", "no suffix"),
        ("empty", b"", "no suffix"),
        ("IMG_0001", b"\xff\xd8\xff\xe0", "images without suffix"),
        ("1.2.840.5", b"\0" * 128 + b"DICM", "DICOM without suffix"),
        ("picture of 3. May", b"x", ". may"),
        ("a." + "b" * 60, b"x", "no suffix"),
    ],
)
def test_a_file_has_one_reason(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    assert reason_for(str(touched(tmp_path / name, data))) == reason


def test_links_and_pipes_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "dead.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    os.mkfifo(tmp_path / "pipe.png")
    reasons = [reason_for(str(tmp_path / one)) for one in ("dead.png", "round.png", "pipe.png")]
    assert reasons == ["dead links", "dead links", "special files"]


NAMES = st.sampled_from(
    ["a.png", "b.PNG", "c.heic", "d.zip", "e", ".f.png", "Thumbs.db", "g.jpeg", "h.txt", "i.jp2"]
)
FOLDERS = st.sampled_from(["", "x", "x/y", ".git", "@eaDir", "z/__MACOSX/w"])


@given(st.sets(st.tuples(FOLDERS, NAMES), max_size=12))
@settings(max_examples=40, deadline=None)
def test_what_is_read_and_what_is_passed_over_are_all_files(
    tmp_path_factory: pytest.TempPathFactory, files: set[tuple[str, str]]
) -> None:
    root = tmp_path_factory.mktemp("any")
    for folder, name in files:
        touched(root / folder / name)
    tally = Tally()
    read = [one for found in tree(root, tally=tally).values() for one in found]
    assert len(read) + sum(tally.counts.values()) == len(files)
    assert all(not part.startswith((".", "@")) for one in read for part in one.split("/")[-3:])


def test_a_folder_says_in_one_line_what_is_passed_over_and_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    classes(tmp_path)
    for number in range(7):
        touched(tmp_path / f"cat/IMG_{number}.HEIC")
        touched(tmp_path / f"dog/.{number}.png")
    for number in range(3):
        (tmp_path / f"dog/dead{number}.png").symlink_to("/nowhere/x.png")
    touched(tmp_path / "dog/Thumbs.db")
    touched(tmp_path / "more.zip")
    write(tmp_path / "dog/scan.dcm", RAMP)
    write(tmp_path / "dog/IM000001", RAMP)
    found = opened("folder", tmp_path)
    assert len(found.train) + len(found.test) == 10
    assert found.passed_over == {
        ".dcm": 1,
        ".heic": 7,
        ".zip": 1,
        "DICOM without suffix": 1,
        "dead links": 3,
        "hidden": 7,
        "system files": 1,
    }
    assert found.said[0] == (
        "files passed over: .dcm 1, .heic 7, .zip 1, DICOM without suffix 1, dead links 3, "
        "hidden 7, system files 1"
    )
    text = "\n".join(found.notes)
    assert "pip install 'fedsight[heif]'" in text
    assert "data.name = 'dicom'" in text
    assert "extract" in text
    assert f"'{tmp_path / 'cat'}': 7 of 12 files are not read (.heic 7)" in text
    assert f"'{tmp_path / 'dog'}'" not in text  # most of it is read; hidden ones say nothing


@pytest.mark.parametrize("source", ["folder", "people"])
def test_a_folder_of_which_nothing_is_read_is_named_with_what_is_in_it(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for number in range(3):
        touched(tmp_path / f"cat/{number}.heic")
    with pytest.raises(DataError, match=r"has no images in .*not read: \.heic 3") as caught:
        opened(source, tmp_path)
    assert "fedsight[heif]" in caught.value.cure


def test_a_class_of_which_nothing_is_read_is_an_error_beside_others(tmp_path: Path) -> None:
    classes(tmp_path)
    touched(tmp_path / "bird/1.mov")
    touched(tmp_path / "bird/2.mov")
    with pytest.raises(DataError, match=r"class 'bird' has no images in .*not read: \.mov 2"):
        opened("folder", tmp_path)
    scans = tmp_path / "scans"
    for number in range(2):
        write(touched(scans / f"a/IM{number}"), RAMP)
    with pytest.raises(DataError) as caught:
        opened("folder", scans)
    assert "data.name = 'dicom'" in caught.value.cure


def test_a_csv_counts_what_lies_beside_the_images_it_lists(tmp_path: Path) -> None:
    classes(tmp_path, "img", count=6)
    lines = [f"img/{number}.png,{'ab'[number % 2]}" for number in range(5)]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines))
    touched(tmp_path / "img/x.mov")
    touched(tmp_path / "img/Thumbs.db")
    found = opened("manifest", tmp_path / "list.csv")
    assert found.passed_over == {".mov": 1, "images not listed": 1, "system files": 1}


def test_masks_that_are_used_are_not_passed_over(tmp_path: Path) -> None:
    lines = []
    for number in range(5):
        picture(tmp_path / f"{number}.png")
        mask = Image.new("L", (8, 8), 0)
        mask.putpixel((1, 1), 1)
        mask.save(tmp_path / f"{number}_mask.png")
        lines.append(f"{number}.png,{number}_mask.png")
    picture(tmp_path / "late_mask.png")
    (tmp_path / "list.csv").write_text("path,mask\n" + "\n".join(lines))
    found = opened("masks", tmp_path / "list.csv", classes=["sky", "bird"])
    assert found.passed_over == {"images not listed": 1}


def latin(root: Path) -> None:
    for folder in (b"cat", b"m\xe9lanome"):
        for number in range(5):
            name = os.fsdecode(folder + b"/caf\xe9%d.png" % number)
            picture(root / name, number)


def strange(root: Path) -> None:
    classes(root, "cat", "two\nlines")
    picture(root / "cat" / f"{'long' * 60}.png", 70)


@pytest.mark.parametrize("make", [latin, strange])
def test_names_of_any_bytes_are_valid_json(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path)
    call = CliRunner().invoke(app, ["data", "inspect", str(tmp_path), "--set", "size=8", "--json"])
    assert call.exit_code == 0, call.output
    call.stdout_bytes.decode("utf-8", errors="strict")
    found = json.loads(call.stdout)
    names = sorted(one.name for one in tmp_path.iterdir())
    assert sorted(found["classes"]) == names  # read back, they are the names
    shown = CliRunner().invoke(app, ["data", "inspect", str(tmp_path), "--set", "size=8"])
    assert shown.exit_code == 0
