"""Noise that sites share: its distribution, its size, its bound, its price, and its room."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsight.aggregation.secure import EncodingPlan, SecureSum
from fedsight.core.errors import FedSightError, SiteError
from fedsight.privacy import event, skellam
from fedsight.privacy.accounting import _skellam, spent
from fedsight.privacy.base import Plan as Accounted
from fedsight.privacy.clip import clip
from fedsight.privacy.mechanisms.distributed import Distributed
from fedsight.privacy.noise import Noise
from fedsight.privacy.secagg.local import LocalExchange
from fedsight.privacy.secagg.masks import Residues
from fedsight.privacy.secagg.words import Words
from fedsight.privacy.secure import Secure
from fedsight.privacy.skellam import Round

SIZE = 20_000


def noise(secret: int = 1):  # type: ignore[no-untyped-def]
    return lambda *path, values: Noise(secret, *path, values=values)


def plan(
    sizes: dict[str, int] | None = None, multiplier: float = 1.0, secret: int = 1, **secure: object
) -> EncodingPlan:
    settings = Secure(**{"name": "secagg", **secure})  # type: ignore[arg-type]
    privacy = Distributed(noise_multiplier=multiplier, clip=0.5)
    return EncodingPlan(settings, sizes or {"delta": SIZE}, 3, 1, 0.1, privacy, 10, noise(secret))


# What a site adds ------------------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [0.5, 4.0, 300.0, 2.0**26])
def test_noise_has_the_variance_that_is_asked_for(deviation: float) -> None:
    found = skellam.noise(100_000, deviation, Noise(5, "skellam").uniform)
    assert found.dtype == np.int64
    assert found.var() == pytest.approx(deviation**2, rel=0.03)
    assert abs(found.mean()) < 0.02 * deviation
    scaled = 1 + float(np.mean((found / deviation) ** 4)) - 4  # a Skellam's excess is 1 / variance
    assert scaled == pytest.approx(deviation**-2, abs=0.15)


@given(
    st.integers(1, 60),
    st.integers(0, 1000),
    st.integers(1, 20),
    st.floats(0.01, 2.0),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_levels_move_within_the_bound_whatever_the_images(
    size: int, seed: int, bits: int, most: float, opposite: bool
) -> None:
    rng = torch.Generator().manual_seed(seed)
    one = torch.randn(size, generator=rng) * 3
    other = -one if opposite else torch.randn(size, generator=rng)
    secure = Secure(name="secagg")
    how = replace(secure.quantiser({"delta": size}, 5, 1, 0.1), bits=bits)
    payloads = (clip({"delta": vector}, most, "a") for vector in (one, other))
    a, b = (how.encode(payload, 1, "a", seed, 1).astype(np.int64) for payload in payloads)
    scale = ((1 << bits) - 1) / (2 * secure.clip)
    bound = Round(size, 5, 4, most, secure.clip).moves(scale)
    assert np.linalg.norm(a - b) <= bound
    assert np.abs(a - b).sum() <= math.sqrt(size) * bound


def test_the_bound_is_reached_but_for_rounding() -> None:
    secure, most = Secure(name="secagg"), 0.5
    how = secure.quantiser({"delta": 4}, 5, 1, 0.1)
    ends = ({"delta": torch.full((4,), sign * most / 2)} for sign in (1, -1))
    a, b = (how.encode(payload, 1, "a", 0, 1).astype(np.int64) for payload in ends)
    scale = ((1 << how.bits) - 1) / (2 * secure.clip)
    assert np.linalg.norm(a - b) > 0.999 * Round(4, 5, 4, most, secure.clip).moves(scale)


# What it is worth ------------------------------------------------------------------------------


def test_the_noise_of_the_honest_survivors_is_what_is_accounted() -> None:
    terms = 20
    of = plan(corrupt=0.2, dropout=0.25)
    accounted = of.accounted(terms)
    assert accounted.honest == 20 - 5 - 4
    how = of.quantiser(terms)
    ((paid, _),) = of.privacy.events(accounted, 1, 1.0)  # type: ignore[attr-defined]
    assert paid.noise == pytest.approx(0.5)  # replace-one: at half the multiplier
    drawn = np.zeros(SIZE)
    for site in range(accounted.honest):
        stream = Noise(1, "site", site)
        drawn += skellam.noise(SIZE, how.deviation, stream.uniform)
    assert drawn.var() == pytest.approx((paid.noise * paid.l2) ** 2, rel=0.04)


@pytest.mark.parametrize("corrupt", [0.07, 0.14, 0.28, 0.29])
def test_colluders_are_counted_as_the_graph_counts_them(corrupt: float) -> None:
    found = plan(corrupt=corrupt, dropout=0.1).accounted(100)  # 0.29 * 100 is below 29 in floats
    assert found.honest == 90 - round(corrupt * 100)


def test_without_masks_nobodys_noise_is_enough() -> None:
    with pytest.raises(FedSightError, match="certain to be honest"):
        plan(name="quantised").quantiser(10)


def epsilon(one: Round, multiplier: float, most: int, rounds: int = 5) -> float:
    levels = one.levels(multiplier, most, 32)
    return spent([(one.release(levels.scale, levels.deviation), rounds)], 1e-5)


def test_finely_rounded_it_costs_what_gaussian_noise_does() -> None:
    one = Round(SIZE, 100, 80, 0.5, 1.0)
    costs = [epsilon(one, 2.0, most) for most in (4, 6, 8, 12, 32)]
    gaussian = spent([(event.gaussian(2.0, "replace_one"), 5)], 1e-5, "rdp")
    assert costs == sorted(costs, reverse=True)
    assert gaussian * 0.9999 <= costs[-1] <= gaussian * 1.001
    assert costs[-1] >= spent([(event.gaussian(2.0, "replace_one"), 5)], 1e-5)
    assert costs[0] > costs[-1]
    few = Round(4, 100, 80, 0.5, 1.0)  # of few values, too: little noise, and not at all Gaussian
    assert epsilon(few, 1.0, 1) > 1.2 * epsilon(few, 1.0, 4) > 1.2 * epsilon(few, 1.0, 32)


def test_few_bits_take_more_noise_for_the_same_epsilon() -> None:
    one = Round(SIZE, 100, 80, 0.5, 1.0)
    levels = [one.levels(1, most, 32) for most in (4, 8, 12, 32)]
    shares = [found.deviation / found.scale for found in levels]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(0.5 / math.sqrt(80), rel=1e-3)  # clip over sqrt(honest)
    assert shares[0] > 10 * shares[-1]  # a level is a hundredth of the clip's largest value


@pytest.mark.parametrize("variance", [4.0, 25.0, 400.0])
@pytest.mark.parametrize("shift", [1, 3])
def test_the_bound_is_above_the_divergence_itself_and_close(variance: float, shift: int) -> None:
    support = np.arange(-400, 401)
    half = variance / 2
    ours = stats.skellam.logpmf(support, half, half)
    theirs = stats.skellam.logpmf(support - shift, half, half)
    orders = np.array([2.0, 4.0, 8.0])
    bound = _skellam(event.skellam(variance, shift, shift), "add_remove", orders)
    good = np.isfinite(ours) & np.isfinite(theirs) & (ours > -600) & (theirs > -600)
    for order, most in zip(orders, bound, strict=True):
        terms = order * theirs[good] + (1 - order) * ours[good]
        divergence = np.logaddexp.reduce(terms) / (order - 1)
        assert divergence <= most
        if variance == 400:
            assert divergence == pytest.approx(most, rel=0.03)


def test_the_bound_is_that_of_the_paper() -> None:
    """Theorem 3.5 of Agarwal et al. 2021, by hand: variance 10, D1 = 6, D2 = 3, order 4."""
    found = _skellam(event.skellam(10.0, 6, 3), "add_remove", np.array([4.0]))
    assert found[0] == pytest.approx(4 * 9 / 20 + min((7 * 9 + 36) / 400, 18 / 20))
    coarse = _skellam(event.skellam(0.25, 3, 3), "add_remove", np.array([4.0]))
    assert coarse[0] == pytest.approx(4 * 9 / 0.5 + 9 / 0.5)


# Its room --------------------------------------------------------------------------------------


@given(st.integers(3, 2000), st.floats(0.05, 50), st.integers(8, 31), st.integers(20, 32))
@settings(max_examples=80, deadline=None)
def test_the_finest_levels_that_fit_are_taken(
    terms: int, multiplier: float, most: int, modulus: int
) -> None:
    one = Round(1000, terms, max(1, terms * 4 // 5), 1.0, 1.0)
    least = multiplier * one.moves(0.5) / 2 / math.sqrt(one.honest)  # of two levels, 0 and 1
    if skellam.room(terms, 1, least) >= 1 << modulus:
        with pytest.raises(FedSightError, match="does not fit"):
            one.levels(multiplier, most, modulus)
        return
    found = one.levels(multiplier, most, modulus)
    assert found.bits <= most
    assert skellam.room(terms, (1 << found.bits) - 1, found.deviation) < 1 << modulus
    finer = one.levels(multiplier, found.bits + 1, 62)
    if found.bits < most:
        assert finer.bits == found.bits + 1
        assert skellam.room(terms, (1 << finer.bits) - 1, finer.deviation) >= 1 << modulus


@pytest.mark.parametrize("variance", [0.1, 1.0, 30.0, 1e4, 1e8])
def test_noise_leaves_its_room_less_often_than_is_said(variance: float) -> None:
    half = (skellam.room(1, 0, math.sqrt(variance)) - 1) // 2
    if variance < 1e5:
        stray = float(stats.skellam.sf(half, variance / 2, variance / 2))
    else:
        stray = float(stats.norm.sf(half / math.sqrt(variance)))
    assert stray <= 2.0**-skellam.STRAYS
    assert skellam.room(7, 5, 0.0) == 36


def levels_only(levels: Residues) -> Words:
    return Words(levels, np.empty(0, np.uint64))


def test_sums_that_noise_leads_below_nothing_come_out_again() -> None:
    of = plan({"delta": 500}, multiplier=5.0, bits=8, corrupt=0.0, dropout=0.0)
    how = of.quantiser(3)
    top = (1 << how.bits) - 1
    low, high = {"delta": torch.full((500,), -1.0)}, {"delta": torch.full((500,), 1.0)}
    for payload, end in ((low, 0), (high, top)):
        total = SecureSum(of, 3)
        kept = np.zeros(500, np.int64)
        for site in ("a", "b", "c"):
            words = how.encode(payload, 1, site, 3, 1, noise())
            kept += words.view(np.int32)
            total.add_words(levels_only(words), 1, site)
        assert (kept > 3 * top).any() if end else (kept < 0).any()
        mean = (kept / top * 2 - 3) / 3
        assert total.mean()["delta"].numpy() == pytest.approx(mean, abs=1e-9)


# In secure aggregation -------------------------------------------------------------------------


def test_down_to_the_threshold_whoever_drops_out_leaves_enough_noise() -> None:
    sites = [f"site-{number}" for number in range(6)]
    of = plan({"delta": 300, "control": 40}, corrupt=0.17, dropout=0.33)
    how = of.quantiser(6)
    parameters = of.secure.parameters(6)
    assert (parameters.survivors, of.accounted(6).honest) == (4, 3)
    payload = {"delta": torch.full((300,), 0.01), "control": torch.full((40,), -0.02)}
    words = {site: how.encode(payload, 1, site, 3, 1, noise(hash(site))) for site in sites}
    everyone = LocalExchange("run")
    for gone in itertools.chain.from_iterable(
        itertools.combinations(sites, count) for count in range(3)
    ):
        left = [site for site in sites if site not in gone]
        maskers = everyone.begin(1, "model", sites, parameters, how)
        total, plain = SecureSum(of, 6), SecureSum(of, 6)
        for site in left:
            masked = words[site].copy()
            maskers[site].mask(masked)
            total.add_words(levels_only(masked), 1, site)
            plain.add_words(levels_only(words[site]), 1, site)
        everyone.finish(total.words, left)
        assert np.array_equal(total.words.levels, plain.words.levels)
        assert len(left) >= parameters.survivors
        variance = (len(left) - 1) * how.deviation**2  # one of them may collude
        ((paid, _),) = of.privacy.events(of.accounted(6), 1, 1.0)  # type: ignore[attr-defined]
        assert variance >= (paid.noise * paid.l2) ** 2 * (1 - 1e-12)


def test_ranges_of_several_vectors_are_all_within_what_is_accounted() -> None:
    """The finest of the ranges decides the bound."""
    one = plan({"delta": 300}).accounted(10)
    both = plan({"delta": 300, "control": 300}, clip_others=0.25).accounted(10)
    assert (one.reach, both.reach) == (1.0, 0.25)
    assert both.size == 600


def test_no_update_leaves_without_its_noise_nor_twice_with_the_same_in_another_size() -> None:
    of = plan({"delta": 2000})
    payload = {"delta": torch.zeros(2000)}
    with pytest.raises(SiteError, match="no source of noise"):
        of.quantiser(10).encode(payload, 1, "a", 3, 1)

    def drawn(terms: int, round: int = 1, site: str = "a", secret: int = 1) -> np.ndarray:  # type: ignore[type-arg]
        how = of.quantiser(terms)
        quiet = replace(how, deviation=0.0).encode(payload, 1, site, 3, round)
        loud = how.encode(payload, 1, site, 3, round, noise(secret))
        return (loud - quiet).view(np.int32) / how.deviation

    first = drawn(10)
    assert np.array_equal(first, drawn(10))
    for other in (drawn(20), drawn(10, round=2), drawn(10, site="b"), drawn(10, secret=2)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.1


def test_an_epsilon_is_met_with_little_to_spare() -> None:
    mechanism = Distributed(epsilon=8.0, delta=1e-5, clip=0.5)
    faced = Secure(name="secagg").facing(Accounted(50, None, 10), {"delta": SIZE}, 50, 0.1)
    assert 7.99 < mechanism.spent(faced, 10) <= 8.0
    assert mechanism.spent(faced, 5) < mechanism.spent(faced, 10)
    assert mechanism.spent(faced, 0) == 0
    rough = Secure(name="secagg", bits=8).facing(Accounted(50, None, 10), {"delta": SIZE}, 50, 0.1)
    assert mechanism.noise(rough) == pytest.approx(mechanism.noise(faced), rel=0.01)
    assert mechanism.levels(rough).bits == 8
