"""The budget of a baseline: as many passes over its images as the federation's training took."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsight.program.virtual_time import VirtualTime
from fedsight.program.workload import passes_of

if TYPE_CHECKING:
    from fedsight.program.federation import Federation


@dataclass(frozen=True)
class Budget:
    """How long a baseline trains: `rounds`, and in them `passes` over its images in total.

    `passes` need not be whole: a site of which a third of all cohorts were drawn saw its images in
    a third of the rounds.
    """

    rounds: int
    passes: float

    def span(self, round: int, images: int) -> tuple[int, int]:
        """Which of the endless sequence of passes over `images` images a round (from 1) takes:
        from the first number up to the second."""
        return self._taken(round - 1, images), self._taken(round, images)

    def _taken(self, rounds: int, images: int) -> int:
        # Half an image is rounded up, so that the sum over the rounds is that of all passes.
        return math.floor(self.passes * images * rounds / self.rounds + 0.5)

    def whole(self, epochs: int) -> bool:
        """Whether every round has exactly `epochs` passes."""
        return math.isclose(self.passes, self.rounds * epochs, rel_tol=1e-9)


def planned(federation: Federation) -> Budget:
    """The budget if every site takes part in every round that was planned."""
    rounds = federation.program.rounds.rounds
    sizes = list(map(federation.size, range(federation.population)))
    seen = sum(passes_of(federation.program, images) * images for images in sizes)
    return Budget(rounds, rounds * seen / max(1, sum(sizes)))


def spent(federation: Federation, history: Iterable[Mapping[str, Any]]) -> Budget:
    """What the federation's training took, by its `history`: the mean over all training images.

    Only accepted replies count, because only they moved the model. Under DP-SGD, which draws its
    images, it is the expected number.
    """
    lines = _rounds(history)
    seen = sum(passes * size for passes, size in _sites(federation, lines).values())
    images = sum(map(federation.size, range(federation.population)))
    return Budget(max(1, len(lines)), seen / max(1, images))


def passes_by_site(
    federation: Federation, history: Iterable[Mapping[str, Any]]
) -> dict[str, float]:
    """The passes that each site has taken over its own images, by name."""
    return {name: passes for name, (passes, _) in _sites(federation, _rounds(history)).items()}


def _rounds(history: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of the rounds; the opening, round 0, and the closing take no pass."""
    return [line for line in history if line["round"] > 0 and "finish" not in line]


def _sites(federation: Federation, lines: list[Mapping[str, Any]]) -> dict[str, tuple[float, int]]:
    """(passes, images) of each site, by name."""
    time = VirtualTime(federation)
    sizes = {federation.name(one): federation.size(one) for one in range(federation.population)}
    passes = dict.fromkeys(sizes, 0.0)
    for line in lines:
        for name in sizes.keys() & line["sites"]:
            # A slow site may have done fewer epochs or steps.
            passes[name] += passes_of(time.lessened(line["round"], name, sizes[name]), sizes[name])
    return {name: (passes[name], size) for name, size in sizes.items()}
