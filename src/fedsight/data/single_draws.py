"""Draws a test part in which no image decides where another one goes.

A test part that is spread evenly over classes and sites depends on all images at once: where one
more comes, or one has another label, or becomes a copy of another, many images change sides. Noise
that is to hide a single image is sized for that image alone. So where it is added, each image is
drawn by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedsight.core.errors import DataError
from fedsight.core.rng import derive

if TYPE_CHECKING:
    from fedsight.data.groups import Grouped

_wanted: ContextVar[bool] = ContextVar("drawn singly", default=False)


@contextlib.contextmanager
def drawn_singly(wanted: bool = True) -> Iterator[None]:
    """Meanwhile, sources that draw a test part draw each image by itself, if `wanted`."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def are_wanted() -> bool:
    """Whether each image is to be drawn by itself."""
    return _wanted.get()


def refuse_other_tests(where: str, what: str) -> None:
    """Raise DataError where nothing is marked for testing at `where`, and `what` would happen.

    One image that is marked would then decide what all others are for.
    """
    if are_wanted():
        raise DataError(
            f"'{where}': nothing is marked for testing, so {what}: one image that is marked would "
            "decide that for all others, and noise is to hide single images here",
            "mark the images to test on, or take the marks of the parts out, so that each image is "
            "drawn by itself",
        )


def held_out_singly(
    records: Sequence[Grouped], root: Path, named: bool, fraction: float, seed: int
) -> npt.NDArray[np.bool_]:
    """A mask [n] of test images, each of which is drawn with probability `fraction`.

    What decides is the seed and the image's path relative to `root`, neither its label nor another
    image; or its `key` (see `Record`), because numbers of rows depend on one another. Images of a
    group stay together: its name decides if the owner `named` it, and otherwise the first of its
    paths, because so do numbers of groups. Only if all images fell into one part does one move to
    the other.
    """
    names = _names(records, root, named)
    coins = {name: derive(seed, "held out singly", name) / 2**63 for name in set(names)}
    drawn = np.array([coins[name] for name in names])
    test: npt.NDArray[np.bool_] = drawn < fraction
    if not test.any():
        test = drawn == drawn.min()
    if test.all():
        test = drawn < drawn.max()
    return test


def content_key(content: bytes) -> str:
    """The key of an image or a text without a name of its own: equal ones have the same."""
    return f"content {hashlib.sha256(content).hexdigest()}"


def _names(records: Sequence[Grouped], root: Path, named: bool) -> list[str]:
    """What each image is drawn by [n]."""
    paths = [Path(os.path.relpath(one.path, root)).as_posix() for one in records]
    first: dict[str, str] = {}
    for one, path in zip(records, paths, strict=True):
        if one.group is not None:
            first[one.group] = min(path, first.get(one.group, path))

    def name(one: Grouped, path: str) -> str:
        if one.group is None:
            return f"image {path}"
        return f"group {one.group}" if named else f"image {first[one.group]}"

    pairs = zip(records, paths, strict=True)
    return [getattr(one, "key", "") or name(one, path) for one, path in pairs]
