"""FedEx-LoRA: the mean of the sites' adapters is exact, because frozen weights take up the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsight.algorithms.base import Algorithm, algorithms
from fedsight.core.errors import Problem
from fedsight.core.layout import Layout
from fedsight.core.types import Derived
from fedsight.models.base import Network
from fedsight.models.low_rank import Products, beside_factors

if TYPE_CHECKING:
    from fedsight.program.program import Program


@algorithms.add("fedex-lora", paper="Singhal et al. 2024 (FedEx-LoRA), section 4")
class FedExLoRA(Algorithm):
    """LoRA with exact averaging: after a round the model is the weighted mean of the sites' models.

    The mean of B times the mean of A is not the mean of BA. The coordinator, to which the sites
    send A and B, adds the difference (the residual) to W, which then travels to the sites with
    every model. Everything else is as in FedAvg.
    """

    def moves(self, layout: Layout) -> frozenset[str]:
        """Each weight W beside an A and a B that learn."""
        return beside_factors(layout)

    def derived(self, network: Network, layout: Layout) -> Derived | None:
        """The product of a site's changes of B and A.

        (B + b)(A + a) = BA + Ba + bA + ba, and all but ba is linear in the changes b and a. So the
        residual is the mean of ba less the product of the means of b and a.
        """
        products = Products.moving(network.module, layout)
        return products if products.factors else None

    def check(self, program: Program) -> list[Problem]:
        """An adapter that learns two factors."""
        if program.adapter.multiplies:
            return []
        cause = (
            "FedEx-LoRA adds what the mean of two learnt factors misses, and the adapter "
            f"'{program.adapter.registered}' does not learn two"
        )
        cure = "set adapter.name = 'lora', or choose fedavg"
        return [Problem("algorithm.name", cause, cure)]
