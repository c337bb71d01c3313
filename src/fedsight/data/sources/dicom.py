"""DICOM files: windowed, upright, held out by patient, and identified by number only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fedsight.core.errors import DataError, Problem
from fedsight.data.assembly import Labels, Record, dataset
from fedsight.data.base import (
    Dataset,
    Indices,
    Location,
    Preprocess,
    Side,
    Words,
    sources,
)
from fedsight.data.class_map import MappedClasses
from fedsight.data.csv_file import CsvSource, unlisted
from fedsight.data.groups import by_path, need_pattern
from fedsight.data.images.decode import Origin
from fedsight.data.images.dicom import (
    Frame,
    NoPixels,
    NoPlugin,
    inspect,
    is_dicom_file,
)
from fedsight.data.images.dicom_elements import EXTRA
from fedsight.data.images.disk import DiskImages, LazyImages
from fedsight.data.images.windowing import Function, Orientation, Reading
from fedsight.data.listing import ClassFolders, Listed

Pair = Annotated[tuple[float, Annotated[float, Field(gt=0)]], Field(strict=False)]


class DicomImages(LazyImages):
    """DICOM files or their frames; paths appear on the site's own screen only."""

    def __init__(
        self,
        files: DiskImages,
        frames: Indices,
        names: Sequence[str],
        preprocess: Preprocess,
    ) -> None:
        self.preprocess = preprocess
        self._files, self._frames, self._names = files, frames, list(names)

    def __len__(self) -> int:
        return len(self._names)

    def origin(self, index: int) -> Origin:
        """The file, and which of its frames."""
        return Frame(self._files.origin(index), int(self._frames[index]))

    def name(self, index: int) -> str:
        """A number, since a file may be named after the patient."""
        return self._names[index]

    def shown(self, index: int) -> str:
        """The path."""
        return self._files.origin(index)

    def only(self, indices: Indices) -> DicomImages:
        """The same with some left out."""
        names = [self._names[index] for index in indices]
        files = self._files.only(np.asarray(indices, dtype=np.int64))
        return DicomImages(files, self._frames[indices], names, self.preprocess)


