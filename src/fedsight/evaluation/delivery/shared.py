"""The model that the federation trained, as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from fedsight.evaluation.delivery.base import SHARED, Candidate, Delivery, SiteModels, deliveries


@deliveries.add(SHARED)
class Shared(Delivery):
    """The model that the sites trained together, with the site's own part if it has one."""

    nearest: ClassVar[int] = 0

    def candidates(self, at: SiteModels) -> Iterable[Candidate]:
        """One."""
        yield Candidate(SHARED, at.shared)
