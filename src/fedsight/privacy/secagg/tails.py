"""Tails of the hypergeometric distribution: where they become rare, without rounding errors."""

from __future__ import annotations

import math

# What is closer to the bound is decided in integers. The logarithms below are sums of nine numbers
# of at most ln(population!), each right to a few times 1e-16 of it.
_CLOSE = 1e-13
_SPARED = 64  # bits below the bound, from where on a tail is added up


def least_rare(population: int, marked: int, draws: int, events: int, bits: int) -> int:
    """The smallest x for which `events` * P[X >= x] is at most 2^-bits.

    X is the number of marked ones among `draws` of a population of which `marked` are marked,
    drawn without replacement. By the union bound, none of so many `events` has X >= x, except
    with probability 2^-bits.
    """
    found = _in_floats(population, marked, draws, bits * math.log(2) + math.log(events))
    return _in_integers(population, marked, draws, events, bits) if found is None else found


def _in_integers(population: int, marked: int, draws: int, events: int, bits: int) -> int:
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


def _in_floats(population: int, marked: int, draws: int, rarity: float) -> int | None:
    """The smallest x for which P[X >= x] is at most e^-rarity; None where that is a close call."""
    others = population - marked
    low, top = max(0, draws - others), min(draws, marked)
    limit = _log_comb(population, draws) - rarity

    def log_ways(hits: int) -> float:
        return _log_comb(marked, hits) + _log_comb(others, draws - hits)

    # The first number beyond the mean with next to no probability: the sum begins there.
    below, hits = draws * marked // population, top
    while below + 1 < hits:
        middle = (below + hits) // 2
        if log_ways(middle) > limit - _SPARED * math.log(2):
            below = middle
        else:
            hits = middle
    # Beyond it each number is at most `shrinks` times as likely as the one before.
    shrinks = (marked - hits) * (draws - hits) / ((hits + 1) * (others - draws + hits + 1))
    if shrinks > 1 - 2**-20:
        return None
    close = 1e-9 + _CLOSE * math.lgamma(population + 1)
    unit, tail, ways = log_ways(hits), 1 / (1 - shrinks), 1.0
    while hits >= low:
        excess = unit + math.log(tail) - limit
        if abs(excess) < close:
            return None
        if excess > 0:
            break
        ways *= hits * (others - draws + hits) / ((marked - hits + 1) * (draws - hits + 1))
        tail += ways
        hits -= 1
    return hits + 1


def _log_comb(whole: int, some: int) -> float:
    return math.lgamma(whole + 1) - math.lgamma(some + 1) - math.lgamma(whole - some + 1)
