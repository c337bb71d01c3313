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
    pairs = {frozenset(pair) for pair in conflicts}
    sure = _sure(pairs, colluding)
    return sure.union(*(pair for pair in pairs if not pair & sure))


def left_out(conflicts: Collection[Conflict], colluding: int) -> set[int]:
    """Sites without which no two contradict each other, at least half of them at fault.

    Beside those that are at fault for sure these are pairs of suspects, no site in two of them. If
    all suspects were left out, a single site could take as many others along as are assumed to
    collude, which is more than may drop out.
    """
    pairs = {frozenset(pair) for pair in conflicts}
    found = _sure(pairs, colluding)
    for pair in sorted(pairs, key=sorted):
        if not pair & found:
            found |= pair
    return found


def _sure(pairs: Collection[frozenset[int]], colluding: int) -> set[int]:
    """The sites that more others contradict than collude."""
    counts = Counter(site for pair in pairs for site in pair)
    return {site for site, count in counts.items() if count > max(1, colluding)}
