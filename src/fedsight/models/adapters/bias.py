"""Bias-only fine-tuning: the shifts of a network learn, and nothing that multiplies."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fedsight.models.adapters.base import LayerAdapter, adapters
from fedsight.models.base import Network
from fedsight.models.norms import FrozenNorm


@adapters.add("bias", paper="Ben Zaken et al. 2022 (BitFit), section 3")
class BiasOnly(LayerAdapter):
    """The biases of layers and norms learn, and the head; all else is frozen.

    A frozen norm's shift is its bias. A layer without bias keeps none.
    """

    def suits(self, part: nn.Module) -> bool:
        """A layer with a bias of its own, of whatever kind, or a frozen norm."""
        own = dict(part.named_parameters(recurse=False))
        return "bias" in own or isinstance(part, FrozenNorm)

    def learning(
        self, network: Network, chosen: Mapping[str, nn.Module], seed: int
    ) -> frozenset[str]:
        """The biases; shifts of frozen norms become parameters."""
        found = set()
        for name, part in chosen.items():
            if isinstance(part, FrozenNorm):
                part.let_shift_learn()
                found.add(f"{name}.shift")
            elif f"{name}.bias" not in network.frozen:
                found.add(f"{name}.bias")
        return frozenset(found)

    def note(self, chosen: int, suited: int) -> str:
        """How many layers have it."""
        return f"the biases of {chosen} of {suited} layers with a bias learn"
