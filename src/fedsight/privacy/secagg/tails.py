"""Tails of the hypergeometric distribution, in exact integers."""

from __future__ import annotations

import math


def least_rare(population: int, marked: int, draws: int, events: int, bits: int) -> int:
    """The smallest x for which `events` * P[X >= x] is at most 2^-bits.

    X is the number of marked ones among `draws` of a population of which `marked` are marked,
    drawn without replacement. By the union bound, none of so many `events` has X >= x, except
    with probability 2^-bits.
    """
    others = population - marked
    low, hits = max(0, draws - others), min(draws, marked)
    ways = math.comb(marked, hits) * math.comb(others, draws - hits)
    limit, tail = math.comb(population, draws), 0
    while hits >= low:
        tail += ways
        if events * tail << bits > limit:
            break
        # from the ways of drawing `hits` marked ones to those of drawing one fewer
        ways = ways * hits * (others - draws + hits)
        ways //= (marked - hits + 1) * (draws - hits + 1)
        hits -= 1
    return hits + 1
