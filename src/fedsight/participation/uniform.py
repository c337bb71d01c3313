"""Uniform participation: every site has the same chance."""

from __future__ import annotations

from typing import ClassVar

from fedsight.participation.base import Participation, participations


@participations.add("uniform", paper="McMahan et al. 2017, Algorithm 1")
class Uniform(Participation):
    """All sites, or `rounds.cohort` of them, drawn uniformly; under `[privacy]` as it accounts."""

    accounted: ClassVar[bool] = True
