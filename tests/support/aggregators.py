"""Aggregators for tests that need no federation."""

from __future__ import annotations

from collections.abc import Mapping

from fedsight.aggregation.mean import ExactMean, Mean
from fedsight.core.types import PartSpec


def exact_mean(sizes: Mapping[str, int], terms: int) -> ExactMean:
    """Empty exact sums for parts of the given lengths."""
    return Mean().aggregator({part: PartSpec((size,)) for part, size in sizes.items()}, terms)
