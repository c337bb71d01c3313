"""The privacy event that a site charges for an update: the noise that it can account for."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedsight.governance.charges import charge
from fedsight.privacy.accounting import spent
from fedsight.privacy.base import Plan, mechanisms
from fedsight.privacy.event import Event
from fedsight.privacy.mechanisms.matrix import coefficients
from fedsight.privacy.secure import Secure

PLAN = Plan(population=1, cohort=None, rounds=10, batch=10, passes=2, sizes=(7, 95))


def made(name: str, **values: object) -> object:
    return mechanisms.get(name).model_validate(values)


def test_an_update_without_noise_has_no_event() -> None:
    assert charge(mechanisms.get("none")(), PLAN, 95) == (None, 1)


def test_noise_added_at_the_site_is_charged_once_a_round() -> None:
    table, times = charge(made("local", noise_multiplier=4.0), PLAN, 95)  # type: ignore[arg-type]
    assert (table, times) == ({"kind": "gaussian", "noise": 4.0, "neighbours": "replace_one"}, 1)


def test_dp_sgd_steps_are_counted_from_the_sites_own_images() -> None:
    table, times = charge(made("example", noise_multiplier=1.5), PLAN, 95)  # type: ignore[arg-type]
    assert table is not None
    event = Event.of(table)
    assert (event.kind, event.noise, event.rate) == ("poisson", 1.5, 10 / 95)
    assert times == 2 * 10


@pytest.mark.parametrize("name", ["local", "example"])
def test_all_rounds_together_cost_the_programs_epsilon(name: str) -> None:
    pytest.importorskip("dp_accounting")
    mechanism = made(name, epsilon=5.0, delta=1e-5)
    table, times = charge(mechanism, PLAN, 95)  # type: ignore[arg-type]
    assert table is not None
    whole = spent([(Event.of(table), times * PLAN.rounds)], 1e-5)
    assert 4.9 < whole <= 5.001


def test_coordinator_noise_is_charged_by_its_multiplier_alone() -> None:
    plan = Plan(population=1, cohort=5, rounds=10)  # the site does not know who else takes part
    table, times = charge(made("central", noise_multiplier=2.0), plan, 95)  # type: ignore[arg-type]
    assert (table, times) == ({"kind": "gaussian", "noise": 2.0, "neighbours": "replace_one"}, 1)
    assert charge(made("central", epsilon=2.0), plan, 95) == (None, 1)  # type: ignore[arg-type]
    assert charge(made("matrix", epsilon=2.0), plan, 95) == (None, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("bands", [1, 2, 8])
def test_correlated_noise_is_charged_for_any_set_of_rounds(bands: int) -> None:
    """Whichever n rounds a site takes part in, n charges bound the cost under the matrix C."""
    table, times = charge(made("matrix", noise_multiplier=2.0, bands=bands), PLAN, 95)  # type: ignore[arg-type]
    assert table is not None
    event = Event.of(table)
    assert (event.kind, event.neighbours, times) == ("gaussian", "replace_one", 1)
    column, rounds = coefficients(bands), 9
    for chosen in range(1, 1 << rounds):
        rounds_in = np.array([chosen >> round & 1 for round in range(rounds)], dtype=float)
        cost = float(np.sum(np.convolve(rounds_in, column) ** 2)) / 2.0**2
        assert cost <= rounds_in.sum() / event.noise**2 * (1 + 1e-12)
    assert event.noise == pytest.approx(2.0 / column.sum())


def test_a_share_of_distributed_noise_is_charged_like_the_sum() -> None:
    pytest.importorskip("dp_accounting")
    mechanism = made("distributed", noise_multiplier=2.0, clip=0.5)
    assert charge(mechanism, PLAN, 95) == (None, 1)  # type: ignore[arg-type]  # without secure aggregation
    faced = Secure(name="secagg").facing(PLAN, {"delta": 1000}, 20, 0.1)
    table, times = charge(mechanism, faced, 95)  # type: ignore[arg-type]
    assert table is not None
    event = Event.of(json.loads(json.dumps(table)))
    assert (event.kind, event.neighbours, times) == ("skellam", "replace_one", 1)
    assert event.noise == pytest.approx(1.0)
    whole = mechanism.spent(faced, PLAN.rounds)  # type: ignore[attr-defined]
    assert spent([(event, PLAN.rounds)], 1e-5) == pytest.approx(whole)
