"""Files that somebody hands to the operator or to a user, to overwrite, to exhaust or to deceive.

A run folder, a configuration, an annotation file and an image are data, whoever made them: they are
read, or refused with their name and a cure. A folder from elsewhere may hold links to the user's
own files, pipes that nobody ever writes to, and links to a device without end; a number may have
any length, a list any depth; and two megabytes of DICOM may inflate to two gigabytes, because the
whole file can be deflated.
"""

from __future__ import annotations

import io
import json
import os
import struct
import threading
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.markup import escape

from fedsight.cli import screen
from fedsight.coordinator.asked import asked
from fedsight.coordinator.live import LIVE, Live
from fedsight.core import files, locks
from fedsight.core.errors import ConfigError, DataError, FedSightError, StoreError
from fedsight.data.base import Preprocess
from fedsight.data.detection.coco import read_coco
from fedsight.data.images import dicom, dicom_elements
from fedsight.data.images.decode import decode, upright
from fedsight.data.images.disk import DiskImages
from fedsight.data.images.windowing import Reading
from fedsight.program import config
from fedsight.report import read as report
from fedsight.runs.listing import listed

DEEP = "[" * 50_000 + "]" * 50_000  # Python 3.13 reads some thousands
LONG = "1" * 5_000  # digits: Python converts 4,300 at most
TOML = '[data]\nname = "folder"\npath = "images"\n'


# Links in a folder --------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file of the user's own, to which links in `folder` from somebody else lead."""
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    (tmp_path / "folder").mkdir()
    partial = (f".{name}.{os.getpid()}.partial" for name in ("run.json", LIVE))
    for name in (".lock", "history.jsonl", *partial):
        (tmp_path / "folder" / name).symlink_to(path)
    return path


def test_a_lock_that_is_a_link_empties_no_file(own: Path) -> None:
    lock = own.parent / "folder" / ".lock"
    with pytest.raises(OSError, match="symbolic links"):
        locks.hold(lock, 0.0, FedSightError("busy"))
    assert own.read_text() == "years of work"
    lock.open("wb").close()  # as it was
    assert own.read_text() == ""


def test_a_history_that_is_a_link_is_not_written(own: Path) -> None:
    history = own.parent / "folder" / "history.jsonl"
    with pytest.raises(OSError, match="symbolic links"):
        files.append_line(history, {"round": 1})
    assert own.read_text() == "years of work"
    with history.open("ab+") as file:  # as it was
        file.write(b"{}\n")
    assert own.read_text() != "years of work"


