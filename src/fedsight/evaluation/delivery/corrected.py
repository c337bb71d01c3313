"""The shared model with its scores corrected for how frequent the classes are at a site."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from torch import Tensor

from fedsight.core.errors import ModelError
from fedsight.core.layout import Entry, Kind
from fedsight.evaluation.delivery.base import Candidate, Delivery, SiteModels, deliveries
from fedsight.models.features import linear_head

STRENGTHS = (0.25, 0.5, 0.75, 1.0)


@deliveries.add("corrected", source="Saerens et al. 2002, doi:10.1162/089976602753284446, eq. 2.4")
class Corrected(Delivery):
    """The shared model for the site's own label proportions: nothing is trained or sent.

    By Bayes' rule, scores that are log-probabilities under the federation's proportions of classes
    are right under the site's after adding log(site's share / federation's share). A network that
    was trained at many sites only partly is under the federation's, so the sum is scaled by a
    strength up to 1. It is added to the biases of the head.
    """

    nearest: ClassVar[int] = 1

    def candidates(self, at: SiteModels) -> Iterable[Candidate]:
        """One for each strength."""
        return corrected("corrected", at, at.shared, STRENGTHS)


def corrected(
    kind: str, at: SiteModels, vector: Tensor, strengths: Iterable[float], **settings: float
) -> Iterator[Candidate]:
    """`vector` [size] with its head corrected by each strength; none where the task does not score
    classes, or the network does not end in one linear layer with biases that learn."""
    bias = _bias(at)
    if at.offsets is None or bias is None:
        return
    for strength in strengths:
        made = vector.clone()
        bias.view(made).add_(strength * at.offsets)
        yield Candidate(kind, made, {**settings, "strength": strength})


def _bias(at: SiteModels) -> Entry | None:
    """Where the head's biases are in the vector."""
    network, layout = at.client.network, at.client.layout
    try:
        bias: Tensor = linear_head(network).bias
    except ModelError:
        return None
    names = {name for name, value in network.module.named_parameters() if value is bias}
    learning = (entry for entry in layout.entries if entry.kind != Kind.FROZEN)
    found = (entry for entry in learning if entry.name in names)
    return next(found, None)
