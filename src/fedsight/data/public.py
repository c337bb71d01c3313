"""The public set: images without labels that every site and the coordinator have, `[public]`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import BeforeValidator, Field, field_serializer
from torch import Tensor

from fedsight.core import part_lists
from fedsight.core.draws import draws
from fedsight.core.errors import Problem
from fedsight.core.settings import Settings
from fedsight.data.base import Dataset, Images, Indices, Part, Source, sources

_EXAMPLE = 'write source = {name = "folder", path = "public-images"}'


def _read(value: Any) -> Any:
    if value is None or isinstance(value, Source):
        return value
    return part_lists.read_one(value, sources, "public.source", _EXAMPLE)


class Public(Settings):
    """Images that every site and the coordinator have: `[public]`.

    Their labels, if the source has any, are never used.
    """

    # how many; they are drawn from the training images of the source. None: all of these
    images: int | None = Field(None, ge=1)
    seed: int = 0  # which of them are drawn
    # where they are: a data source, as in [data]. None: they are taken from the training images of
    # [data], and no site has them
    source: Annotated[Source | None, BeforeValidator(_read)] = None

    @field_serializer("source")
    def _written(self, source: Source | None) -> dict[str, Any] | None:
        return None if source is None else source.table()

    def meaning(self) -> dict[str, Any]:
        """Without the paths of the source."""
        found = super().meaning()
        return found if self.source is None else {**found, "source": self.source.meaning()}

    def needs(self) -> tuple[str, ...]:
        """What the source needs."""
        return () if self.source is None else self.source.needs()

    def anchored(self, base: Path) -> Self:
        """The source's paths begin at `base`."""
        if self.source is None:
            return self
        return self.model_copy(update={"source": self.source.anchored(base)})

    def check(self) -> Iterator[Problem]:
        """What can be said before images are read."""
        if self.source is None:
            if self.images is None:
                cause = "nothing says how many of the training images in [data] are public"
                yield Problem("public.images", cause, "set a number, for example 1000")
            return
        for found in self.source.check():
            key = found.where.partition(".")[2]
            yield Problem(f"public.source.{key}", found.cause, found.cure)

    def drawn(self, part: Part) -> Indices:
        """Which images of a source's training part are public, ascending [n]; at most all."""
        if self.images is None or self.images >= len(part):
            return np.arange(len(part))
        return draws(self.seed, "public").sample(len(part), self.images)


@dataclass(frozen=True)
class ChosenImages:
    """Some of other images."""

    images: Images
    places: Indices

    def __len__(self) -> int:
        return len(self.places)

    def read(self, indices: Tensor) -> Tensor:
        """The images at `indices` [b]: float32 [b, c, h, w], values 0 to 1."""
        return self.images.read(torch.from_numpy(self.places)[indices])

    def name(self, index: int) -> str:
        """Where an image came from."""
        return self.images.name(int(self.places[index]))


def unlabelled(part: Part, places: Indices) -> Part:
    """The images of a part at `places`, of which nothing is known but what they look like."""
    return Part(ChosenImages(part.images, places), np.zeros(len(places), np.int64))


def misfit(public: Dataset, own: Dataset) -> Problem | None:
    """What keeps the network from taking the images of a public source as it takes the others."""
    given, due = public.preprocess, own.preprocess
    if given.modality != due.modality:
        cause = f"the public set has {given.modalities}, and the sites have {due.modalities}"
        return Problem("public.source.name", cause, "choose a source of the same kind as [data]")
    shape, wanted = ((one.channels, one.height, one.width) for one in (given, due))
    if shape == wanted:
        return None
    cause = (
        f"public images are {shape[0]} x {shape[1]} x {shape[2]} (channels, height, width), and "
        f"those of the sites {wanted[0]} x {wanted[1]} x {wanted[2]}"
    )
    cure = (
        f"set channels = {wanted[0]} and size = [{wanted[1]}, {wanted[2]}] in public.source, or "
        "choose images of this size"
    )
    return Problem("public.source", cause, cure)
