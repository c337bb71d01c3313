"""Amplification by sampling is claimed although each site of a round is told its whole cohort.

Under secure aggregation the sites exchange keys, so a curious one knows who takes part in all
rounds in which it does. To it a client that it met is in the sum with certainty: of those rounds
that client's epsilon is that of noise alone, which is more than the run states for all of them.
"""

from __future__ import annotations

from typing import Any

import federations
import pytest

from fedsight.coordinator.session import Session
from fedsight.engines.protected import aggregator_of
from fedsight.privacy.accounting import COARSE, spent
from fedsight.privacy.event import gaussian
from fedsight.privacy.mechanisms.central import Central
from fedsight.privacy.sampling import FixedSize, Poisson
from fedsight.privacy.secagg.local import LocalExchange

ROUNDS, CURIOUS = 60, 40


def session(**privacy: Any) -> Session:
    return Session(
        federations.federation(
            privacy={"name": "central", "noise_multiplier": 1.5, "clip": 0.3, **privacy},
            secure={"name": "secagg"},
            rounds={"rounds": ROUNDS, "cohort": 10, "weighting": "uniform"},
            split={"name": "iid", "sites": 60},
        )
    )


def against_one_site(of: Session) -> float:
    """Epsilon against one curious site of the client that it meets most often."""
    cohorts = [of.protection.cohort(round) for round in range(1, ROUNDS + 1)]
    watched = [cohort for cohort in cohorts if CURIOUS in cohort]
    most = max(sum(other in one for one in watched) for other in range(60) if other != CURIOUS)
    return spent([(gaussian(1.5), most)], 1e-5, grid=COARSE)


def test_each_site_of_a_round_is_told_all_others() -> None:
    of = session()
    names = [of.federation.name(client) for client in of.protection.cohort(1)]
    total: Any = aggregator_of(of.federation, len(names))
    total.clear(len(names))
    exchange = LocalExchange(of.program.fingerprint)
    parameters = of.program.secure.parameters(len(names))
    exchange.begin(1, "00" * 32, names, parameters, total.quantiser)
    assert [name for name, _ in exchange._clients[0].binding.roster] == names


def test_counted_as_a_secret_it_costs_more_than_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Central, "sampler", lambda self, plan: Poisson(plan.cohort / 60))
    of = session()
    stated = of.protection.epsilon(ROUNDS)
    assert stated is not None
    assert stated < against_one_site(of)


@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_ours_claims_no_amplification_under_masks_and_says_so(sampling: str) -> None:
    of = session(sampling=sampling)
    stated = of.protection.epsilon(ROUNDS)
    relation: Any = "add_remove" if sampling == "poisson" else "replace_one"
    assert stated == pytest.approx(spent([(gaussian(1.5, relation), ROUNDS)], 1e-5, grid=COARSE))
    assert stated > against_one_site(of)
    facts = of.protection.facts()
    assert facts is not None
    assert facts["sampling"] == "a cohort that its sites know (no amplification)"
    assert "sites" not in facts["trusts"]


def test_without_masks_it_says_against_whom_a_coin_amplifies() -> None:
    rounds = {"rounds": 2, "cohort": 2, "weighting": "uniform"}
    privacy = {"name": "central", "noise_multiplier": 1.5}
    drawn = Session(federations.federation(privacy=privacy, rounds=rounds)).protection.facts()
    assert drawn is not None
    assert "the sites of a round, which are told how many take part" in drawn["trusts"]
    del rounds["cohort"]
    whole = Session(federations.federation(privacy=privacy, rounds=rounds)).protection.facts()
    assert whole is not None
    assert "sites" not in whole["trusts"]


def test_a_known_cohort_is_drawn_as_a_secret_one() -> None:
    for secret, known in ((Poisson(0.5), Poisson(0.5, True)), (FixedSize(5), FixedSize(5, True))):
        assert known.draw(20, 3, 1) == secret.draw(20, 3, 1)
        assert known.expected(20) == secret.expected(20)
