"""What several seeds of one program show together: mean, spread and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsight.core.intervals import deviation, of_mean

Files = Mapping[str, Any]
Figure = Callable[["Repeat"], float | None]


@dataclass(frozen=True)
class Repeat:
    """The files of one finished run: `run.json`, `summary.json` and `comparison.json`."""

    facts: Files
    summary: Files
    comparison: Files | None = None

    @property
    def alone(self) -> dict[str, float | None]:
        """By site: its own model's figure on its own test images."""
        arms = {} if self.comparison is None else self.comparison["alone"]
        return {site: arm["own_score"] for site, arm in arms.items()}

    @property
    def federated(self) -> dict[str, float | None]:
        """By site: the federated model's figure on the same images."""
        return {site: own.get("score") for site, own in self.summary["by_site"].items()}


def together(repeats: Sequence[Repeat], once: Sequence[str] = ()) -> dict[str, Any]:
    """Mean, standard deviation and 95 % interval of each figure and of each paired difference.

    A difference is taken within each seed, so what a seed does to both arms cancels. Figures by
    site are given only where all seeds have the same sites with the same images. The arms `once`
    were trained once, for all seeds: they have no spread. A figure that a seed lacks is left out.
    """
    overall: dict[str, Figure] = {
        "federated": lambda one: one.summary["score"],
        "alone": lambda one: one.summary.get("alone_mean"),
        "pooled": lambda one: one.summary.get("pooled"),
        "own_federated": lambda one: _mean(one.federated, one.alone),
        "own_alone": lambda one: _mean(one.alone, one.federated),
    }
    figures: dict[str, Any] = {}
    for name, figure in overall.items():
        if found := spread_of([figure(one) for one in repeats], name in once):
            figures[name] = found
    differences = {
        f"{first}_minus_{second.removeprefix('own_')}": difference_of(figures, first, second)
        for first, second in (
            ("federated", "alone"),
            ("federated", "pooled"),
            ("own_federated", "own_alone"),
        )
        if first in figures and second in figures
    }
    return {
        "figures": figures,
        "differences": differences,
        "sites": _sites(repeats) if _same_sites(repeats) else None,
    }


def spread_of(values: Sequence[float | None], once: bool = False) -> dict[str, Any] | None:
    """Mean, standard deviation and 95 % interval of the mean; None if a value is missing, or all.

    What was trained `once`, for all seeds, has no spread.
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    low, high = of_mean(known)
    found: dict[str, Any] = {
        "mean": sum(known) / len(known),
        "deviation": deviation(known),
        "low": low,
        "high": high,
        "values": known,
    }
    return found | {"deviation": None, "low": None, "high": None} if once else found


def difference_of(figures: Mapping[str, Any], first: str, second: str) -> dict[str, Any]:
    """The spread of the differences between two of the `figures`, within each seed."""
    pairs = zip(figures[first]["values"], figures[second]["values"], strict=True)
    found = spread_of([one - other for one, other in pairs])
    assert found is not None
    return found


def _mean(figures: Mapping[str, float | None], also: Mapping[str, float | None]) -> float | None:
    """The mean of `figures` over the sites that `also` has a figure of."""
    known = [
        value for site, value in figures.items() if value is not None and also.get(site) is not None
    ]
    return sum(known) / len(known) if known else None


def _same_sites(repeats: Sequence[Repeat]) -> bool:
    """Whether all seeds have the same sites with as many images of each class."""
    first = repeats[0].facts["sites"]
    return all(one.facts["sites"] == first for one in repeats)


def _sites(repeats: Sequence[Repeat]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for site in repeats[0].federated:
        federated = spread_of([one.federated.get(site) for one in repeats])
        alone = spread_of([one.alone.get(site) for one in repeats])
        if federated is None:
            continue
        found[site] = {"federated": federated}
        if alone is not None:
            arms = {"federated": federated, "alone": alone}
            found[site] |= {
                "alone": alone,
                "federated_minus_alone": difference_of(arms, "federated", "alone"),
            }
    return found
