"""Two test parts that differ in an image tell its figures by subtraction.

What is tested on is the owner's to say. But two settings of a source decided it too, and came from
the program: where a CSV's labels are cut apart (the held-out images are spread over the labels),
and which frames of a DICOM file count as images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write
from PIL import Image

from fedsight.data.base import Source, sources
from fedsight.deploy import declaration
from fedsight.deploy.declaration import merge_sources

SIDE = 4
Made = Callable[[Path], tuple[Source, list[Source]]]


def table(root: Path) -> tuple[Source, list[Source]]:
    """The owner's source, a CSV, and what two programs of a coordinator say of it."""
    lines = ["path,label"]
    for number in range(30):
        Image.fromarray(np.full((SIDE, SIDE), 8 * number, np.uint8)).save(root / f"{number}.png")
        lines.append(f"{number}.png,{'ab'[number % 2]}|{'ab'[number // 2 % 2]}")
    (root / "list.csv").write_text("\n".join(lines))
    manifest = sources.get("manifest")
    cuts = [manifest(path=root, size=SIDE, channels=1, label_separator=cut) for cut in "|b"]
    return manifest(path=root / "list.csv", label_separator="|"), cuts


def scans(root: Path) -> tuple[Source, list[Source]]:
    """The same of DICOM files, one of which has two frames and is tested on."""
    for part, count in (("train", 4), ("test", 12)):
        for number in range(count):
            pixels = np.full((SIDE, SIDE), 10 * number, np.uint16)
            frames = np.stack([pixels, pixels + 5]) if (part, number) == ("test", 3) else pixels
            write(root / part / "ab"[number % 2] / f"{number}.dcm", frames)
    dicom = sources.get("dicom")
    programs = [dicom(path=root, size=SIDE, frames=frames) for frames in ("first", "each")]
    return dicom(path=root, frames="first"), programs


def measured_on(own: Source, programs: Sequence[Source]) -> list[list[str]]:
    """The names of the images that are tested on under each program."""
    parts = [merge_sources(one, own).open().test.images for one in programs]
    return [[images.name(at) for at in range(len(images))] for images in parts]


@pytest.mark.parametrize(("made", "key"), [(table, "label_separator"), (scans, "frames")])
def test_a_program_that_says_what_an_image_or_a_label_is_moves_the_test_part(
    made: Made, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declaration, "PROGRAM_KEYS", declaration.PROGRAM_KEYS | {key})
    first, second = measured_on(*made(tmp_path))
    assert first != second
    if key == "frames":
        assert len(set(second) - set(first)) == 1, "one image alone"


@pytest.mark.parametrize("made", [table, scans])
def test_the_owner_alone_says_it(made: Made, tmp_path: Path) -> None:
    first, second = measured_on(*made(tmp_path))
    assert first == second