def test_a_partial_file_that_is_a_link_is_not_written(own: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot write .*run\.json"):
        files.write_atomically(own.parent / "folder" / "run.json", b"{}")
    assert own.read_text() == "years of work"


@pytest.mark.parametrize("follows", [True, False])
def test_a_notice_is_not_written_to_where_a_link_leads(
    own: Path, monkeypatch: pytest.MonkeyPatch, follows: bool
) -> None:
    folder = own.parent / "folder"
    (folder / "run.json").write_text("{}")
    if follows:  # as it was
        monkeypatch.setattr(os, "O_NOFOLLOW", 0)
    Live(folder, stops=False).end("stopped")
    assert (own.read_text() == "years of work") is not follows


def test_a_lock_keeps_what_is_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    locks.hold(path, 0.0, FedSightError("busy")).close()
    assert path.read_text() == "mine"


# What is no file ----------------------------------------------------------------------------------

READ = ("run.json", "summary.json", "live.json", "job.json", "history.jsonl", ".asked")
LOOKED_AT = pytest.mark.parametrize("name", [*READ, ".lock", ".carried"])


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """The folder of a run from somebody else, in a folder of runs."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    return tmp_path / "run"


def test_the_list_of_runs_waits_for_whoever_writes_to_a_pipe(
    theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "content", Path.read_bytes)
    os.mkfifo(theirs / "summary.json")
    reader = threading.Thread(target=listed, args=[theirs.parent], daemon=True)
    reader.start()
    with (theirs / "summary.json").open("wb"):  # which waits for somebody who reads
        assert reader.is_alive()
    reader.join()


@LOOKED_AT
def test_ours_waits_for_no_pipe(theirs: Path, name: str) -> None:
    (theirs / name).unlink(missing_ok=True)
    os.mkfifo(theirs / name)
    assert [one.folder for one in listed(theirs.parent)] == [theirs]
    assert asked(theirs) is None


@LOOKED_AT
def test_ours_reads_no_device(theirs: Path, name: str) -> None:
    (theirs / name).unlink(missing_ok=True)
    (theirs / name).symlink_to("/dev/zero")
    assert [one.folder for one in listed(theirs.parent)] == [theirs]
    assert asked(theirs) is None


def test_a_report_names_what_is_no_file(theirs: Path) -> None:
    (theirs / "run.json").unlink()
    os.mkfifo(theirs / "run.json")
    with pytest.raises(StoreError, match=r"run\.json cannot be read: it is not a file"):
        report.read(theirs)


# Texts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [f"a = {DEEP}", f"seed = {LONG}\n{TOML}", "\0", "\ufeff"],
    ids=["deep", "long", "zero", "mark"],
)
def test_a_configuration_is_refused_and_not_crashed_on(tmp_path: Path, text: str) -> None:
    path = tmp_path / "given.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"given\.toml.* is not TOML"):
        config.load(path)


@pytest.mark.parametrize(
    "text",
    [DEEP, LONG, '{"name": ' + DEEP + "}", "\0", ""],
    ids=["deep", "long", "inside", "zero", "empty"],
)
def test_a_run_folder_is_refused_and_not_crashed_on(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(StoreError, match=r"run\.json is broken"):
        report.read(tmp_path)
    if DEEP in text:
        monkeypatch.setattr(report, "parse_json", json.loads)  # as it was
        with pytest.raises(RecursionError):
            report.read(tmp_path)


def coco(image: dict[str, Any], box: list[Any]) -> str:
    table = {
        "categories": [{"id": 1, "name": "ant"}],
        "images": [{"id": 1, "file_name": "a.png", **image}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": box}],
    }
    return json.dumps(table)


@pytest.mark.parametrize(
    "side",
    [10**400, 1e300, float("nan"), float("inf"), "1"],
    ids=["long", "large", "nan", "infinite", "text"],
)
def test_boxes_of_numbers_that_are_no_pixels_are_refused(tmp_path: Path, side: Any) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(coco({}, [0, 0, side, 1]))
    with pytest.raises(DataError, match=r"annotations\[0\]: bbox"):
        read_coco(path)


@pytest.mark.parametrize(
    "name", ["a\0b.png", "a\ud800.png", "a" * 5_000], ids=["zero", "half", "long"]
)
def test_names_that_no_file_has_are_refused(name: str) -> None:
    size, first = Preprocess(1, 8, 8), torch.tensor([0])
    looks = (
        lambda: decode(name, size),
        lambda: upright(name),
        lambda: DiskImages([name], size).read(first),
    )
    for look in looks:
        with pytest.raises(DataError, match="cannot be read"):
            look()


@pytest.mark.parametrize("change", [{"height": 1 << 20}, {"width": "8"}, {"channels": -1}])
@pytest.mark.parametrize("key", ["mean", "std"])
def test_a_preprocessing_that_no_image_has_is_refused(change: dict[str, Any], key: str) -> None:
    table = {"channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.25]}
    assert Preprocess.of(table).width == 8
    for bad in (change, {key: ["x"]}, {key: [None]}, {key: []}, {key: [float("nan")]}):
        with pytest.raises((TypeError, ValueError)):
            Preprocess.of({**table, **bad})


def test_the_name_of_a_run_cannot_rewrite_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes with the configuration, and names the folder."""
    summary = {"score": None, "worst_site": None, "seconds": 1.0, "rounds": 1, "headline": "x"}
    summary |= {"bytes_up": 1, "bytes_down": 1}
    screen.show_summary(summary, "runs/x\x1b[2J\u202e")
    assert "\\u001b[2J\\u202e" in capsys.readouterr().out
    monkeypatch.setattr(screen, "_plain", escape)  # as it was
    screen.show_summary(summary, "runs/x\x1b[2J\u202e")
    assert "\x1b[2J" in capsys.readouterr().out


# Images -------------------------------------------------------------------------------------------


def deflated(zeros: int) -> bytes:
    """A DICOM file whose content is deflated, with so many zeros after the image."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian as Deflated

    image = Dataset()
    image.Rows = image.Columns = 8
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation, image.PixelData = 7, 0, bytes(64)
    image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = Deflated
    written = io.BytesIO()
    pydicom.dcmwrite(written, image, enforce_file_format=True)
    data = written.getvalue()
    start = next(at for at in range(132, len(data)) if _inflates(data[at:]))
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    packed = packer.compress(zlib.decompress(data[start:], -zlib.MAX_WBITS))
    private = struct.pack("<HH2sHI", 0x7FE1, 0x1010, b"OB", 0, zeros)  # an element that is skipped
    packed += packer.compress(private + bytes(zeros)) + packer.flush()
    return data[:start] + packed


def _inflates(data: bytes) -> bool:
    try:
        return len(zlib.decompress(data, -zlib.MAX_WBITS)) > 100
    except zlib.error:
        return False


def peak_of_reading(data: bytes) -> int:
    """The most memory that reading takes, in bytes."""
    tracemalloc.start()
    try:
        dicom.read_dicom(data, "scan.dcm", Reading())
    except DataError as error:
        assert "inflates to more than" in error.cause or "corrupt" in error.cause  # noqa: PT017
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_a_small_dicom_file_cannot_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pydicom")
    assert dicom.read_dicom(deflated(0), "scan.dcm", Reading()).shape == (8, 8, 1)
    monkeypatch.setattr(dicom_elements, "MAX_INFLATED", 2 << 20)
    bomb = deflated(16 << 20)
    assert len(bomb) < 100_000
    assert peak_of_reading(bomb) < 8 << 20
    path = tmp_path / "scan.dcm"
    path.write_bytes(bomb)
    with pytest.raises(DataError, match="inflates to more than"):
        dicom.inspect(path, "scan.dcm")
    monkeypatch.setattr(dicom_elements, "MAX_INFLATED", 1 << 40)  # as it was
    assert peak_of_reading(bomb) > 16 << 20
