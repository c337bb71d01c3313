"""A noisy release as the accountant sees it: noise, sampling and neighbouring relation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from fedsight.core.errors import FedSightError

Neighbours = Literal["add_remove", "replace_one"]
# The largest noise multiplier. It hides far more images than a site may have, and its square is a
# number, as accounting and errors of figures need: whoever chooses a program may state any noise.
MOST_NOISE = 1e9
EventKind = Literal["gaussian", "poisson", "fixed_size", "matrix", "skellam", "laplace"]


@dataclass(frozen=True)
class Event:
    """One release with noise of standard deviation `noise` in units of the clipping norm.

    Create it with the functions below or through a sampler. Two data sets are neighbours if one has
    an additional client or example (`add_remove`), or if one client or example is replaced by
    another (`replace_one`). In the latter case an update can move by twice the clipping norm, so
    `noise` counts half. Raises FedSightError for values that are not possible.
    """

    kind: EventKind
    noise: float  # standard deviation (Laplace: scale) over the norm of one contribution
    neighbours: Neighbours = "add_remove"
    rate: float = 1.0  # poisson: probability of taking part
    population: int = 0  # fixed_size: number of clients
    sample: int = 0  # fixed_size: number of participants
    sensitivity: float = 1.0  # matrix: of the whole stream, for a norm of 1 per round
    l1: float = 0.0  # skellam: L1 and L2 sensitivity of the integers
    l2: float = 0.0

    def __post_init__(self) -> None:
        numbers = {f.name: getattr(self, f.name) for f in fields(self) if f.type in ("float",)}
        sizes = self.population, self.sample
        good = (
            self.kind in get_args(EventKind)
            and self.neighbours in get_args(Neighbours)
            and all(
                isinstance(value, float | int)
                and not isinstance(value, bool)
                and math.isfinite(value)
                and value >= 0
                for value in numbers.values()
            )
            and self.rate <= 1
            and self.sensitivity > 0
            and all(type(size) is int for size in sizes)
            and (self.kind == "poisson" or self.rate == 1)
            and (self.kind == "matrix" or self.sensitivity == 1)
        )
        if good and self.kind == "fixed_size":
            good = 0 < self.sample <= self.population and self.neighbours == "replace_one"
        if good and self.kind == "poisson":
            good = self.neighbours == "add_remove"
        if good and self.kind == "skellam":
            good = self.l2 > 0 and self.l1 >= self.l2
        if not good:
            raise FedSightError(
                f"{asdict(self)} is not a valid release",
                "let the sampler or the mechanism create the event; if it was read from a file, "
                "that file was altered or written by another version",
            )

    def under(self, relation: Neighbours) -> float:
        """Noise over sensitivity under `relation`; a matrix event is the whole stream of rounds."""
        noise = self.noise / self.sensitivity
        return noise if relation == "add_remove" else noise / 2

    def table(self) -> dict[str, Any]:
        """As plain values, without those that its kind does not use."""
        usual = {item.name: item.default for item in fields(self)}
        return {
            name: value
            for name, value in asdict(self).items()
            if name in ("kind", "noise", "neighbours") or value != usual[name]
        }

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Event:
        """The event from `table()`; FedSightError if it is not one."""
        known = {item.name for item in fields(cls)}
        if not {"kind", "noise", "neighbours"} <= table.keys() <= known:
            raise FedSightError(
                f"{dict(table)} does not describe a release",
                "the file was altered or written by another version",
            )
        return cls(**table)


def gaussian(noise: float, neighbours: Neighbours = "add_remove") -> Event:
    """Gaussian noise without sampling (Dwork and Roth 2014, appendix A)."""
    return Event("gaussian", noise, neighbours)


def poisson(noise: float, rate: float) -> Event:
    """Gaussian noise on a Poisson sample (Mironov, Talwar and Zhang 2019)."""
    return Event("poisson", noise, rate=rate) if rate < 1 else gaussian(noise)


def fixed_size(noise: float, population: int, sample: int) -> Event:
    """Gaussian noise on a fixed-size sample without replacement (Wang et al. 2019)."""
    if sample == population:
        return gaussian(noise, "replace_one")
    return Event("fixed_size", noise, "replace_one", population=population, sample=sample)


def matrix(noise: float, sensitivity: float) -> Event:
    """Correlated Gaussian noise over a whole stream of rounds (Denisov et al. 2022)."""
    return Event("matrix", noise, sensitivity=sensitivity)


def skellam(variance: float, l1: float, l2: float, neighbours: Neighbours = "add_remove") -> Event:
    """Skellam noise of `variance` on integers with these sensitivities (Agarwal et al. 2021)."""
    return Event("skellam", math.sqrt(variance) / l2, neighbours, l1=l1, l2=l2)


def laplace(epsilon: float, neighbours: Neighbours = "add_remove") -> Event:
    """Laplace noise that by itself is `epsilon`-private under `neighbours`."""
    noise = 1 / epsilon
    return Event("laplace", noise if neighbours == "add_remove" else 2 * noise, neighbours)
