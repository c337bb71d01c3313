"""The look of each site's images: their own mean and deviation, which never leave the site."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedsight.core.errors import DataError, Problem
from fedsight.data.base import Dataset, Indices
from fedsight.data.by_site import at, check_sites
from fedsight.data.look import LEAST
from fedsight.data.partition import Partition

if TYPE_CHECKING:
    from fedsight.program.federation import Federation
    from fedsight.program.program import Program

_WHERE = "data.harmonise"
_AT_ONCE = 256  # images; fixed, so that sums do not depend on the machine


def coupled(program: Program, dataset: Dataset) -> list[Problem]:
    """The problem of statistics of all of a site's images where single ones are protected."""
    if program.data.harmonise != "site" or dataset.site_mean is not None:
        return []
    cause = (
        "a site's mean and deviation are those of all its images, so one image changes what all "
        "others look like, and their gradients with it, which no clip bounds"
    )
    cure = (
        "state public numbers in data.site_mean and data.site_std, set data.harmonise = 'image' or "
        "'histogram', which look at one image alone, or protect whole sites with privacy.name = "
        "'local'"
    )
    return [Problem(_WHERE, cause, cure)]


def opened_problems(program: Program, dataset: Dataset, partition: Partition) -> list[Problem]:
    """What is wrong with the settings of the look, once the images are opened."""
    data, modality = program.data, dataset.preprocess.modality
    if data.harmonise != "none" and modality != "image":
        cause = f"{modality}s have no look"
        return [Problem(_WHERE, cause, "leave it out")]
    if data.harmonise == "site":
        return list(_stated_problems(dataset, partition))
    return []


def _stated_problems(dataset: Dataset, partition: Partition) -> Iterator[Problem]:
    """Numbers that are stated for some of the sites only, or do not fit the channels."""
    channels = dataset.preprocess.channels
    names = [partition.name(site) for site in range(len(partition))]
    for setting, pairs in (("site_mean", dataset.site_mean), ("site_std", dataset.site_std)):
        if pairs is None:
            continue
        try:
            check_sites(pairs, setting, names)
        except DataError as error:
            yield Problem(f"data.{setting}", error.cause, error.cure)
            return
        missing = next((name for name in names if at(pairs, name) is None), None)
        if missing is not None:
            cause = f"site '{missing}' has no number, and others have"
            yield Problem(f"data.{setting}", cause, "state one for every site, or for none")
        for site, values in pairs:
            if len(values) != channels or (setting == "site_std" and min(values) <= 0):
                who = f" for site '{site}'" if site else ""
                cause = f"{list(values)} is given{who}, and the images have {channels} channel(s)"
                cure = f"give {channels} number(s), for site_std above 0"
                yield Problem(f"data.{setting}", cause, cure)


def applied(federation: Federation, pixels: Tensor, site: int) -> Tensor:
    """Pixels [b, c, h, w] of a site, with the mean and deviation that the network expects.

    Normalised, they are (x - the site's mean) / the site's deviation.
    """
    mean, std = (torch.tensor(v, device=pixels.device) for v in look_of(federation, site))
    size = federation.dataset.preprocess
    shape = (1, size.channels, 1, 1)
    goal, width = (torch.tensor(v, device=pixels.device) for v in (size.mean, size.std))
    scale = (width / std).view(shape)
    return (pixels - mean.view(shape)) * scale + goal.view(shape)


def look_of(federation: Federation, site: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of each channel at a site: those that are stated for it, or
    those of its training images. Images of no site (-1) are taken for those of one more site.

    They are computed once in a process; equal images give equal numbers.
    """
    known = federation.__dict__.setdefault("_looks", {})
    if site not in known:
        known[site] = _look_of(federation, site)
    found: tuple[tuple[float, ...], tuple[float, ...]] = known[site]
    return found


def _look_of(federation: Federation, site: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    dataset, partition = federation.dataset, federation.partition
    name = None if site < 0 else partition.name(site)
    mean, std = at(dataset.site_mean, name), at(dataset.site_std, name)
    if mean is not None and std is not None:
        return mean, std
    part, indices = dataset.test, _homeless(federation)
    if site >= 0:
        part, indices = dataset.train, partition.indices(site)
    channels = dataset.preprocess.channels
    total, squares = (torch.zeros(channels, dtype=torch.float64) for _ in range(2))
    every = torch.from_numpy(indices)
    for some in every.split(_AT_ONCE):
        pixels = federation.shifted(part.images.read(some), site, some).double()
        total += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
    values = max(1, len(indices)) * dataset.preprocess.height * dataset.preprocess.width
    means = total / values
    spread = (squares / values - means.square()).clamp(min=0).sqrt().clamp(min=LEAST)
    return tuple(means.tolist()), tuple(spread.tolist())


def _homeless(federation: Federation) -> Indices:
    """The test images that belong to no site that is tested."""
    views = [view.indices for view in federation.views if view.site is None]
    everything = np.arange(len(federation.dataset.test))
    return np.concatenate(views) if views else everything
