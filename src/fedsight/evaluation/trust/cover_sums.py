"""Whole-number sums over one site's test images, of which it follows how large the common model's
answers have to be to cover the truth, where the images stay at the sites.

A site answers one question about the final model: what its images lose at each level. Their length
depends on the task and the classes alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fedsight.client.step import Client
from fedsight.core.sum_form import SumForm
from fedsight.core.threads import one_thread
from fedsight.evaluation.evidence import some
from fedsight.evaluation.trust.units import batches, joined
from fedsight.program.site_data import SiteData
from fedsight.tasks.covering.base import Covering
from fedsight.tasks.covering.levels import UNIT, Tally, summed

log = logging.getLogger(__name__)
HELD, TESTED = "held", "tested"  # what levels are made of, and what shows what came of them
IMAGES = "images"
_FIELDS = ("units", "losses", "sizes", "sized")
# the parts of a site's images, see `images.py`
Three = tuple[Sequence[SiteData], Sequence[SiteData], Sequence[SiteData]]


@dataclass(frozen=True)
class CoverSums:
    """What a site's images lose: of each part of an answer those that were `held` out, and those
    that are `tested`. `images` int64 [2]: how many these are, and of how many groups. No answer
    is larger than `largest`."""

    images: Tensor
    held: Mapping[str, Tally]
    tested: Mapping[str, Tally]
    largest: int

    @classmethod
    def of(cls, client: Client, covering: Covering, images: Three, singly: bool = False) -> Self:
        """Those of one site's images in three parts, of the model that `client` has loaded."""
        count = tallied_singly if singly else tallied
        fitted, cover, shown = images
        halves = held_by_part(covering, fitted, cover)
        held = {part: count(client, half, covering, part) for part, half in halves.items()}
        tested = {part: count(client, shown, covering, part, True) for part in covering.parts}
        federation = client.federation
        largest = covering.largest(len(federation.dataset.classes))
        return cls(_counted(images), held, tested, largest)

    @classmethod
    def read(cls, numbers: Tensor, covering: Covering, classes: int) -> Self:
        """The sums that `numbers` are, as `flat` makes them."""
        found = form(covering, classes).read(numbers)

        def tally(side: str, part: str) -> Tally:
            units, losses, sizes, sized = (found[_name(side, part, one)] for one in _FIELDS)
            return Tally(units, losses, sizes, int(sized))

        both = [{part: tally(side, part) for part in covering.parts} for side in (HELD, TESTED)]
        return cls(found[IMAGES], both[0], both[1], covering.largest(classes))

    def __add__(self, other: CoverSums) -> CoverSums:
        held = {part: one + other.held[part] for part, one in self.held.items()}
        tested = {part: one + other.tested[part] for part, one in self.tested.items()}
        return CoverSums(self.images + other.images, held, tested, self.largest)

    @property
    def flat(self) -> Tensor:
        """All numbers, one field after another."""
        numbers = [self.images]
        for tallies in (self.held, self.tested):
            for one in tallies.values():
                numbers += [one.units, one.losses.flatten(), one.sizes, torch.tensor([one.sized])]
        return torch.cat(numbers)

    @property
    def groups(self) -> int:
        """How many groups, or images that belong to none, are summed."""
        return int(self.images[1])

    @property
    def grouped(self) -> bool:
        """Whether groups of several images count as one."""
        return self.groups < int(self.images[0])

    def is_possible(self, most: int) -> bool:
        """Whether a model can have these on at most so many images."""
        images, groups = self.images.tolist()
        if not 0 <= groups <= images <= most:
            return False
        tallies = [*self.held.values(), *self.tested.values()]
        if not all(_is_possible(one, images, self.largest * UNIT) for one in tallies):
            return False
        first = next(iter(self.tested.values()))
        apart = [*self.held.values(), first]  # no image is in two of these
        return sum(int(one.units.max()) for one in apart) <= int(images)


def form(covering: Covering, classes: int) -> SumForm:
    """The form of these sums, of a model with so many classes."""
    shapes: dict[str, tuple[int, ...]] = {IMAGES: (2,)}
    most: dict[str, int] = {}
    for side in (HELD, TESTED):
        for part in covering.parts:
            groups, steps = covering.groups(part, classes), covering.steps(part)
            each = ((groups,), (groups, steps), (steps,), (1,))
            names = [_name(side, part, one) for one in _FIELDS]
            shapes |= dict(zip(names, each, strict=True))
            most |= {names[1]: UNIT, names[2]: covering.largest(classes) * UNIT}
    return SumForm(shapes, most)


