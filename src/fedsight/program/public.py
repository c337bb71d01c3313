"""What a public set goes together with, and the public images of an opened program."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedsight.core.errors import ConfigError, DataError, Problem
from fedsight.data.base import PROGRAM_KEYS, ArrayImages, Dataset, Indices, Part
from fedsight.data.partition import Groups, Partition
from fedsight.data.public import ChosenImages, Public, misfit, unlabelled

if TYPE_CHECKING:
    from fedsight.program.program import Program

_AT_ONCE = 1024  # images


def problems(program: Program) -> Iterator[Problem]:
    """What can be said before images are read."""
    public, name = program.public, program.algorithm.registered
    if public is None:
        if program.algorithm.on_public:
            cause = f"with {name} the sites score public images, and there are none"
            cure = (
                "write [public] with images = 1000, which are then kept out of the sites, or name "
                "a source in [public.source]"
            )
            yield Problem("public", cause, cure)
        return
    yield from public.check()
    if not program.algorithm.on_public:
        cause = f"{name} does not use public images"
        yield Problem("public", cause, "leave out [public], or choose algorithm.name = 'fedmd'")
    if program.data.harmonise == "site":
        cause = "public images belong to no site whose look they could have"
        yield Problem("data.harmonise", cause, "choose 'image' or 'histogram'")
    if public.source is None and program.split.shares:
        cause = "sites of this split may hold the same images, so none can be kept out of them"
        yield Problem("public", cause, "name a source in [public.source], or choose another split")


def elsewhere(program: Program, own: bool = False) -> list[Problem]:
    """What sites on other machines cannot have: files of the coordinator's, or a set that is not
    as it is built in. `own`: they have images of their own, and no share of those in [data].

    A site opens the set because a program says so. How many images some sets compose, or keep in
    memory, is a setting, and there may be as many as nobody has room for.
    """
    public = program.public
    if public is None:
        return []
    source = public.source or program.data
    if not source.sample:
        cause = "the sites of a federation have no other public images than those of a built-in set"
        cure = (
            'name one in [public.source], for example name = "fashion-mnist-12k"; a set of your '
            "own can be tried in a simulation"
        )
        return [Problem("public", cause, cure)]
    if public.source is None and not own:  # whoever has a share of it opens it by the owner's word
        return []
    where = "data" if public.source is None else "public.source"
    cause = "the sites of a federation open a built-in set as it is, for public images"
    fields = type(source).model_fields.items()
    return [
        Problem(f"{where}.{key}", cause, "leave it out")
        for key, field in fields
        if key not in PROGRAM_KEYS
        and getattr(source, key) != field.get_default(call_default_factory=True)
    ]


def shared(program: Program, dataset: Dataset) -> Dataset:
    """The data set of a site, or of a coordinator, with public images that all machines have.

    Raises ConfigError for a public set that does not fit.
    """
    public = program.public
    if public is None:
        return dataset
    return _with(public, dataset, (public.source or program.data).open())


def opened(program: Program, dataset: Dataset, partition: Partition) -> tuple[Dataset, Partition]:
    """The data set with its public images, and the partition without them.

    Raises ConfigError for public images that do not fit, or are also the sites' own, and DataError
    for those that cannot be read.
    """
    public = program.public
    if public is None:
        return replace(dataset, public=None), partition
    if public.source is not None:
        found = public.source.open()
        dataset = _with(public, dataset, found)
        if problem := _overlap(dataset):
            raise ConfigError([problem])
        return dataset, partition
    dataset = _with(public, dataset, dataset)
    return dataset, _without(partition, public.drawn(dataset.train))


def _with(public: Public, dataset: Dataset, found: Dataset) -> Dataset:
    """The data set with the public images that are drawn from the training part of `found`."""
    if problem := misfit(found, dataset):
        raise ConfigError([problem])
    have = len(found.train)
    if public.images is not None and public.images > have:
        cause = f"there are only {have:,} images to draw public ones from"
        raise ConfigError([Problem("public.images", cause, f"set at most {have}")])
    return replace(dataset, public=unlabelled(found.train, public.drawn(found.train)))


def _without(partition: Partition, places: Indices) -> Partition:
    """The partition without these images."""
    every = [partition.indices(site) for site in range(len(partition))]
    kept = [mine[~np.isin(mine, places)] for mine in every]
    names = [partition.name(site) for site in range(len(partition))]
    for name, left in zip(names, kept, strict=True):
        if not len(left):
            raise DataError(
                f"all images of site '{name}' are drawn for the public set",
                "lower public.images, or give the site more images with split.min_samples",
            )
    return Groups(kept, names)


def _overlap(dataset: Dataset) -> Problem | None:
    """The problem of public images that are also the sites' own, as far as they are in memory."""
    assert dataset.public is not None
    known = _prints(dataset.public)
    if not known:
        return None
    cure = "choose another source, or leave out public.source: then none of them is"
    if count := len(known & _prints(dataset.train)):
        cause = f"{count:,} of the public images are also training images of the sites"
        return Problem("public.source", cause, cure)
    held_out = (part for part in (dataset.test, dataset.validation) if part is not None)
    if count := sum(len(known & _prints(part)) for part in held_out):
        cause = f"{count:,} of the public images are also images that the sites are tested on"
        return Problem("public.source", cause, cure)
    return None


def _prints(part: Part) -> set[bytes]:
    """The hashes of the images of a part, if they are in memory."""
    images = part.images
    inner = images.images if isinstance(images, ChosenImages) else images
    if not isinstance(inner, ArrayImages):
        return set()
    found = set()
    for some in torch.arange(len(images)).split(_AT_ONCE):
        found |= {hashlib.sha256(one.tobytes()).digest() for one in images.read(some).numpy()}
    return found
