"""Known answers of the accountant, and what a sampler may claim."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import FedSightError
from fedsight.privacy import accounting
from fedsight.privacy import event as events
from fedsight.privacy.accounting import COARSE, calibrate, gaussian_sigma, rounds_within, spent
from fedsight.privacy.event import Event
from fedsight.privacy.sampling import Cyclic, Everyone, FixedSize, Poisson

KNOWN = [  # sampling rate, noise multiplier, steps, delta, RDP, PLD
    (1, 1, 1, 1e-5, 4.728507, 4.377178),
    (1, 4, 10, 1e-5, 3.617100, 3.341409),
    (0.01, 1, 1000, 1e-5, 2.101367, 1.828244),
    (0.01, 4, 10000, 1e-5, 1.035490, 0.946999),
    (0.1, 1, 100, 1e-3, 5.655053, 4.784350),
    (256 / 60000, 1.1, 14062, 1e-5, 2.596556, 2.381686),
    (0.04, 1.5, 2250, 1e-5, 7.329335, 6.768787),
]


@pytest.mark.parametrize(("rate", "noise", "steps", "delta", "rdp", "pld"), KNOWN)
def test_known_epsilons(
    rate: float, noise: float, steps: int, delta: float, rdp: float, pld: float
) -> None:
    one = Poisson(rate).event(60000, noise)
    assert spent([(one, steps)], delta, "rdp") == pytest.approx(rdp, abs=1e-5)
    assert spent([(one, steps)], delta, "pld") == pytest.approx(pld, abs=1e-5)


# Sampling rate, noise multiplier, steps, and epsilon at 1e-5 on a grid of a 40th of a loss.
SMALL_LOSSES = [
    (64 / 60_000, 0.9, 28_140, 1.08110),
    (32 / 60_000, 0.9, 187_500, 1.40301),
    (32 / 10_000, 1.0, 10_016, 1.70479),
]


@pytest.mark.parametrize(("rate", "noise", "steps", "close"), SMALL_LOSSES)
def test_the_grid_for_every_round_is_fine_enough_for_small_losses(
    rate: float, noise: float, steps: int, close: float
) -> None:
    """The width follows the losses: at a fixed one, epsilon was 3 % too large, and up to 115 %."""
    releases = [(events.poisson(noise, rate), steps)]
    assert close * 0.9999 < spent(releases, 1e-5, grid=COARSE) < close * 1.002


def test_a_fixed_grid_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rate, noise, steps, close = SMALL_LOSSES[0]
    monkeypatch.setattr(accounting, "SHARE", 1e-9)
    accounting._composed.cache_clear()
    found = spent([(events.poisson(noise, rate), steps)], 1e-5, grid=COARSE)
    accounting._composed.cache_clear()
    assert found > 1.02 * close


def test_the_analytic_gaussian() -> None:
    for epsilon, sigma in ((1, 4.225), (3, 1.544), (10, 0.541)):
        assert gaussian_sigma(epsilon, 1e-6) == pytest.approx(sigma, abs=5e-4)
        found = calibrate(lambda noise: [(events.gaussian(noise), 1)], epsilon, 1e-6)
        assert found == pytest.approx(sigma, rel=2e-3)


def test_replacing_one_counts_half_the_noise() -> None:
    replaced = events.gaussian(1.0, "replace_one")
    assert spent([(replaced, 1)], 1e-5) == pytest.approx(9.997256, abs=1e-5)
    half = events.gaussian(0.5)
    for method in ("pld", "rdp"):
        assert spent([(replaced, 7)], 1e-5, method) == spent([(half, 7)], 1e-5, method)


@pytest.mark.parametrize(
    "released",
    [(events.gaussian(0.01), 1), (events.gaussian(1.0, "replace_one"), 2500)],
    ids=["one with next to no noise", "years of releases"],
)
def test_what_has_next_to_no_noise_is_accounted_at_once(released: tuple[Event, int]) -> None:
    """Its loss distribution would take gigabytes: a site's ledger must say so all the same."""
    with mock.patch("fedsight.privacy.accounting._pld", side_effect=AssertionError):
        assert 200 < spent([released], 1e-5) < math.inf
        assert spent([released, (events.gaussian(2.0), 3)], 1e-5) > spent([released], 1e-5)


