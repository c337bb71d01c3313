"""Images that the coordinator does not have: how many there are, and at which sites."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn, overload

import numpy as np
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.data.base import Part
from fedsight.program.federation import View


class RemoteImages:
    """Images that this process does not have and must not ask for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def read(self, indices: Tensor) -> NoReturn:
        """They never come here."""
        raise DataError("the images of a deployed federation stay at its sites", "ask the site")

    def name(self, index: int) -> str:
        """Nobody here knows."""
        return "elsewhere"


class Owners(Sequence[str]):
    """The name of each image's site, where sites have theirs one after the other.

    Counts are a site's own word: what it may name costs no memory here.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        """`counts`: images of each site, in their order."""
        self._names = list(counts)
        self._ends = list(itertools.accumulate(counts.values(), initial=0))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        chosen = range(len(self))[index]  # raises IndexError, and counts from the end
        if isinstance(chosen, range):
            return [self[one] for one in chosen]
        return self._names[bisect.bisect_right(self._ends, chosen) - 1]

    def __iter__(self) -> Iterator[str]:
        for name, (start, end) in zip(self._names, itertools.pairwise(self._ends), strict=True):
            yield from itertools.repeat(name, end - start)

    def views(self) -> tuple[View, ...]:
        """The images of each site that has some, as that site sees them."""
        spans = enumerate(itertools.pairwise(self._ends))
        return tuple(View(site, np.arange(a, b)) for site, (a, b) in spans if a < b)


def part(counts: Mapping[str, int]) -> Part:
    """A test part of which each site has so many images."""
    owners = Owners(counts)
    return Part(RemoteImages(len(owners)), np.zeros(len(owners), np.int64), owners)