def held_by_part(
    covering: Covering, fitted: Sequence[SiteData], cover: Sequence[SiteData]
) -> dict[str, Sequence[SiteData]]:
    """By which held-out images, which are in two halves, each part of an answer is made large
    enough."""
    if len(covering.parts) == 1:  # nothing else is fitted to images
        return {covering.parts[0]: [*fitted, *cover]}
    return dict(zip(covering.parts, (fitted, cover), strict=True))


def tallied(
    client: Client, data: Sequence[SiteData], covering: Covering, part: str, shown: bool = False
) -> Tally:
    """What the model that the client has loaded loses of one site's images, which make levels or
    only have `shown` what comes of them; those of a group are one unit."""
    task, model = client.federation.program.task, client.model
    classes = len(client.federation.dataset.classes)
    groups, steps = covering.groups(part, classes), covering.steps(part)
    model.eval()
    whole, images = Tally.nothing(groups, steps), joined(data)
    if images is None:
        return whole
    count = covering.shown if shown else covering.counted
    with one_thread(), client.inputs(images) as read, torch.inference_mode():
        for chunks, one in batches(images, task.whole):
            found = summed((count(part, task, model, read(at)) for at in chunks), groups, steps)
            whole = whole + (found.as_one() if one else found)
    return whole


def tallied_singly(
    client: Client, data: Sequence[SiteData], covering: Covering, part: str, shown: bool = False
) -> Tally:
    """The same, where each image is read and asked by itself, so that none can change another's.

    One that cannot be is lost at every level; where people are compared, it is left out.
    """
    images = joined(data)
    if images is None:
        return tallied(client, data, covering, part, shown)
    whole, asked = client.federation.program.task.whole, _Singly(client, images)
    if whole:
        seen = [at for at in range(len(images)) if asked.is_readable(at)]
        readable = some(images, torch.tensor(seen, dtype=torch.int64))
        return tallied(client, [readable], covering, part, shown)
    classes = len(client.federation.dataset.classes)
    groups, steps = covering.groups(part, classes), covering.steps(part)
    total = Tally.nothing(groups, steps)
    for chunks, one in batches(images, False):
        found = [asked.tally(at, covering, part, shown) for at in torch.cat(chunks).tolist()]
        unit = summed(found, groups, steps)
        total = total + (unit.as_one() if one else unit)
    return total


class _Singly:
    """Asks a model for one image at a time, and says once in the log why an image has failed."""

    def __init__(self, client: Client, images: SiteData) -> None:
        self._client, self._images, self._told = client, images, False

    def is_readable(self, at: int) -> bool:
        try:
            self._client.batch(self._images, torch.tensor([at]))
        except Exception as error:
            self._tell(error)
            return False
        return True

    def tally(self, at: int, covering: Covering, part: str, shown: bool) -> Tally:
        try:
            return tallied(
                self._client, [some(self._images, torch.tensor([at]))], covering, part, shown
            )
        except Exception as error:
            self._tell(error)
        classes = len(self._client.federation.dataset.classes)
        return Tally.unknown(covering.groups(part, classes), covering.steps(part))

    def _tell(self, error: Exception) -> None:
        if not self._told:  # the first reason stays in this machine's log
            log.warning("an image counts as unknown to the model", exc_info=error)
        self._told = True


def _name(side: str, part: str, field: str) -> str:
    return f"{side}_{part}_{field}"


def _counted(images: Three) -> Tensor:
    """How many images these are, and how many groups."""
    names = [(at, one.part.unit(place)) for at, part in enumerate(images) for one in part
             for place in one.indices.tolist()]  # fmt: skip
    return torch.tensor([len(names), len(set(names))])


def _is_possible(one: Tally, most: int, largest: int) -> bool:
    """Whether so many units at most, with answers of at most this size, can lose these."""
    if not bool(((one.units >= 0) & (one.units <= most)).all()):
        return False
    within = (one.losses >= 0) & (one.losses <= one.units[:, None] * UNIT)
    if not bool(within.all()) or not bool((one.losses.diff(dim=1) >= 0).all()):
        return False
    if not 0 <= one.sized <= int(one.units[0]):
        return False
    return bool(((one.sizes >= 0) & (one.sizes <= largest * one.sized)).all())
