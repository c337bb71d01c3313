"""What algorithms have in common whose networks stay at their sites, and can be of any kind."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from fedsight.algorithms.base import Algorithm, Local, Phase
from fedsight.core.layout import Kind
from fedsight.core.types import Memory, Payload
from fedsight.models.base import Network


class KeptNetworks(Algorithm):
    """Base: all layers are personal. What travels is a tensor beside them, `beside`, which no
    gradient moves, and the sums of whole numbers that the next one is made of."""

    parts: ClassVar[tuple[str, ...]] = ()
    counts_after: ClassVar[bool] = True
    contrasts: ClassVar[bool] = False
    beside: ClassVar[str]  # the name of the tensor

    def with_beside(self, network: Network, shape: tuple[int, ...]) -> Network:
        """The network, and beside its layers the tensor, which is zero."""
        network.module.register_parameter(self.beside, nn.Parameter(torch.zeros(shape)))
        return network

    def kind(self, name: str, kind: Kind, network: Network) -> Kind:
        """All layers are personal."""
        return kind if name == self.beside else Kind.PERSONAL

    def phases(self, length: int) -> list[Phase]:
        """The layers are trained, and nothing else."""
        return [Phase(length, frozenset({Kind.PERSONAL}))]

    def finish(self, vector: torch.Tensor, local: Local) -> tuple[Payload, Memory]:
        """Nothing but the sums travels."""
        return {}, {}

    @property
    def remembers(self) -> bool:
        """Sites keep their networks, and nothing else."""
        return False
