"""Several runs side by side: programs that are equal but for their seeds are one group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from fedsight.language.message import Text, listed, message, plural
from fedsight.report import first, view
from fedsight.report.phrases import figure_name, known_phrase
from fedsight.report.read import Run
from fedsight.report.sites import site_rows, tally
from fedsight.report.words import (
    NOTHING,
    Words,
    count,
    duration,
    percent,
    points,
    range_of,
    size,
)

Flat = dict[str, str]


@dataclass(frozen=True)
class Member:
    """A run with the name that distinguishes it from the others."""

    run: Run
    name: str
    anchor: str = ""  # of its chapter on the page


@dataclass(frozen=True)
class Group:
    """Runs of one program, with one seed each."""

    name: str
    members: tuple[Member, ...]

    @property
    def headline(self) -> str:
        """The name of the main figure."""
        return self.members[0].run.facts.headline

    @property
    def scores(self) -> list[float]:
        """The main figures that were measured and are finite."""
        found = [view.score(member.run) for member in self.members]
        return [value for value in found if value is not None and math.isfinite(value)]

    @property
    def mean(self) -> float | None:
        """The mean main figure; None if none was measured."""
        return fmean(self.scores) if self.scores else None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest of several seeds; of a single run, the interval by its test set."""
        scores = self.scores
        if len(scores) > 1:
            return min(scores), max(scores)
        return first.interval(self.members[0].run) if scores else None

    @property
    def gains(self) -> list[float]:
        """By run: the main figure minus the mean of sites alone, on the shared test set."""
        found = [view.three_way(member.run) for member in self.members]
        gains = [three.federated - three.mean for three in found if three is not None]
        return [gain for gain in gains if math.isfinite(gain)]


def grouped(members: Sequence[Member]) -> list[Group]:
    """The runs by program, in their order; a run without its program is a group of its own."""
    found: dict[Any, list[Member]] = {}
    for at, member in enumerate(members):
        settings = _settings(member.run)
        key: Any = tuple(sorted(settings.items())) if settings else at
        found.setdefault(key, []).append(member)
    names = [_common([one.name for one in group], group) for group in found.values()]
    return [
        Group(
            name if names.count(name) == 1 else f"{name} #{names[:at].count(name) + 1}", tuple(of)
        )
        for at, (name, of) in enumerate(zip(names, found.values(), strict=True))
    ]


def _common(names: Sequence[str], group: Sequence[Member]) -> str:
    return names[0] if len(names) == 1 else group[0].run.facts.name


def _settings(run: Run) -> Flat:
    """The configuration as dotted keys, without the run's name, its seeds and its workers, which
    depend on the machine and on what else it was doing."""
    table = flat(run.config)
    without = ("name", "speed.workers")
    return {k: v for k, v in table.items() if k not in without and k.rpartition(".")[2] != "seed"}


def flat(table: Mapping[str, Any], prefix: str = "") -> Flat:
    """A configuration as dotted keys with their values as text."""
    values: Flat = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = str(value)
    return values


def seeds(group: Group) -> str:
    """The seeds of a group's runs."""
    found = (flat(member.run.config).get("seed") for member in group.members)
    return ", ".join(seed for seed in found if seed is not None)


def reached(group: Group) -> Words:
    """The main figure: of one run, or the mean of several seeds with their standard deviation."""
    scores = group.scores
    if len(scores) < 2:
        return view.score_words(group.members[0].run, view.score(group.members[0].run))
    return message(
        "{mean} ±\u00a0{spread}", mean=percent(group.mean), spread=f"{100 * stdev(scores):.1f}"
    )


def reached_range(group: Group) -> Words:
    """What the main figure's range is: of several seeds, or the interval of a single run."""
    bounds = group.bounds
    if bounds is None:
        return ""
    if len(group.scores) > 1:
        return message("from {range}", range=range_of(*bounds))
    return message("95 % interval {interval}", interval=range_of(*bounds))


def gain(group: Group) -> Words:
    """The gain over the sites alone on the shared test set, likewise."""
    gains = group.gains
    if not gains:
        return "–"
    if len(gains) == 1:
        return points(gains[0])
    return message(
        "{mean} ±\u00a0{spread}", mean=points(fmean(gains)), spread=f"{100 * stdev(gains):.1f}"
    )


def outcome(group: Group) -> Words:
    """How many sites gain and lose on their own images, on average over the seeds."""
    tallies = [tally(site_rows(member.run)) for member in group.members]
    found = [one for one in tallies if one is not None and one.judged]
    if not found:
        return "–"
    better = fmean(len(one.better) for one in found)
    worse = fmean(len(one.worse) for one in found)
    return message("{better} gain, {worse} lose", better=f"{better:.3g}", worse=f"{worse:.3g}")


def cost(group: Group) -> str:
    """Bytes sent and received, and time, of the group's first run, in short."""
    run = group.members[0].run
    up, down = view.total(run, "bytes_up"), view.total(run, "bytes_down")
    spent = view.total(run, "seconds")
    parts = [] if up is None or down is None else [size(up + down)]
    if spent is not None and math.isfinite(spent):
        parts.append(str(duration(spent)))
    return " · ".join(parts) or NOTHING


def headline(groups: Sequence[Group]) -> Words:
    """The name of the main figure, or of several."""
    return listed(
        (known_phrase(one) for one in dict.fromkeys(group.headline for group in groups)), last="or"
    )


def first_of(groups: Sequence[Group]) -> Text:
    """The answer in one sentence: the best program, and how far the next one is behind."""
    runs = sum(len(group.members) for group in groups)
    measured = [group for group in groups if group.mean is not None]
    several = plural("{count} program", "{count} programs", len(groups), count=count(len(groups)))
    what = message("{programs}, {runs} runs", programs=several, runs=count(runs))
    if len({group.headline for group in groups}) > 1 or len(measured) < 2:
        return message("{what} side by side.", what=what)
    ranked = sorted(measured, key=lambda group: -(group.mean or 0.0))
    best, second = ranked[0], ranked[1]
    values: dict[str, object] = {
        "what": what, "figure": figure_name(best.headline), "best": best.name,
        "reached": reached(best), "second": second.name, "other": reached(second),
    }  # fmt: skip
    if _apart(best, second):
        return message(
            "{what}: {best} has the highest {figure}, {reached}; next is {second} with {other}.",
            **values,
        )
    return message(
        "{what}: {best} has the highest {figure}, {reached}; {second} with {other} is not "
        "clearly behind.",
        **values,
    )


def _apart(best: Group, second: Group) -> bool:
    """Whether the ranges of two groups do not overlap; without ranges nothing is said."""
    one, other = best.bounds, second.bounds
    return one is not None and other is not None and one[0] > other[1]


@dataclass(frozen=True)
class Difference:
    """A setting whose value differs, and the names of the groups that have each value."""

    key: str
    values: tuple[tuple[str, tuple[str, ...]], ...]


def differences(groups: Sequence[Group]) -> list[Difference]:
    """The settings whose values differ between groups."""
    tables = [(group.name, _settings(group.members[0].run)) for group in groups]
    found = []
    for key in sorted({key for _, table in tables for key in table}):
        values: dict[str, list[str]] = {}
        for name, table in tables:
            values.setdefault(table.get(key, "–"), []).append(name)
        if len(values) > 1:
            found.append(Difference(key, tuple((v, tuple(n)) for v, n in values.items())))
    return found