@sources.add(
    "dicom",
    extra="medical",
    reads="DICOM files (Part 10) in folders or listed in a CSV; compressed ones as plugins allow",
    source="DICOM PS3.3 (C.7.6.3 pixels, C.11 look-up tables and windows), read by pydicom",
)
class Dicom(MappedClasses, CsvSource):
    """DICOM files in class folders or listed in a CSV; patients are never identified.

    Only the elements that make up the image are read. To hold out whole patients the patient ID is
    read as well, compared in memory and discarded. Text in the pixels is not removed.
    """

    path: Location  # folders as data source `folder` has them, or a CSV as `manifest` has it
    # square, or [height, width]
    size: Side | Annotated[tuple[Side, Side], Field(strict=False)] = 128
    channels: Literal[1, 3] = 1
    # or [centre, width], in HU for example
    window: Literal["stored", "image", "bits"] | Pair = "stored"
    view: int = Field(0, ge=0)  # which of several windows that the file stores
    function: Function = "stored"  # the curve of the window
    orientation: Orientation = "patient"  # turned to left and feet (axial: back), or as stored
    frames: Literal["refuse", "first", "middle", "each"] = "refuse"  # of files with several
    pixelless: Literal["error", "skip"] = "error"  # what to do with files without pixels
    held_out_by: Literal["patient", "image"] = "patient"  # what test_fraction keeps together
    names: Literal["number", "path"] = "number"  # how reports call an image
    sites_in_path: bool = False  # folders: root/site/class/file
    classes: Words | None = None  # the vocabulary, in order; None: all labels, sorted
    label_column: str = "label"  # of a CSV
    label_separator: str | None = Field(None, min_length=1)  # between several labels of an image

    def locations(self) -> dict[str, Path]:
        """The folder or CSV."""
        return {"path": self.path}

    def check(self) -> list[Problem]:
        """Problems of every source, and whether pydicom is installed."""
        problems = super().check()
        if find_spec("pydicom") is None:
            cause = "DICOM files need pydicom, which is not installed"
            problems.append(Problem("data.name", cause, EXTRA))
        return problems

    def preprocess(self, *args: Any, **options: Any) -> Preprocess:
        """With how DICOM files are read."""
        return replace(super().preprocess(*args, **options), dicom=self.reading())

    def reading(self) -> Reading:
        """How files become grey, in training as in prediction."""
        frame = "middle" if self.frames == "each" else self.frames
        return Reading(self.window, self.view, self.function, self.orientation, frame)

    def open(self) -> Dataset:
        """List and inspect the files, then read them; DataError names the file at fault."""
        records: list[Record] = []
        own: list[str] = []  # the group of each where data.group names none
        frames: list[int] = []
        names: list[str] = []
        skipped: list[str] = []
        listed = self._listed()
        for number, record in enumerate(listed.records):
            name = self._name(record, number)
            try:
                count, patient = inspect(Path(record.path), record.path)
            except NoPixels:
                if self.pixelless == "error":
                    raise
                skipped.append(f"{name}: no pixels")
                continue
            except NoPlugin:  # the file is intact: skipping it would lose images silently
                raise
            except DataError:
                if self.corrupt == "error":
                    raise
                skipped.append(name)
                continue
            by_patient = patient and self.held_out_by == "patient"
            group = f"patient {patient}" if by_patient else f"file {number}"
            for frame in self._frames(record.path, count):
                records.append(record)
                own.append(group)
                frames.append(frame)
                names.append(name if count == 1 else f"{name}, frame {frame + 1}")
        if not records:
            left_out = f" with pixels ({len(skipped)} files left out)" if skipped else ""
            raise DataError(f"'{self.path}' has no DICOM files{left_out}", "check data.path")
        preprocess = self.preprocess(self.channels, *self.shape, fit=self.fit)
        files = DiskImages([record.path for record in records], preprocess)
        images = DicomImages(files, np.asarray(frames), names, preprocess)
        records = _grouped(records, own, self.path)
        separator, similar, naming = self.label_separator, self.similar_names, self.naming
        labels = Labels.in_cells(records, self.classes, separator, similar, naming)
        opened = dataset(records, labels, self, self.path.name, images)
        opened = replace(opened, skipped=(*skipped, *opened.skipped))
        return opened.read_from(listed.passed_over, listed.notes)

    def _listed(self) -> Listed:
        if self.path.is_dir():
            need_pattern(self.group, "folders")
            found = ClassFolders(self.path, self.sites_in_path, is_dicom_file).read()
            return replace(found, records=by_path(found.records, self.group, self.path))
        several = self.label_separator is not None
        records = self.listed(self.path, self.label_column, unlabelled=several)
        return Listed(records, passed_over=unlisted(self.path, records))

    def _name(self, record: Record, number: int) -> str:
        if self.names == "path":
            return record.path
        return record.where.rpartition(", ")[2] or f"file {number + 1}"

    def _frames(self, path: str, count: int) -> range:
        if count > 1 and self.frames == "refuse":
            raise DataError(
                f"'{path}' has {count} frames, not one",
                "set data.frames to 'first', 'middle' or 'each', or give one file per image",
            )
        if self.frames == "each":
            return range(count)
        chosen = count // 2 if self.frames == "middle" else 0
        return range(chosen, chosen + 1)


def _grouped(records: Sequence[Record], own: Sequence[str], root: Path) -> list[Record]:
    """The records, those without a group with that in `own` [n], numbered in place of its name.

    Such a group's key is the first of its paths: its number depends on the other groups.
    """
    number = {name: f"{name.split()[0]} {place:07d}" for place, name in enumerate(sorted(set(own)))}
    first: dict[str, str] = {}
    for record, name in zip(records, own, strict=True):
        if not record.group:
            path = os.path.relpath(record.path, root)
            first[name] = min(path, first.get(name, path))
    return [
        record
        if record.group
        else replace(record, group=number[name], key=f"image {Path(first[name]).as_posix()}")
        for record, name in zip(records, own, strict=True)
    ]
