"""Finds the source for a name or path on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from fedsight.core.errors import ConfigError, DataError, Problem
from fedsight.core.registry import Registry, nearest
from fedsight.core.settings import Settings, assignments, problems_of
from fedsight.data.base import Source, sources
from fedsight.data.images.dicom import is_dicom
from fedsight.data.mistaken import mistaken
from fedsight.program.misread import renamed_cure

T = TypeVar("T", bound=Settings)
_BY_SUFFIX = {".csv": "manifest", ".npz": "medmnist", ".json": "coco", ".jsonl": "texts"}


def find_source(word: str, options: Sequence[str]) -> Source:
    """The source called `word`, or one that reads the file or folder `word`.

    `options` are `key=value`. Raises DataError when `word` is neither, ConfigError for bad options.
    """
    if word in sources.names():
        return build(sources, word, parse(options))
    path = Path(word)
    if not path.exists():
        raise DataError(
            f"'{word}' is neither a data source nor a file or folder",
            f"{nearest(word, sources.names())}; 'fedsight data list' describes the sources",
        )
    return build(sources, _kind(path), {"path": path, **parse(options)})


def _kind(path: Path) -> str:
    """The name of the source that reads `path`."""
    if path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            return "huggingface"
        if any(path.glob("*-idx[13]-ubyte*")):
            return "idx"
        return "dicom" if holds_dicom(path) else "folder"
    if path.suffix.lower() not in _BY_SUFFIX:
        if found := mistaken(path):
            raise DataError(f"'{path}' is {found[0]}", found[1])
        raise DataError(
            f"'{path}' is not recognised as a data set",
            "give a folder, a .csv manifest, a MedMNIST .npz, a COCO .json or a config .toml, or "
            "name the source and set its path: manifest --set path=FILE",
        )
    return _BY_SUFFIX[path.suffix.lower()]


def holds_dicom(root: Path) -> bool:
    """Whether the first file in class folders (or in those of sites) is a DICOM file."""
    files = (path for depth in ("*/*", "*/*/*") for path in root.glob(depth) if path.is_file())
    path = next((path for path in files if not path.name.startswith(".")), None)
    if path is None:
        return False
    with path.open("rb") as stream:
        return is_dicom(stream.read(132))


def parse(options: Sequence[str]) -> dict[str, Any]:
    """`["size=64", "fit=crop"]` -> {"size": 64, "fit": "crop"}; values are TOML or plain text.

    Raises ConfigError for one without `=`.
    """
    pairs, problems = assignments(options, "size=64")
    if problems:
        raise ConfigError(problems)
    return dict(pairs)


def build(registry: Registry[T], name: str, options: dict[str, Any]) -> T:
    """The registered class `name` with `options`; ConfigError with every option that is wrong."""
    cls = registry.get(name)
    problems = [
        Problem(
            key,
            f"{registry.kind} '{name}' has no setting '{key}'",
            renamed_cure(key) or nearest(key, cls.model_fields),
        )
        for key in options
        if key not in cls.model_fields
    ]
    try:
        made = cls(**{key: value for key, value in options.items() if key in cls.model_fields})
    except ValidationError as error:
        raise ConfigError([*problems, *problems_of("", cls, error)]) from None
    if problems:
        raise ConfigError(problems)
    return made
