"""A round of so many sites, at rates that hardly leave a graph, that a site computes for minutes.

A site computes from the program's rates which graph and committee a round has to have, within the
request that begins an attempt, and again for the number of sites that the noise is meant for, which
the coordinator states. It tried one number of neighbours and of members after the other, and added
up each tail in integers of as many digits as the graph has edges.
"""

from __future__ import annotations

import pytest

from fedsight.privacy.secagg import graph, tails
from fedsight.privacy.secagg.graph import Parameters
from fedsight.privacy.secagg.messages import MOST_SITES

RATE = 0.3  # that collude, and as many that drop out


class Work:
    """What finding the parameters takes: tails, and the most terms that were added in integers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tails, self.terms = 0, 0
        least_rare, in_integers = graph.least_rare, tails._in_integers

        def counted(*given: int) -> int:
            self.tails += 1
            return least_rare(*given)

        def added(population: int, marked: int, draws: int, events: int, bits: int) -> int:
            self.terms += min(draws, marked)
            return in_integers(population, marked, draws, events, bits)

        monkeypatch.setattr(graph, "least_rare", counted)
        monkeypatch.setattr(tails, "_in_integers", added)

    def find(self, sites: int) -> Parameters:
        """The parameters of a round of so many sites."""
        return graph.parameters.__wrapped__(sites, RATE, RATE, True, grinding=40)


def test_tails_in_integers_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)
    due = work.find(1_500)
    quick = work.terms
    monkeypatch.setattr(tails, "_in_floats", lambda *_: None)
    assert work.find(1_500) == due
    assert work.terms > 100 * max(quick, 100)


def test_ours_takes_few_and_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)
    found = work.find(MOST_SITES)
    assert found.neighbours > 10_000, "each even number was tried, with three tails"
    assert work.tails < 1_500
    assert work.terms < 1_000
