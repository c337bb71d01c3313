"""Coins draw one or two sites, and a masked sum over them is one site's update.

With `participation.name = "poisson"`, and under `central` with a cohort, each site takes part by a
coin of its own, so some round of a run may have two sites, or a single one. A sum of two is hidden
from neither of them, and one of one from nobody. The coordinator's side, the exchange of keys and
every site refuse such a round. A run whose coins fall like that in any of its rounds is refused
before its first: repeated, the round would have the same sites again, so it ended there for good.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import federations
import pytest
from federations import Diary
from torch import Tensor

from fedsight.client.step import Client
from fedsight.coordinator import loop, turns
from fedsight.coordinator.session import Session
from fedsight.core.errors import ConfigError, SiteError
from fedsight.core.types import Order
from fedsight.engines.base import collect
from fedsight.engines.in_process import InProcessEngine
from fedsight.privacy.secagg import graph
from fedsight.privacy.secagg.client import Minimums
from fedsight.privacy.secagg.messages import Binding
from fedsight.program.federation import Federation

PAIR = graph.Parameters(neighbours=1, threshold=2, survivors=2)

CENTRAL = {"privacy": {"name": "central", "noise_multiplier": 1.0}}
COINS: dict[str, dict[str, Any]] = {
    "participation": {"participation": {"name": "poisson"}},
    "central": CENTRAL,
}
coins = pytest.mark.parametrize("sections", COINS.values(), ids=COINS)


def drawn(sections: dict[str, Any], cohort: int = 3, **more: Any) -> Federation:
    """Three of 20 sites on average."""
    return federations.federation(
        secure={"name": "secagg", "dropout": 0.0},
        split={"name": "iid", "sites": 20},
        rounds={"rounds": 12, "cohort": cohort, "weighting": "uniform"},
        **{**sections, **more},
    )


def run(of: Federation) -> tuple[Diary, Any]:
    """What a run tells of its rounds, and the error that ends it."""
    diary, session = Diary(), Session(of)
    with closing(InProcessEngine(of)) as engine, pytest.raises((ConfigError, SiteError)) as ended:
        loop.run(session, engine, federations.overall(of), [diary])
    return diary, ended.value


@coins
def test_a_round_of_two_sites_is_refused_when_it_begins(
    sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns.Synchronous, "_require_enough", lambda self: None)
    diary, ended = run(drawn(sections))
    assert isinstance(ended, SiteError)
    assert ended.cause in {f"secure aggregation over {few} sites hides nothing" for few in range(3)}
    assert all(line["replies"] > 2 for line in diary.lines)


@coins
def test_ours_says_so_before_the_first_round(sections: dict[str, Any]) -> None:
    diary, ended = run(drawn(sections))
    (problem,) = ended.problems
    assert problem.cause.startswith("coins draw ")
    assert "too few for secure aggregation" in problem.cause
    assert not diary.lines


@coins
def test_coins_that_draw_enough_in_every_round_are_no_problem(sections: dict[str, Any]) -> None:
    of = drawn(sections, cohort=18)
    assert turns.turns_of(Session(of))
    fixed = drawn({"privacy": {**CENTRAL["privacy"], "sampling": "fixed"}})
    assert turns.turns_of(Session(fixed))


def two(of: Federation) -> Tensor:
    """The masked sum of the first two sites' updates."""
    order = Order(1, of.initial[of.layout.travelling])
    with closing(InProcessEngine(of)) as engine:
        outcome = collect(engine, order, [0, 1], lambda _: None, lambda: None)
        return outcome.total.plain()["delta"].clone()


def test_a_site_finds_the_others_update_where_two_are_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = drawn(COINS["participation"])
    with pytest.raises(SiteError, match="secure aggregation over 2 sites hides nothing"):
        two(of)
    with pytest.raises(SiteError, match="2 sites in the cohort, but this site requires at least 3"):
        Minimums().refuse(Binding("", "", "", 1, 1, "", (("a", ""), ("b", "")), (0, 0), PAIR, {}))
    monkeypatch.setattr(graph, "FEWEST", 2)
    monkeypatch.setattr(Minimums, "refuse", lambda self, binding: None)
    graph.parameters.cache_clear()
    try:
        found = two(of)
    finally:
        graph.parameters.cache_clear()
    client, order = Client(of), Order(1, of.initial[of.layout.travelling])
    own, other = (client.step(order, site, {}).payload["delta"] for site in (0, 1))
    assert other.abs().max() > 1e-3
    assert (found - own - other).abs().max() < 1e-6
