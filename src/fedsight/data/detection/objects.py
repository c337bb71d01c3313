"""Annotated objects in images, and the handling of invalid annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedsight.core.errors import DataError
from fedsight.core.registry import nearest
from fedsight.data.base import Preprocess
from fedsight.data.detection import boxes
from fedsight.data.detection.boxes import Row
from fedsight.data.images.fit import Box, Placement
from fedsight.data.parts import PartName

MIN_VISIBLE = 0.25  # share of a box's area that must remain when an image is cropped


@dataclass(frozen=True)
class Object:
    """One annotated object; `where` names the file and the line or entry."""

    label: str
    box: Box
    where: str
    crowd: bool = False  # a group in one box
    outline: bool = False  # the annotation is an outline or a mask, and `box` the box around it
    difficult: bool = False  # too hard to be counted in an evaluation
    # polygons in pixels, or a run-length encoded mask, where these were asked for
    shape: Any = field(default=None, hash=False)


@dataclass(frozen=True)
class Annotated:
    """One image with its objects."""

    path: str
    objects: tuple[Object, ...]
    where: str
    stated: tuple[int, int] | None = None  # width and height, if the annotations give them
    site: str | None = None
    part: PartName | None = None
    group: str | None = None  # of images that are held out together

    @property
    def place(self) -> str:
        """What a message names."""
        return self.where


@dataclass(frozen=True)
class Policy:
    """How invalid annotations are handled."""

    outside: Literal["error", "skip", "clip"] = "error"
    no_area: Literal["error", "skip"] = "error"
    unknown: Literal["error", "skip"] = "error"


@dataclass
class Judge:
    """Turns objects into rows of class numbers and checked boxes; lists others in `skipped`."""

    classes: tuple[str, ...]
    policy: Policy = field(default_factory=Policy)
    skipped: list[str] = field(default_factory=list)

    def rows(self, objects: Sequence[Object], size: tuple[int, int]) -> list[Row]:
        """The rows (`detection.boxes`) of an image of `size` (width, height).

        Raises DataError naming the entry for a box outside its image or with no area and for an
        unknown class, unless the policy says otherwise.
        """
        found = []
        for one in objects:
            row = self._row(one, size)
            if row is not None:
                row = boxes.crowd(row) if one.crowd else row
                found.append(boxes.difficult(row) if one.difficult and not one.crowd else row)
        return found

    def _row(self, one: Object, size: tuple[int, int]) -> Row | None:
        if one.label not in self.classes:
            cause = f"{one.where}: unknown class '{one.label}'"
            cure = f"{nearest(one.label, self.classes)}; correct it, add it to data.classes, or"
            told = "the class of an object is not in data.classes"
            self._refuse(self.policy.unknown, cause, f"{cure} set data.unknown = 'skip'", told)
            return None
        left, top, right, bottom = one.box
        shown = f"box {_short(one.box)}"
        if not (right > left and bottom > top):
            cause = f"{one.where}: {shown} (left, top, right, bottom) has no area"
            cure = "correct it, or set data.no_area = 'skip'"
            self._refuse(self.policy.no_area, cause, cure)
            return None
        width, height = size
        slack = 1e-3 * max(size)  # the error of rounding to three digits
        reaches = min(left, top) < -slack or right > width + slack or bottom > height + slack
        inside = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
        nothing = not (inside[2] > inside[0] and inside[3] > inside[1])
        if nothing or (reaches and self.policy.outside != "clip"):
            cause = (
                f"{one.where}: {shown} (left, top, right, bottom) "
                f"{'lies' if nothing else 'reaches'} outside its image of {width} x {height} pixels"
            )
            cure = "correct it, or set data.outside = 'clip' or 'skip'"
            self._refuse("error" if self.policy.outside == "error" else "skip", cause, cure)
            return None
        return (float(self.classes.index(one.label)), *inside)

    def _refuse(
        self, policy: Literal["error", "skip"], cause: str, cure: str, told: str = ""
    ) -> None:
        if policy == "error":
            raise DataError(cause, cure, told)
        self.skipped.append(cause)


def placed(row: Row, size: tuple[int, int], goal: Preprocess) -> Row | None:
    """The row in pixels of the network's input, for an image of `size` (width, height).

    None where cropping leaves less than a quarter of the box, and nothing of a crowd or a difficult
    object.
    """
    box = Placement.of(size, goal).forward(row[1:])
    return cut(row[0], box, goal.width, goal.height, MIN_VISIBLE if row[0] >= 0 else 0.0)


def returned(box: Box, size: tuple[int, int], goal: Preprocess) -> Box:
    """A box in the network's input as one in an image of `size` (width, height), cut at its edges.

    The inverse of `placed`, except for what is outside.
    """
    left, top, right, bottom = Placement.of(size, goal).backward(box)
    width, height = size
    return (
        min(max(left, 0.0), float(width)),
        min(max(top, 0.0), float(height)),
        min(max(right, 0.0), float(width)),
        min(max(bottom, 0.0), float(height)),
    )


def cut(label: float, box: Box, width: float, height: float, least: float) -> Row | None:
    """The part of a box inside an image of `width` x `height`; None if less than `least` of it."""
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    right, bottom = min(box[2], width), min(box[3], height)
    area = (box[2] - box[0]) * (box[3] - box[1])
    if right <= left or bottom <= top or (right - left) * (bottom - top) < least * area:
        return None
    return (label, left, top, right, bottom)


def _short(box: Box) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"
