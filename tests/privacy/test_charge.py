"""What a site's ledger is told of an update's noise: what the site adds, and no more than that."""

from __future__ import annotations

import pytest

from fedsight.privacy.accounting import spent
from fedsight.privacy.base import Plan, mechanisms
from fedsight.privacy.charge import charge
from fedsight.privacy.event import Event

PLAN = Plan(population=1, cohort=None, rounds=10, batch=10, passes=2, sizes=(7, 95))


def made(name: str, **values: object) -> object:
    return mechanisms.get(name).model_validate(values)


def test_without_noise_there_is_no_event() -> None:
    assert charge(mechanisms.get("none")(), PLAN, 95) == (None, 1)


def test_noise_at_the_site_counts_a_round_at_a_time() -> None:
    table, times = charge(made("local", noise_multiplier=4.0), PLAN, 95)  # type: ignore[arg-type]
    assert (table, times) == ({"kind": "gaussian", "noise": 4.0, "neighbours": "replace_one"}, 1)


def test_steps_are_those_of_the_sites_own_images() -> None:
    table, times = charge(made("example", noise_multiplier=1.5), PLAN, 95)  # type: ignore[arg-type]
    assert table is not None
    event = Event.of(table)
    assert (event.kind, event.noise, event.rate) == ("poisson", 1.5, 10 / 95)
    assert times == 2 * 10


@pytest.mark.parametrize("name", ["local", "example"])
def test_all_rounds_together_cost_what_the_program_aims_at(name: str) -> None:
    pytest.importorskip("dp_accounting")
    mechanism = made(name, epsilon=5.0, delta=1e-5)
    table, times = charge(mechanism, PLAN, 95)  # type: ignore[arg-type]
    assert table is not None
    whole = spent([(Event.of(table), times * PLAN.rounds)], 1e-5)
    assert 4.9 < whole <= 5.001


def test_of_the_coordinators_noise_only_the_multiplier_counts() -> None:
    plan = Plan(population=1, cohort=5, rounds=10)  # who else takes part is not known here
    table, times = charge(made("central", noise_multiplier=2.0), plan, 95)  # type: ignore[arg-type]
    assert (table, times) == ({"kind": "gaussian", "noise": 2.0, "neighbours": "replace_one"}, 1)
    assert charge(made("central", epsilon=2.0), plan, 95) == (None, 1)  # type: ignore[arg-type]
    assert charge(made("matrix", noise_multiplier=2.0), plan, 95) == (None, 1)  # type: ignore[arg-type]