def test_only_a_coin_for_each_client_is_poisson() -> None:
    assert Everyone().event(100, 1.0) == events.gaussian(1.0)
    assert Poisson(1.0).event(100, 1.0) == events.gaussian(1.0)
    assert Poisson(0.1).event(100, 1.0).neighbours == "add_remove"
    fixed = FixedSize(10).event(100, 1.0)
    assert fixed.neighbours == "replace_one"
    assert (fixed.population, fixed.sample) == (100, 10)
    assert FixedSize(100).event(100, 1.0) == events.gaussian(1.0, "replace_one")


def test_a_fixed_cohort_costs_more_than_a_poisson_one_and_less_than_none() -> None:
    fixed = spent([(FixedSize(10).event(1000, 2.0), 50)], 1e-5, "rdp")
    poisson = spent([(Poisson(0.01).event(1000, 2.0), 50)], 1e-5, "rdp")
    nothing = spent([(events.gaussian(2.0, "replace_one"), 50)], 1e-5, "rdp")
    assert poisson < fixed < nothing


def test_a_fixed_cohort_is_the_published_bound_at_half_the_noise() -> None:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    half = dp_accounting.GaussianDpEvent(1.0)
    accountant.compose(dp_accounting.SampledWithoutReplacementDpEvent(1000, 10, half), 50)
    ours = spent([(FixedSize(10).event(1000, 2.0), 50)], 1e-5)
    assert ours == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-9)


@pytest.mark.parametrize(
    "written",
    [
        {"kind": "poisson", "noise": 1.0, "neighbours": "replace_one", "rate": 0.1},
        {"kind": "gaussian", "noise": 1.0, "neighbours": "add_remove", "rate": 0.1},
        {"kind": "fixed_size", "noise": 1.0, "neighbours": "add_remove", "sample": 1},
        {"kind": "gaussian", "noise": -1.0, "neighbours": "add_remove"},
        {"kind": "gaussian", "noise": float("nan"), "neighbours": "add_remove"},
        {"kind": "gaussian", "noise": "1", "neighbours": "add_remove"},
        {"kind": "gaussian", "noise": True, "neighbours": "add_remove"},
        {"kind": "guess", "noise": 1.0, "neighbours": "add_remove"},
        {"kind": "gaussian", "noise": 1.0, "neighbours": "cousins"},
        {"kind": "gaussian", "noise": 1.0},
        {"kind": "gaussian", "noise": 1.0, "neighbours": "add_remove", "extra": 1},
        {"kind": "skellam", "noise": 1.0, "neighbours": "add_remove", "l1": 1.0, "l2": 2.0},
    ],
)
def test_what_cannot_be_is_refused(written: dict[str, object]) -> None:
    with pytest.raises(FedSightError) as caught:
        Event.of(written)
    assert caught.value.cure


RELEASES = [
    events.gaussian(1.25),
    events.gaussian(1.25, "replace_one"),
    events.poisson(1.1, 0.04),
    events.fixed_size(2.0, 1000, 10),
    events.matrix(3.0, 1.7),
    events.skellam(400.0, 30.0, 10.0),
    events.laplace(0.5),
]


@pytest.mark.parametrize("one", RELEASES, ids=lambda one: one.kind)
def test_events_survive_a_file(one: Event) -> None:
    assert Event.of(json.loads(json.dumps(one.table()))) == one


