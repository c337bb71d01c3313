"""The form of whole-number sums over a site's test images: as it states them, sends and masks them.

Of sums of one kind all sites' have the same form, which depends on the program and the classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsight.core.types import PartSpec, PartSpecs


@dataclass(frozen=True)
class SumForm:
    """The shape of each field of some sums, and the most that an image adds to one number of a
    field (`most`): 1 where it is left out."""

    shapes: Mapping[str, tuple[int, ...]]
    most: Mapping[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many numbers these are."""
        return sum(self._lengths.values())

    def parts(self, images: int) -> PartSpecs:
        """The fields as parts that may be masked: of one site with at most so many test images."""
        return {
            name: PartSpec((length,), torch.int64, bound=self.most.get(name, 1) * images)
            for name, length in self._lengths.items()
        }

    def payload(self, numbers: Tensor) -> dict[str, Tensor]:
        """The fields, flat, of `numbers` [size]: one field after another."""
        return dict(zip(self._lengths, numbers.split([*self._lengths.values()]), strict=True))

    def read(self, numbers: Tensor) -> dict[str, Tensor]:
        """The fields of `numbers` [size]."""
        flat = self.payload(numbers)
        return {name: flat[name].reshape(shape) for name, shape in self.shapes.items()}

    @property
    def _lengths(self) -> dict[str, int]:
        return {name: math.prod(shape) for name, shape in self.shapes.items()}
