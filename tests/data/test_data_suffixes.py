"""Suffix tables say what is read: no readable file is passed over, no table has drifted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsight.data.base import Preprocess
from fedsight.data.images import dicom
from fedsight.data.images.decode import decode
from fedsight.data.images.formats import FORMATS, HEIF_SUFFIXES, SUFFIXES
from fedsight.data.listing import tree
from fedsight.data.suffixes import BY_MODALITY
from fedsight.program.locate import find_source


def test_every_suffix_of_a_format_that_is_read_is_known() -> None:
    Image.init()
    registered = {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert registered | {".dib"} == SUFFIXES  # Windows gives bitmaps this name, too


def test_a_modality_is_told_by_the_suffix() -> None:
    images, texts = BY_MODALITY["image"], BY_MODALITY["text"]
    assert not images & texts
    assert images == SUFFIXES | HEIF_SUFFIXES | dicom.SUFFIXES
    assert all(end == end.lower() and end.startswith(".") for end in images | texts)


def test_floating_point_maps_are_listed_and_read(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    path = tmp_path / "a.PFM"
    path.write_bytes(b"Pf\n4 3\n-1.0\n" + values[::-1].tobytes())
    assert tree(tmp_path) == {(): [str(path)]}
    assert decode(path, Preprocess(1, 3, 4))[0].numpy() == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "source"),
    [("a.csv", "manifest"), ("a.JSONL", "texts"), ("a.json", "coco"), ("a.npz", "medmnist")],
)
def test_a_file_is_given_to_the_source_that_reads_it(
    tmp_path: Path, name: str, source: str
) -> None:
    (tmp_path / name).touch()
    assert find_source(str(tmp_path / name), []).registered == source
