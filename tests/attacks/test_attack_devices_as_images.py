"""An annotation, a list or a program names a pipe or a device where an image or code is expected.

Who hands over annotations names the images. One that leads to `/dev/zero` was read until the memory
was full, and one that leads to a pipe was waited for, for ever; so was a plug-in in a program that
an owner shows to `site doctor --program`.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from attacked_site import noise_images
from PIL import Image

from fedsight.core import files
from fedsight.core.errors import ConfigError, DataError
from fedsight.data.images import decode, dicom, disk
from fedsight.data.mistaken import mistaken
from fedsight.data.passed_over import Tally
from fedsight.data.sources.boxes import Boxes
from fedsight.data.sources.coco import Coco
from fedsight.program import plugins


def annotations(folder: Path, named: str) -> Path:
    """A COCO file of images that are there, and of one more by this name."""
    names = [f"{number}.png" for number in range(12)]
    for name, pixels in zip(names, noise_images(12), strict=True):
        Image.fromarray(pixels).save(folder / name)
    images = [
        {"id": number, "file_name": name, "width": 8, "height": 8}
        for number, name in enumerate([*names, named])
    ]
    boxes: list[dict[str, Any]] = [
        {"id": 1 + at, "image_id": at, "category_id": 1 + at % 2, "bbox": [1, 1, 4, 4]}
        for at in range(len(images))
    ]
    table = {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}],
    }
    path = folder / "images.json"
    path.write_text(json.dumps(table))
    return path


@pytest.fixture(params=["pipe.png", "zero.png"])
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A pipe, or a link to a device, beside images."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    path = folder / request.param
    if request.param == "pipe.png":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("kind", [Coco, Boxes])
def test_an_annotation_that_names_it_is_refused_by_its_name(odd: Path, kind: Any) -> None:
    path = annotations(odd.parent, odd.name)
    with pytest.raises(DataError, match=odd.name) as caught:
        kind(path=path, size=8).open()
    assert caught.value.cure


def test_whatever_looks_at_a_file_takes_it_for_none(odd: Path) -> None:
    assert not disk._is_dicom(str(odd))
    assert not dicom.is_dicom_file(str(odd))
    assert mistaken(odd) is None
    Tally().add(str(odd))
    with pytest.raises(DataError, match=odd.name):
        decode.upright(odd)
    with pytest.raises(DataError, match=odd.name):
        dicom.inspect(odd, str(odd))


def test_the_doctor_reads_no_device_as_code(odd: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        plugins.stated([odd.name], odd.parent)
    assert "it is not a file" in caught.value.problems[0].cause


def test_a_pipe_was_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "content", Path.read_bytes)
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    failed: list[Exception] = []

    def look() -> None:
        try:
            decode.full_size(pipe, decode.Reading())
        except DataError as error:
            failed.append(error)

    waits = threading.Thread(target=look)
    waits.start()
    with pipe.open("wb"):  # opens only once somebody reads at the other end
        assert waits.is_alive()
    waits.join()
    assert failed
    assert "it is not a file" not in str(failed[0])
    monkeypatch.setattr(decode, "content", files.content)
    with pytest.raises(DataError, match="it is not a file"):
        decode.full_size(pipe, decode.Reading())