@pytest.mark.parametrize("method", ["pld", "rdp"])
@pytest.mark.parametrize("one", RELEASES, ids=lambda one: one.kind)
def test_more_releases_cost_more_and_an_order_costs_nothing(one: Event, method: str) -> None:
    once, twice = (spent([(one, count)], 1e-5, method) for count in (1, 2))
    assert 0 < once < twice
    other = events.gaussian(4.0, one.neighbours)
    both = spent([(one, 1), (other, 1)], 1e-5, method)
    assert both == pytest.approx(spent([(other, 1), (one, 1)], 1e-5, method), rel=1e-6)
    assert both > once
    assert spent([(one, 1), (one, 1)], 1e-5, method) == twice


@pytest.mark.parametrize("method", ["pld", "rdp"])
def test_both_relations_together_are_taken_as_the_dearer(method: str) -> None:
    add, replace = events.gaussian(2.0), events.gaussian(2.0, "replace_one")
    both = spent([(add, 1), (replace, 1)], 1e-5, method)
    assert both == pytest.approx(spent([(replace, 2)], 1e-5, method), rel=1e-6)
    sampled = events.poisson(2.0, 0.1)
    assert spent([(sampled, 3)], 1e-5) < spent([(sampled, 3), (replace, 0)], 1e-5) + 1e-12
    assert spent([(sampled, 3), (replace, 1)], 1e-5, method) > spent([(replace, 1)], 1e-5, method)


def test_a_laplace_release_is_private_by_itself() -> None:
    for neighbours in ("add_remove", "replace_one"):
        assert spent([(events.laplace(0.5, neighbours), 1)], 1e-12) == pytest.approx(0.5, abs=1e-3)


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    assert spent([], 1e-5) == 0
    assert spent([(events.gaussian(1.0), 0)], 1e-5) == 0
    assert spent([(events.gaussian(0.0), 1)], 1e-5) == float("inf")


@pytest.mark.parametrize("noise", [1e-300, 1e-120, 1e-30, 1e9, 1e150, 1e200, 1e300])
@pytest.mark.parametrize(
    "made",
    [
        events.gaussian,
        lambda noise: events.gaussian(noise, "replace_one"),
        lambda noise: events.poisson(noise, 0.1),
        lambda noise: events.fixed_size(noise, 100, 10),
        lambda noise: events.laplace(1 / noise),
    ],
)
def test_noise_of_any_size_can_be_accounted(made: Callable[[float], Event], noise: float) -> None:
    found = spent([(made(noise), 3)], 1e-5)
    assert found >= 0
    assert (found > 1e3) == (noise < 1)
    beside = [(events.poisson(1.0, 0.02), 500)]
    assert spent([*beside, (made(noise), 3)], 1e-5) > spent(beside, 1e-5) - 1e-6


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, float("nan")])
def test_a_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(FedSightError, match="delta"):
        spent([(events.gaussian(1.0), 1)], delta)


# Every sampler, and every size of epsilon: what differs between the other pairs is time.
@pytest.mark.parametrize(
    ("epsilon", "sampler"),
    [
        (0.5, Everyone()),
        (3.0, Everyone()),
        (8.0, Everyone()),
        (3.0, Poisson(0.1)),
        (8.0, FixedSize(100)),
    ],
)
def test_calibrated_noise_meets_its_target_and_hardly_less_does_not(
    sampler: Everyone | Poisson | FixedSize, epsilon: float
) -> None:
    def made(noise: float) -> list[tuple[Event, int]]:
        return [(sampler.event(1000, noise), 60)]

    tried: list[float] = []
    noise = calibrate(lambda noise: tried.append(noise) or made(noise), epsilon, 1e-5)
    assert len(tried) <= 10  # each is an accounting, which may take a second
    assert spent(made(noise), 1e-5) <= epsilon
    assert spent(made(noise * 0.999), 1e-5) > epsilon


@pytest.mark.parametrize("epsilon", [0.5, 30.0, 300.0])
def test_laplace_noise_is_calibrated_to_its_own_epsilon(epsilon: float) -> None:
    """Far from where a Gaussian would need the noise, down to the least that is tried."""

    def made(noise: float) -> list[tuple[Event, int]]:
        return [(events.laplace(1 / noise), 1)]

    noise = calibrate(made, epsilon, 1e-12)
    assert spent(made(noise), 1e-12) <= epsilon
    assert noise == pytest.approx(max(1 / epsilon, 0.01), rel=2e-2)  # of the grid


