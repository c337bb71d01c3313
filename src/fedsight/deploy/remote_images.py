"""Images that stay at the sites: the coordinator knows only how many there are, and where."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NoReturn, overload

import numpy as np
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.data.base import Part
from fedsight.program.views import View


class RemoteImages:
    """Stands for `count` images that this process does not have."""

    elsewhere: ClassVar[bool] = True

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def read(self, indices: Tensor) -> NoReturn:
        """Always raises DataError."""
        raise DataError(
            "the images of a deployed federation stay at its sites", "view them at the site"
        )

    def name(self, index: int) -> str:
        """The same for every image: file names stay at the site."""
        return "remote image"


class ImageSites(Sequence[str]):
    """The site of each image, where each site's images follow one another.

    Takes memory per site, not per image, because sites choose the counts themselves.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        """`counts`: number of images of each site, in order."""
        self._names = list(counts)
        self._ends = list(itertools.accumulate(counts.values(), initial=0))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        chosen = range(len(self))[index]  # raises IndexError, and resolves negative indices
        if isinstance(chosen, range):
            return [self[one] for one in chosen]
        return self._names[bisect.bisect_right(self._ends, chosen) - 1]

    def __iter__(self) -> Iterator[str]:
        for name, (start, end) in zip(self._names, itertools.pairwise(self._ends), strict=True):
            yield from itertools.repeat(name, end - start)

    def views(self) -> tuple[View, ...]:
        """A view of each site's own images; none for a site without images."""
        spans = enumerate(itertools.pairwise(self._ends))
        return tuple(View(site, np.arange(a, b)) for site, (a, b) in spans if a < b)


def remote_test_part(counts: Mapping[str, int]) -> Part:
    """A test part in which each site has `counts[site]` images of its own."""
    sites = ImageSites(counts)
    return Part(RemoteImages(len(sites)), np.zeros(len(sites), np.int64), sites)
