"""Who is at fault where two sites contradict each other and nobody else can see which is right.

A site receives what it cannot use, or what it passes on does not fit: either it lies, or the site
from which it came does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

Conflict = tuple[int, int]  # the numbers of two sites, which may be the same


def suspects(conflicts: Collection[Conflict], colluding: int) -> set[int]:
    """The sites that may be at fault, if at most `colluding` (at least one) of all are.

    A site that more than so many others contradict is at fault itself: they cannot all be. Of any
    other two that contradict each other, both are suspects.
    """
    left = {frozenset(pair) for pair in conflicts}
    counts = Counter(site for pair in left for site in pair)
    sure = {site for site, count in counts.items() if count > max(1, colluding)}
    return sure.union(*(pair for pair in left if not pair & sure))
