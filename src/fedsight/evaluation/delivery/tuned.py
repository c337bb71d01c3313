"""The shared model trained a little further on a site's own images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from fedsight.client.step import Client
from fedsight.core.types import Order
from fedsight.evaluation.delivery.base import Candidate, Delivery, SiteModels, deliveries
from fedsight.evaluation.delivery.corrected import corrected

PASSES = 2  # over the site's images
SLOWER = 3.0  # how much lower the learning rate is than it was at the start of the run
SHARES = (0.5, 1.0)  # of the way from the shared model to the trained one
STRENGTHS = (0.25, 0.5)  # of a correction for label proportions that training has begun


@deliveries.add("tuned", source="Wortsman et al. 2022, arXiv:2109.01903, eq. 1")
class Tuned(Delivery):
    """The shared model, fine-tuned at the site, and half-way between the two.

    Between the weights of a network and those after fine-tuning there are often better ones than
    either: they fit the site, and have forgotten less of what it has few images of.
    """

    nearest: ClassVar[int] = 2

    def candidates(self, at: SiteModels) -> Iterable[Candidate]:
        """One for each share, and those corrected; none for algorithms that take no steps."""
        trained = _trained(at)
        if trained is None:
            return
        for share in SHARES:
            vector = at.shared.lerp(trained, share)
            yield Candidate("tuned", vector, {"share": share})
            yield from corrected("tuned", at, vector, STRENGTHS, share=share)


def _trained(at: SiteModels) -> Tensor | None:
    """The vector [size] after training."""
    alone, layout = at.client.federation, at.client.layout
    program = alone.program
    if not sum(phase.length for phase in program.algorithm.phases(PASSES)):
        return None
    train = program.train.model_copy(
        update={
            "epochs": PASSES,
            "steps": None,
            "lr": program.train.lr / SLOWER,
            "groups": tuple(
                group.model_copy(update={"lr": group.lr / SLOWER}) for group in program.train.groups
            ),
            "schedule": "constant",
            "warmup": 0,
            "restarts": (),
        }
    )
    client = Client(alone.under(replace(program, train=train)), at.speed)
    order = Order(1, at.shared[layout.travelling], {})
    client.step(order, 0, {"personal": at.shared[layout.personal]})
    return client.vector.cpu().clone()
