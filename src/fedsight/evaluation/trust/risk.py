"""Answers that are large enough to cover the truth, from losses that sites add up.

Conformal risk control (Angelopoulos et al. 2022, arXiv:2208.02814, equation 4 with B = 1): of n
held-out units, each has a loss from 0 to 1 at each level, which does not fall as levels rise. The
highest level at which the losses' sum and 1 more are at most (n + 1) times what is allowed gives a
new unit, if it is exchangeable with them, an expected loss of at most that. Sites add whole numbers
(`tasks/covering/levels.py`), rounded so that no level is too high.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.evaluation.trust.conformal import SLACK, smallest
from fedsight.evaluation.trust.sets import CLASS, MOST_IMAGES, SITE
from fedsight.program.views import LISTED
from fedsight.tasks.covering.base import Covering
from fedsight.tasks.covering.levels import UNIT, Tally

MOST_SHARE = 1 << 16
ALL = -1  # the level of a class of which too little is known: nothing of it is ever left out


def level(units: int, losses: Tensor, coverage: float) -> int | None:
    """The highest level with an expected loss of at most 1 - coverage, from the sums of losses
    [levels] of so many units, in UNIT-ths; None: no level has it."""
    allowed = (units + 1) * (1 - coverage + SLACK) * UNIT
    good = losses.double() + UNIT <= allowed
    return int(good.sum()) - 1 if bool(good[0]) else None


@dataclass(frozen=True)
class Losses:
    """What was counted of one part of a task's answers: of all held-out units by group, and of
    those of each site by its name."""

    everything: Tally
    sites: Mapping[str, Tally]

    def plain(self) -> dict[str, Any]:
        """The sums as values for JSON, without sizes."""
        sites = {name: _plain(one) for name, one in self.sites.items()}
        return {"groups": _plain(self.everything), "sites": sites}

    @classmethod
    def of(cls, plain: Mapping[str, Any], covering: Covering, part: str, classes: int) -> Losses:
        """The sums that `plain` describes, of a model of so many classes.

        Raises KeyError, TypeError, ValueError or IndexError for what `plain` does not make.
        """
        if len(plain["sites"]) > LISTED:
            raise ValueError("it is of more sites than a run lists")
        steps, own = covering.steps(part), covering.site_groups(part)
        whole = _tally(plain["groups"], covering.groups(part, classes), steps)
        sites = {name: _tally(one, own, steps) for name, one in plain["sites"].items()}
        return cls(whole, sites)


@dataclass(frozen=True)
class Risk:
    """What was counted of each part, and for whom a guarantee is asked. `grouped`: units are groups
    of images. `one_in`: all of this is one site's, and rests on one in so many of its test images.
    """

    covering: Covering
    guarantee: str
    parts: Mapping[str, Losses]
    grouped: bool = False
    one_in: int | None = None

    def levels(
        self, coverage: float, site: str | None = None, guarantee: str | None = None
    ) -> dict[str, Tensor]:
        """The levels [classes] of each part, with a coverage of at least this for those whom the
        guarantee is for; ALL for a class with too few units.

        Raises DataError where no level is known to have it, with the smallest number of units that
        is enough, and for a site that is not known.
        """
        found: dict[str, Tensor] = {}
        for part in self.covering.parts:
            found[part] = self._levels(part, coverage, (guarantee or self.guarantee, site), found)
        return found

    def plain(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        parts = {name: one.plain() for name, one in self.parts.items()}
        return {
            "covers": self.covering.kind, "guarantee": self.guarantee, "grouped": self.grouped,
            "parts": parts, **({} if self.one_in is None else {"one_in": self.one_in}),
        }  # fmt: skip

    @classmethod
    def of(cls, plain: Mapping[str, Any], covering: Covering, classes: int) -> Risk:
        """What `plain` describes, of a task with this covering and so many classes; errors as those
        of `Losses.of`."""
        if plain["covers"] != covering.kind:
            raise ValueError("it is of another task")
        if plain["guarantee"] not in covering.guarantees:
            raise ValueError(f"the guarantee is {plain['guarantee']!r}")
        if type(plain["grouped"]) is not bool:
            raise ValueError(f"'grouped' is {plain['grouped']!r}, which is not true or false")
        parts = {
            part: Losses.of(plain["parts"][part], covering, part, classes)
            for part in covering.parts
        }
        one_in = plain.get("one_in")
        if not (one_in is None or (type(one_in) is int and 0 < one_in < MOST_SHARE)):
            raise ValueError("the share of images that it rests on is not a whole number")
        return cls(covering, plain["guarantee"], parts, plain["grouped"], one_in)

    def _levels(
        self, part: str, coverage: float, whose: tuple[str, str | None], before: dict[str, Tensor]
    ) -> Tensor:
        guarantee, site = whose
        losses, group = self.parts[part], self.covering.group(part, before)
        whole, groups = losses.everything, len(losses.everything.units)
        if guarantee == CLASS and self.covering.site_groups(part) == 1:
            each = [level(n, row, coverage) for n, row in by_group(whole)[1:]]
            if all(one is None for one in each):
                raise self._none(max(n for n, _ in by_group(whole)[1:]), coverage, of_each=True)
            return torch.tensor([ALL if one is None else one for one in each])
        if guarantee == SITE:
            whole = self._of_site(losses, site)
        units, row = by_group(whole)[group]
        found = level(units, row, coverage)
        if found is None:
            raise self._none(units, coverage)
        used = self.covering.rounded(part, found)
        return torch.full((max(1, groups - 1),), used)

    def _of_site(self, losses: Losses, site: str | None) -> Tally:
        if not losses.sites:
            raise DataError(
                "no site has held-out inputs of its own",
                "hold some out, by rounds.validation, or set trust.guarantee = 'mixture'",
            )
        if site is None or site not in losses.sites:
            raise DataError(
                "the guarantee of these sets is each site's own, and no site with held-out "
                "inputs is named",
                f"name one of: {', '.join([*losses.sites][:10])}",
            )
        return losses.sites[site]

    def _none(self, units: int, coverage: float, of_each: bool = False) -> DataError:
        """Why so many units have no level."""
        least = smallest(coverage)
        if units >= least:
            return DataError(
                f"even the largest answers miss too much for a coverage of {coverage:g}",
                "ask for a lower coverage, or train a better model",
            )
        if self.grouped:
            error = few_groups(units, coverage, of_each)
        elif of_each:
            error = few_of_each(units, coverage)
        else:
            error = self.covering.few(units, coverage, least)
        if self.one_in is None:
            return error
        return DataError(error.cause, self._more(self.one_in * least, of_each))

    def _more(self, least: int, of_each: bool) -> str:
        """How many test images a site should have."""
        what = "of each class " if of_each else ""
        if self.grouped:
            return f"have test images {what}of at least {least} groups, or ask for a lower coverage"
        if of_each:
            return f"have at least {least} test images of each class, or ask for a lower coverage"
        return self.covering.more(least)


def few_groups(units: int, coverage: float, of_each: bool) -> DataError:
    """The held-out images are of so many groups; `of_each`: or those of every class are, at most.
    That is too few."""
    whose = " of each class, at most," if of_each else ""
    return DataError(
        f"the held-out inputs{whose} are of {units} groups, each of which counts once: too few for "
        f"answers with a coverage of {coverage:g}",
        f"hold out inputs of at least {smallest(coverage)} groups, "
        "with rounds.validation, or ask for a lower coverage",
    )


def few_of_each(units: int, coverage: float) -> DataError:
    """Every class has so many held-out units or fewer, and that is too few."""
    return DataError(
        f"{units} held-out inputs of each class, at most, are too few for sets with a coverage of "
        f"{coverage:g}",
        f"hold out at least {smallest(coverage)} of each class, with rounds.validation, or ask for "
        "a lower coverage",
    )


def by_group(tally: Tally) -> list[tuple[int, Tensor]]:
    """The number of units of each group, and their sums of losses [levels]."""
    return [*zip(tally.units.tolist(), tally.losses, strict=True)]


def shown(tally: Tally, group: int, at: int) -> float | None:
    """One minus the mean loss of the units of a group at a level; None without units."""
    units, losses = by_group(tally)[group]
    if not units:
        return None
    return 1.0 if at == ALL else 1 - float(losses[at]) / UNIT / units


def _plain(tally: Tally) -> list[Any]:
    """Of each group: how many units, and then by level what the sums rise by, where they do."""
    found = []
    for units, losses in by_group(tally):
        rises = losses.diff(prepend=losses.new_zeros(1))
        places = torch.nonzero(rises).flatten().tolist()
        found.append([units, *([place, int(rises[place])] for place in places)])
    return found


def _tally(plain: Any, groups: int, steps: int) -> Tally:
    if len(plain) != groups:
        raise ValueError("it is not of as many classes as the run")
    made = Tally.nothing(groups, steps)
    for group, (units, *rises) in enumerate(plain):
        if not (type(units) is int and 0 <= units < MOST_IMAGES):
            raise ValueError("a number of units is not a whole number")
        each, last = torch.zeros(steps, dtype=torch.int64), -1
        for place, rise in rises:  # none where even the smallest answers lose nothing
            good = type(place) is type(rise) is int and place > last
            if not (good and 0 < rise <= units * UNIT):
                raise ValueError("a sum of losses does not rise by whole numbers, level by level")
            each[place], last = rise, place
        sums = each.double().cumsum(0)
        if float(sums[-1]) > units * UNIT:
            raise ValueError("units lose more than they have")
        made.units[group], made.losses[group] = units, each.cumsum(0)
    return made
