"""The facts of a program that decide what goes together: from its parts, never from their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fedsight.algorithms.base import Algorithm
from fedsight.core.layout import Kind, Layout
from fedsight.models.base import Network
from fedsight.program.sketch import Sketch

if TYPE_CHECKING:
    from fedsight.program.program import Program


@dataclass(frozen=True)
class Facts:
    """The facts that the rules depend on."""

    program: Program
    travelling_statistics: bool  # running statistics that travel
    kept_statistics: bool  # running statistics that stay at the site
    personal: bool  # parameters that stay at the site: a slice, or a whole model of its own
    frozen: bool  # tensors that are neither trained nor sent

    @classmethod
    def of(cls, program: Program, network: Network | None = None) -> Facts:
        """The facts of `program`; without its network, those that a sketch of one can show."""
        frozen = network is None and bool(program.train.only or program.adapter.adapts)
        if network is None:
            # The effect of `train.only` and of an adapter is known only for the real network.
            network = Sketch(program.model.norm == "batch" and not frozen).network()
        layout = program.layout(network)
        statistics = {name for pair in network.statistics for name in pair}
        kept = {e.name for e in layout.entries if e.kind == Kind.PERSONAL}
        return cls(
            program,
            layout.length(Kind.BUFFER) > 0,
            bool(kept & statistics),
            bool(kept - statistics) or program.algorithm.owns,
            frozen or layout.length(Kind.FROZEN) > 0,
        )

    @property
    def remembers(self) -> bool:
        """Whether sites train from what earlier rounds left at them."""
        return (
            self.personal
            or self.kept_statistics
            or self.program.algorithm.remembers
            or self.program.codec.up.feedback
            or (self.program.codec.auto and not self.program.secure.rounds_values)
        )


def personalises(algorithm: Algorithm) -> bool:
    """Whether the algorithm keeps some of a network's parts, if it has them, at the sites."""
    with torch.random.fork_rng(devices=[]):
        sketch = Sketch(batch_norm=True).network()
    entries = Layout.of(sketch.module).entries
    return any(algorithm.kind(e.name, e.kind, sketch) == Kind.PERSONAL for e in entries)