def test_gaussian_releases_are_accounted_as_one() -> None:
    several = [(events.gaussian(3.0), 4), (events.gaussian(6.0), 20), (events.matrix(2.0, 1.0), 1)]
    together = (4 / 9 + 20 / 36 + 1 / 4) ** -0.5
    assert spent(several, 1e-5) == pytest.approx(spent([(events.gaussian(together), 1)], 1e-5))


def test_rounds_within_a_target() -> None:
    one = Poisson(0.1).event(1000, 1.0)
    rounds = rounds_within(lambda count: [(one, count)], 4.0, 1e-5, 1000)
    assert spent([(one, rounds)], 1e-5) <= 4.0 < spent([(one, rounds + 1)], 1e-5)
    assert rounds_within(lambda count: [(one, count)], 4.0, 1e-5, 3) == 3
    assert rounds_within(lambda count: [(one, count)], 0.01, 1e-5, 1000) == 0


def test_targets_that_cannot_be_met_say_so() -> None:
    with pytest.raises(FedSightError, match="epsilon"):
        calibrate(lambda noise: [(events.gaussian(noise), 1)], -1.0, 1e-5)
    with pytest.raises(FedSightError, match="no noise"):
        calibrate(lambda noise: [(events.gaussian(0.1), 1)], 1.0, 1e-5)


def test_the_library_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        spent([(events.poisson(1.0, 0.1), 1)], 1e-3, "rdp")
    assert not caplog.records


def test_without_the_library_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsight.privacy.accounting.find_spec", lambda name: None)
    with pytest.raises(FedSightError, match=r"fedsight\[privacy\]"):
        spent([(events.gaussian(1.0), 1)], 1e-5)


@given(st.integers(1, 400), st.integers(0, 10**6))
def test_cohorts_are_sorted_clients_each_at_most_once(population: int, seed: int) -> None:
    size = max(1, population // 3)
    for sampler in (Everyone(), Poisson(0.3), FixedSize(size), Cyclic(size)):
        cohort = sampler.draw(population, seed, 1)
        assert cohort == sorted(set(cohort)) == sampler.draw(population, seed, 1)
        assert set(cohort) <= set(range(population))
    assert len(FixedSize(population).draw(population, seed, 1)) == population


@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 40))
def test_groups_take_turns(population: int, cohort: int, rounds: int) -> None:
    sampler = Cyclic(cohort)
    groups = sampler.groups(population)
    drawn = [sampler.draw(population, 7, round) for round in range(1, rounds + 1)]
    assert sorted(client for turn in drawn[:groups] for client in turn) == list(
        range(population)
    ) or (rounds < groups)
    for client in range(population):
        turns = [number for number, turn in enumerate(drawn) if client in turn]
        assert all(b - a == groups for a, b in itertools.pairwise(turns))
        assert len(turns) <= sampler.participations(population, rounds)
    sizes = {len(turn) for turn in drawn}
    assert max(sizes) - min(sizes) <= 1


def test_a_poisson_sampler_tosses_a_coin_for_each_client() -> None:
    sizes = [len(Poisson(0.1).draw(200, 0, round)) for round in range(500)]
    assert np.mean(sizes) == pytest.approx(20, abs=1)
    assert np.var(sizes) == pytest.approx(18, rel=0.2)  # binomial: 200 * 0.1 * 0.9
    assert [] in [Poisson(0.01).draw(10, 0, round) for round in range(50)]


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(FedSightError):
        Poisson(rate)


def test_a_cohort_that_cannot_be_is_refused() -> None:
    with pytest.raises(FedSightError):
        FixedSize(0)
    with pytest.raises(FedSightError):
        FixedSize(11).draw(10, 0, 1)
