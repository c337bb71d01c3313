"""What each mechanism adds, and that it is what it is accounted as."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from aggregators import exact_mean

from fedsight.aggregation.mean import ExactMean
from fedsight.core.errors import FedSightError, SiteError
from fedsight.privacy.accounting import COARSE, spent
from fedsight.privacy.base import Mechanism, Plan
from fedsight.privacy.mechanisms.central import BELOW, CLIP, Central
from fedsight.privacy.mechanisms.example import Example, steps, worst
from fedsight.privacy.mechanisms.local import Local
from fedsight.privacy.mechanisms.matrix import PAST, Matrix, coefficients, sensitivity
from fedsight.privacy.noise import Noise

PLAN = Plan(population=100, cohort=20, rounds=30)
SIZE = 2000


def noise(round: int = 1, secret: int = 0) -> partial[Noise]:
    return partial(Noise, secret, "round", round)


def summed(mechanism: Mechanism, payloads: list[torch.Tensor], state: dict) -> ExactMean:
    """The sum of what so many sites release."""
    sizes = {"delta": SIZE, **mechanism.parts()}
    total = exact_mean(sizes, 1000)
    for number, delta in enumerate(payloads):
        site = f"site-{number}"
        shared = mechanism.shared(state)
        released = mechanism.release({"delta": delta}, shared, PLAN, site, noise())
        total.add(released, 1, site)
    return total


def test_central_divides_by_the_expected_cohort_and_adds_the_clip_times_the_multiplier() -> None:
    mechanism = Central(noise_multiplier=2.0, clip=0.5)
    update = torch.full((SIZE,), 1.0)
    released = mechanism.mean(summed(mechanism, [update] * 3, {}), PLAN, {}, noise())
    assert released.replies == 20
    found = released.parts["delta"] * 20
    length = 0.5 / math.sqrt(SIZE)  # of each entry of one clipped update
    assert float(found.mean()) == pytest.approx(3 * length, abs=5 * 1.0 / math.sqrt(SIZE))
    assert float(found.std()) == pytest.approx(2.0 * 0.5, rel=0.05)


def test_a_round_with_nobody_is_noise_alone() -> None:
    mechanism = Central(noise_multiplier=2.0)
    released = mechanism.mean(summed(mechanism, [], {}), PLAN, {}, noise())
    assert float(released.parts["delta"].std() * 20) == pytest.approx(2.0, rel=0.05)


def test_noise_is_anew_in_each_round_and_for_each_sum() -> None:
    mechanism = Central(noise_multiplier=1.0)
    nobody = summed(mechanism, [], {})
    somebody = summed(mechanism, [torch.zeros(SIZE), torch.full((SIZE,), 2.0**-30)], {})
    one, again, later, other, secret = (
        mechanism.mean(total, PLAN, {}, source).parts["delta"]
        for total, source in (
            (nobody, noise(1)),
            (nobody, noise(1)),
            (nobody, noise(2)),
            (somebody, noise(1)),
            (nobody, noise(1, secret=7)),
        )
    )
    assert torch.equal(one, again)
    for different in (later, other, secret):
        assert abs(float(torch.corrcoef(torch.stack([one, different]))[0, 1])) < 0.1


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
def test_from_any_start_the_clip_converges_to_the_quantile_of_the_norms(quantile: float) -> None:
    draws = np.random.default_rng(3)
    norms = np.exp(draws.normal(0.0, 0.5, 50))
    wanted = float(np.quantile(norms, quantile))
    plan = Plan(population=50, cohort=None, rounds=200)
    ends = []
    for start in (0.1, 10.0):
        mechanism = Central(noise_multiplier=0.5, clip=start, quantile=quantile, count_noise=2.0)
        state = mechanism.init()
        tail = []
        for round in range(1, 91):
            total = exact_mean({"delta": 4, BELOW: 1}, 50)
            for number, length in enumerate(norms):
                update = {"delta": torch.tensor([float(length), 0.0, 0.0, 0.0])}
                shared = mechanism.shared(state)
                total.add(mechanism.release(update, shared, plan, "a", noise()), 1, str(number))
            state = mechanism.mean(total, plan, state, noise(round)).state
            tail.append(float(state[CLIP]))
        ends.append(float(np.exp(np.mean(np.log(tail[-40:])))))
    assert ends[0] == pytest.approx(ends[1], rel=0.05)
    assert ends[0] == pytest.approx(wanted, rel=0.1)


def test_counts_and_update_together_cost_what_the_event_says() -> None:
    mechanism = Central(noise_multiplier=1.3, quantile=0.5)
    update, bits = mechanism._noises(PLAN)
    # A release of both, each over its own sensitivity, is one Gaussian with this multiplier.
    joint = (update**-2 + (bits / 0.5) ** -2) ** -0.5
    assert joint == pytest.approx(1.3)
    ((event, count),) = mechanism.events(PLAN, 7, 1.3)
    assert (event.kind, event.noise, event.rate, count) == ("poisson", 1.3, 0.2, 7)
    with pytest.raises(FedSightError, match="count noise"):
        Central(noise_multiplier=1.3, quantile=0.5, count_noise=0.6)._noises(PLAN)


def test_an_update_says_on_which_side_of_the_clip_it_was_and_no_more() -> None:
    mechanism = Central(noise_multiplier=1.0, quantile=0.5, clip=1.0)
    shared = mechanism.shared(mechanism.init())
    for length, side in ((0.5, 0.5), (1.0, 0.5), (2.0, -0.5)):
        payload = {"delta": torch.tensor([length])}
        released = mechanism.release(payload, shared, PLAN, "a", noise())
        assert released[BELOW].tolist() == [side]


def test_local_noise_leaves_the_site_with_the_update() -> None:
    mechanism = Local(noise_multiplier=3.0, clip=0.5)
    update = {"delta": torch.full((SIZE,), 1.0), "control": torch.zeros(SIZE)}
    released = mechanism.release(update, {}, PLAN, "a", noise())
    assert all(part.dtype == torch.float32 for part in released.values())
    assert float(released["control"].std()) == pytest.approx(1.5, rel=0.05)
    ((event, count),) = mechanism.events(PLAN, 4, 3.0)
    assert (event.neighbours, event.noise, count) == ("replace_one", 3.0, 4)
    with pytest.raises(SiteError):
        mechanism.release({"delta": torch.tensor([math.nan])}, {}, PLAN, "a", noise())


def test_calibrated_noise_costs_the_target() -> None:
    plan = Plan(population=100, cohort=20, rounds=10, batch=8, passes=2, sizes=(40, 100))
    for cls in (Central, Local, Matrix, Example):
        mechanism = cls(epsilon=4.0)
        assert mechanism.rounds(plan) == 10
        assert mechanism.spent(plan, 10) <= 4.0
        assert mechanism.spent(plan, 10) == pytest.approx(4.0, rel=5e-3)
        assert mechanism.spent(plan, 5) < mechanism.spent(plan, 6)
        assert mechanism.spent(plan, 0) == 0


def test_the_target_ends_the_rounds_when_the_noise_is_given() -> None:
    for cls in (Central, Local, Matrix):
        mechanism = cls(epsilon=4.0, noise_multiplier=3.0)
        rounds = mechanism.rounds(PLAN)
        assert mechanism.spent(PLAN, rounds) <= 4.0
        assert rounds == 30 or mechanism.spent(PLAN, rounds + 1) > 4.0
        assert cls(noise_multiplier=3.0).rounds(PLAN) == 30


def test_sites_with_fewer_images_spend_more_and_the_worst_counts() -> None:
    plan = Plan(population=3, cohort=None, rounds=5, batch=8, passes=1, sizes=(20, 100, 1000))
    assert steps(plan, 20) == 3
    mechanism = Example(noise_multiplier=1.0)
    assert worst(mechanism, plan).sizes == (20,)
    assert mechanism.spent(plan, 5) == pytest.approx(
        max(mechanism.spent(Plan(3, None, 5, 8, 1, sizes=(n,)), 5) for n in plan.sizes)
    )
    each = Example(epsilon=3.0)
    for images in plan.sizes:
        alone = Plan(3, None, 5, 8, 1, sizes=(images,))
        events = each.events(alone, 5, each.at(plan, images))
        assert spent(events, each.delta, grid=COARSE) <= 3.0


# -- correlated noise ------------------------------------------------------------------------------


def toeplitz(column: np.ndarray, rounds: int) -> np.ndarray:
    c = np.zeros((rounds, rounds))
    for row, col in itertools.product(range(rounds), repeat=2):
        if 0 <= row - col < len(column):
            c[row, col] = column[row - col]
    return c


@pytest.mark.parametrize(("bands", "apart"), [(1, 1), (2, 3), (3, 3), (4, 2), (3, 1), (6, 4)])
def test_sensitivity_is_the_largest_over_all_ways_to_take_part(bands: int, apart: int) -> None:
    rounds = 7
    column = coefficients(bands)
    c = toeplitz(column, rounds)
    largest = 0.0
    for first in range(apart):
        turns = list(range(first, rounds, apart))
        # Contributions of norm 1 in one dimension: all signs. More dimensions cannot be worse than
        # the bound sum |<c_j, c_k>|, which all signs alike reach.
        for signs in itertools.product((-1.0, 1.0), repeat=len(turns)):
            x = np.zeros(rounds)
            x[turns] = signs
            largest = max(largest, float(np.linalg.norm(c @ x)))
        gram = np.abs(c.T @ c)[np.ix_(turns, turns)].sum()
        assert math.sqrt(gram) <= sensitivity(column, rounds, apart) + 1e-12
    assert sensitivity(column, rounds, apart) == pytest.approx(largest)


def test_contributions_in_many_dimensions_are_not_worse() -> None:
    rng = np.random.default_rng(0)
    column = coefficients(3)
    c, most = toeplitz(column, 8), sensitivity(coefficients(3), 8, 2)
    for _ in range(300):
        x = np.zeros((8, 5))
        x[rng.integers(2) :: 2] = 1.0
        x *= rng.normal(size=x.shape)
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        assert np.linalg.norm(c @ x) <= most + 1e-9


def test_uncut_the_factor_is_the_square_root_of_the_prefix_sums() -> None:
    c = toeplitz(coefficients(9), 9)
    assert np.allclose(c @ c, np.tril(np.ones((9, 9))))


def noises(mechanism: Matrix, rounds: int, resume_at: int | None = None) -> torch.Tensor:
    """What is added in each round [rounds, SIZE], in units of the clip."""
    state: dict[str, torch.Tensor] = {}
    found = []
    for round in range(1, rounds + 1):
        total = exact_mean({"delta": SIZE}, 10)
        released = mechanism.mean(total, PLAN, state, noise(round))
        state = released.state
        if round == resume_at:
            state = {name: value.clone() for name, value in state.items()}
        found.append(released.parts["delta"] * 20)
    return torch.stack(found)


def test_streamed_noise_is_that_of_the_inverse_factor() -> None:
    mechanism = Matrix(noise_multiplier=1.0, bands=4)
    found = noises(mechanism, 12).numpy()
    independent = noises(Matrix(noise_multiplier=1.0, bands=1), 12).numpy()
    assert np.allclose(toeplitz(coefficients(4), 12) @ found, independent, atol=1e-10)


def test_correlated_noise_disturbs_the_model_less_than_independent_noise_of_the_same_epsilon() -> (
    None
):
    plan = Plan(population=200, cohort=10, rounds=60)  # a client rests for 19 rounds
    totals = []
    for bands in (1, 12):
        mechanism = Matrix(epsilon=4.0, bands=bands)
        c = toeplitz(coefficients(bands), 60)
        errors = np.tril(np.ones((60, 60))) @ np.linalg.inv(c)
        totals.append(mechanism.noise(plan) * math.sqrt((errors**2).sum(1).mean()))
    assert totals[1] < 0.75 * totals[0]


def test_a_resumed_stream_has_the_same_bits_and_keeps_few_rounds() -> None:
    mechanism = Matrix(noise_multiplier=1.0, bands=3)
    assert torch.equal(noises(mechanism, 8), noises(mechanism, 8, resume_at=4))
    nobody = exact_mean({"delta": SIZE}, 10)
    state: dict[str, torch.Tensor] = {}
    for round in range(1, 6):
        state = mechanism.mean(nobody, PLAN, state, noise(round)).state
        assert state[PAST].shape == (min(round, 2), SIZE)
