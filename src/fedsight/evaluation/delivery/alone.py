"""The model that a site trained on its own images only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from fedsight.evaluation.delivery.base import ALONE, Candidate, Delivery, SiteModels, deliveries


@deliveries.add(ALONE)
class Alone(Delivery):
    """The site's own model, which owes nothing to the others."""

    nearest: ClassVar[int] = 3

    def candidates(self, at: SiteModels) -> Iterable[Candidate]:
        """One, or none where the site has not trained by itself."""
        if at.alone is not None:
            yield Candidate(ALONE, at.alone)
