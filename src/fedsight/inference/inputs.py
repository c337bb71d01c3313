"""The inputs of a prediction: image files, and texts in files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.data.base import Modality, listed_reasons
from fedsight.data.images.decode import decode
from fedsight.data.images.dicom import is_dicom_file
from fedsight.data.images.formats import is_picture
from fedsight.data.listing import tree
from fedsight.data.passed_over import Tally, cures
from fedsight.data.suffixes import BY_MODALITY
from fedsight.data.text import rows
from fedsight.data.text.texts import NO_WORDS, TextSource, row, words
from fedsight.inference.saved import Saved


@dataclass(frozen=True)
class Question:
    """One image or text: its file, and a function that makes it the network's input [c, h, w].

    `read` raises DataError if the file cannot be read.
    """

    path: Path
    read: Callable[[], Tensor]
    line: int | None = None  # in a file with several texts


def questions(
    saved: Saved, paths: Sequence[Path], passed_over: Tally | None = None
) -> Iterator[Question]:
    """One image for each file, or its texts: a `.txt` file is one, CSV and JSONL have one per row.

    A row needs only the column `text`. `passed_over` counts the other files in folders. Raises
    DataError as `find_files` does, before any reading.
    """
    files = find_files(paths, saved.preprocess.modality, passed_over)
    if saved.preprocess.modality == "image":
        return (Question(path, partial(decode, path, saved.preprocess)) for path in files)
    return (question for path in files for question in _texts(saved, path))


def find_files(
    paths: Sequence[Path], modality: Modality, passed_over: Tally | None = None
) -> list[Path]:
    """The files in `paths`, and the images or texts in its folders, sorted within each folder.

    `passed_over` counts the other files there, and folders that cannot be read. Raises DataError
    for a path that does not exist, a folder without such files, and a file whose name ends like one
    of the other kind.
    """
    files: list[Path] = []
    cure = f"{modality}s end in {' '.join(sorted(BY_MODALITY[modality]))}"
    for path in paths:
        if not path.exists():
            raise DataError(f"there is no file or folder '{path}'", "correct the path")
        if not path.is_dir():
            _check_ending(path, modality)
        inside = [path]
        if path.is_dir():
            tally = Tally() if passed_over is None else passed_over
            inside = sorted(_inside(path, modality, tally))
            if not inside:
                others = tally.inside(path)
                what = f" (passed over: {listed_reasons(others)})" if others else ""
                raise DataError(
                    f"the folder '{path}' contains no {modality}s{what}",
                    "; ".join((*cures(others), cure)),
                )
        files += inside
    return files


def _check_ending(path: Path, modality: Modality) -> None:
    for other, endings in BY_MODALITY.items():
        if other != modality and path.suffix.lower() in endings:
            raise DataError(
                f"the run learned from {modality}s, but '{path}' holds {other}s",
                f"give files that end in {' '.join(sorted(BY_MODALITY[modality]))}, or a run that "
                f"learned from {other}s",
            )


def _inside(folder: Path, modality: Modality, tally: Tally) -> list[Path]:
    found = tree(folder, partial(_is_of, modality), tally, lenient=True)
    return [Path(file) for files in found.values() for file in files]


def _is_of(modality: Modality, path: str) -> bool:
    if modality == "image":
        return is_picture(path) or is_dicom_file(path)
    return Path(path).suffix.lower() in BY_MODALITY[modality]


def _texts(saved: Saved, path: Path) -> list[Question]:
    """One question for each text; a single one that fails if the file cannot be parsed."""
    if path.suffix.lower() not in rows.SUFFIXES:
        return [Question(path, lambda: _numbers(saved, _whole(path)))]
    try:
        found = [(line, values["text"]) for line, values in rows.text_rows(path, ("text",))]
    except DataError as error:
        return [Question(path, partial(_fail, error))]
    return [Question(path, partial(_numbers, saved, text), line) for line, text in found]


def _whole(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8: {error}", "save it as UTF-8") from error


def _numbers(saved: Saved, text: str) -> Tensor:
    """Word numbers [1, 1, length], made as the run's source makes them."""
    made = saved.source.words(text) if isinstance(saved.source, TextSource) else words(text)
    if not any(made):
        raise DataError(NO_WORDS, "write some, or leave it out")
    return torch.tensor(row(made, saved.preprocess.width), dtype=torch.float32).view(1, 1, -1)


def _fail(error: DataError) -> Tensor:
    raise error
