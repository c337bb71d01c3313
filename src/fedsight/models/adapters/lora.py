"""LoRA: changes of low rank beside frozen weights; FFA-LoRA, whose mean over sites is exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import nn
from torch.nn.utils import parametrize

from fedsight.core.errors import Problem
from fedsight.core.rng import generator
from fedsight.models.adapters.base import LayerAdapter, adapters, listed
from fedsight.models.base import Network
from fedsight.models.low_rank import PLACE, LowRank, sides

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@adapters.add("lora", paper="Hu et al. 2021, equation 3")
class LoRA(LayerAdapter):
    """Each adapted weight W becomes W + alpha / rank * BA; A and B learn, and W is frozen.

    Unless layers are named, all linear layers and convolutions are adapted, apart from the head,
    grouped (depthwise) convolutions, and layers whose A and B would be no smaller than W. The mean
    of A and the mean of B over sites do not give the mean of BA. FFA-LoRA's do; with the algorithm
    'fedex-lora', the frozen weights take up the difference.
    """

    multiplies: ClassVar[bool] = True
    what: ClassVar[str] = "LoRA"
    learns: ClassVar[tuple[str, ...]] = ("A", "B")

    rank: int = Field(4, ge=1)  # of A [rank, i] and B [o, rank]
    alpha: float = Field(8.0, gt=0)  # the change is scaled by alpha / rank

    def suits(self, part: nn.Module) -> bool:
        """A linear or convolutional layer whose weight nothing else computes."""
        return isinstance(part, ADAPTABLE) and not parametrize.is_parametrized(part, "weight")

    def default(self, part: nn.Module) -> bool:
        """Where the adapter is smaller than the weight, and the weight is not grouped."""
        outputs, inputs = sides(part.weight.shape)  # type: ignore[arg-type]
        smaller = self.rank * (outputs + inputs) < outputs * inputs
        return smaller and getattr(part, "groups", 1) == 1

    def problems(
        self, chosen: Mapping[str, nn.Module], suited: Mapping[str, nn.Module]
    ) -> list[Problem]:
        """A rank that a layer's weight cannot have."""
        most = {name: min(sides(part.weight.shape)) for name, part in chosen.items()}  # type: ignore[arg-type]
        over = [f"{name} ({rank})" for name, rank in most.items() if rank < self.rank]
        if over:
            cause = f"the rank {self.rank} is larger than that of the weight of: {listed(over)}"
            cure = f"lower it to {min(most.values())} or less, or leave these layers out"
            return [Problem("adapter.rank", cause, cure)]
        if suited and not chosen and not self.layers:
            cause = f"with rank {self.rank} no layer's adapter would be smaller than its weight"
            return [Problem("adapter.rank", cause, "lower it, or name layers in adapter.layers")]
        return []

    def learning(
        self, network: Network, chosen: Mapping[str, nn.Module], seed: int
    ) -> frozenset[str]:
        """A follows from the seed and the layer's name; what learns is A and B, or B."""
        for name, part in chosen.items():
            draws = generator(seed, "adapter", name)
            change = LowRank(part.weight.shape, self.rank, self.alpha / self.rank, draws)  # type: ignore[arg-type]
            parametrize.register_parametrization(part, "weight", change)
        return frozenset(f"{name}.{PLACE}.0.{end}" for name in chosen for end in self.learns)

    def note(self, chosen: int, suited: int) -> str:
        """How many layers have it."""
        return (
            f"{self.what} of rank {self.rank} changes {chosen} of {suited} linear and "
            "convolutional layers"
        )


@adapters.add("ffa-lora", paper="Sun et al. 2024 (FFA-LoRA), section 4")
class FFALoRA(LoRA):
    """LoRA in which A stays as it was drawn and only B learns.

    The change is then linear in what learns, so the mean over sites is exactly the mean of their
    merged weights, and half as much travels. Noise for privacy is not multiplied by other noise.
    """

    multiplies: ClassVar[bool] = False
    what: ClassVar[str] = "FFA-LoRA"
    learns: ClassVar[tuple[str, ...]] = ("B",)
