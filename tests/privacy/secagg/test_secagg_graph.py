"""The parameters are those that the stated rates ask for, and the graph is what they say."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsight.core.errors import SiteError
from fedsight.privacy.secagg import graph, tails
from fedsight.privacy.secagg.graph import Graph, Parameters, colluding, parameters
from fedsight.privacy.secagg.tails import least_rare

# (k, t) at 10 % corrupt and 10 % drop-outs: honest-but-curious, split view.
KNOWN = {
    100: ((22, 11), (32, 22)),
    1_000: ((48, 27), (96, 67)),
    10_000: ((54, 31), (122, 85)),
}


@pytest.mark.parametrize("split_view", [False, True])
@pytest.mark.parametrize("sites", KNOWN)
def test_known_parameters_are_reproduced(
    sites: int, split_view: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "COMPLETE", 0)
    found = parameters.__wrapped__(sites, 0.1, 0.1, split_view)
    assert (found.neighbours, found.threshold) == KNOWN[sites][split_view]
    assert found.survivors == sites - sites // 10


@pytest.mark.parametrize(
    ("sites", "grinding", "due"),
    [
        (1_000, 0, Parameters(96, 67, 900, 21, 69, 49)),
        (1_000, 40, Parameters(120, 87, 900, 28, 94, 70)),
        (10_000, 0, Parameters(122, 85, 9_000, 26, 76, 54)),
        (10_000, 40, Parameters(156, 113, 9_000, 37, 109, 81)),
    ],
)
def test_a_coordinator_that_tries_out_many_graphs_costs_more_neighbours(
    sites: int, grinding: int, due: Parameters
) -> None:
    assert parameters(sites, 0.1, 0.1, True, grinding=grinding) == due


def chance(population: int, marked: int, draws: int, least: int) -> Fraction:
    """P[X >= least] of the hypergeometric distribution, term by term."""
    ways = [
        math.comb(marked, hits) * math.comb(population - marked, draws - hits)
        for hits in range(least, draws + 1)
    ]
    return Fraction(sum(ways), math.comb(population, draws))


@given(st.integers(1, 60), st.data())
def test_the_least_rare_number_is_rare_and_the_one_below_is_not(
    population: int, data: st.DataObject
) -> None:
    marked, draws = (data.draw(st.integers(0, population)) for _ in range(2))
    events, bits = data.draw(st.integers(1, 1000)), data.draw(st.integers(0, 40))
    found = least_rare(population, marked, draws, events, bits)
    assert events * chance(population, marked, draws, found) <= Fraction(1, 1 << bits)
    if found > 0:
        assert events * chance(population, marked, draws, found - 1) > Fraction(1, 1 << bits)


@given(st.integers(1, 2_000), st.data())
def test_what_is_clear_in_floating_point_is_so_in_integers(
    population: int, data: st.DataObject
) -> None:
    marked, draws = (data.draw(st.integers(0, population)) for _ in range(2))
    events, bits = data.draw(st.integers(1, 10**6)), data.draw(st.integers(0, 90))
    rarity = bits * math.log(2) + math.log(events)
    found = tails._in_floats(population, marked, draws, rarity)
    assert found in (None, tails._in_integers(population, marked, draws, events, bits))


def test_a_close_call_is_not_decided_in_floating_point() -> None:
    """P[X >= 1] of one draw is 1/4: at most 2^-2, by no margin."""
    assert tails._in_floats(8, 2, 1, 2 * math.log(2)) is None
    assert least_rare(8, 2, 1, 1, 2) == 1
    assert least_rare(8, 2, 1, 1, 3) == 2


def one_by_one(
    sites: int, bad: int, gone: int, grinding: int | None, least: int
) -> tuple[int, ...] | None:
    """What `_sparse` finds, without passing over any number."""
    split, bits = grinding is not None, 41 + (grinding or 0)

    def signers() -> tuple[int, int] | None:
        for members in range(1, sites + 1):
            both = least_rare(sites, bad, members, 1, 40 + (grinding or 0))
            needed = -(-(members + both) // 2)
            if least_rare(sites, gone, members, 1, 20) <= members - needed + 1:
                return members, needed
        return None

    signing = signers() if split else (0, 0)
    for k in range(least + least % 2, sites - 1, 2):
        colluders = least_rare(sites - 1, bad, k, sites, bits)
        t = max(2, -(-(k + colluders) // 2) if split else colluders)
        pairs = math.comb(sites, 2)
        removed = bad + gone
        window = (least_rare(sites, bad, k, pairs, bits) - 1) // 2 + 1 if split else 0
        apart = k <= removed and (
            pairs * math.comb(sites - k, removed - k) << 41 > math.comb(sites, removed)
        )
        if (
            t <= k
            and least_rare(sites - 1, gone, k, sites, 20) <= k - t + 1
            and least_rare(sites, gone, k // 2, sites, 20) <= k // 2 - window + 1
            and not apart
            and signing is not None
        ):
            return k, t, window, *signing
    return None


@settings(deadline=None, max_examples=25)
@given(
    st.integers(3, 250),
    st.floats(0, 0.4),
    st.floats(0, 0.4),
    st.sampled_from([None, 0, 40]),
    st.integers(2, 40),
)
def test_no_number_that_would_do_is_passed_over(
    sites: int, corrupt: float, dropout: float, grinding: int | None, least: int
) -> None:
    bad, gone = colluding(sites, corrupt), math.ceil(dropout * sites)
    due = one_by_one(sites, bad, gone, grinding, least)
    assert graph._sparse(sites, bad, gone, grinding, least) == due


@pytest.mark.parametrize(("sites", "grinding"), [(1_000, 0), (1_000, 40), (10_000, 40)])
def test_a_committee_certifies_one_pair_of_lists_and_survives(sites: int, grinding: int) -> None:
    found = parameters(sites, 0.1, 0.1, True, grinding=grinding)
    bad, c, needed = sites // 10, found.committee, found.signatures
    assert chance(sites, bad, c, 2 * needed - c) <= Fraction(1, 1 << (40 + grinding))
    assert chance(sites, bad, c, c - needed + 1) <= Fraction(1, 1 << 20)


@pytest.mark.parametrize(("sites", "grinding"), [(1_000, 0), (1_000, 40), (10_000, 40)])
def test_honest_survivors_stay_connected_and_natural_drop_outs_pass(
    sites: int, grinding: int
) -> None:
    found = parameters(sites, 0.1, 0.1, True, grinding=grinding)
    bad, k, w = sites // 10, found.neighbours, found.window
    # Two windows of w survivors each hold an honest one, unless they hold 2 w colluders.
    pairs = math.comb(sites, 2)
    assert pairs * chance(sites, bad, k, 2 * w) <= Fraction(1, 1 << (41 + grinding))
    assert sites * chance(sites, bad, k // 2, k // 2 - w + 1) <= Fraction(1, 1 << 20)


@given(st.integers(12, 60), st.integers(1, 5), st.sets(st.integers(0, 59)))
def test_the_thinnest_window_is_found(sites: int, half: int, some: set[int]) -> None:
    ring = Graph(sites, 2 * half, b"seed")
    windows = [
        {ring.order[(start + step) % sites] for step in range(half)} for start in range(sites)
    ]
    assert ring.thinnest(some) == min(len(window & some) for window in windows)


def test_more_neighbours_than_needed_get_a_threshold_of_their_own() -> None:
    found = parameters(1_000, 0.1, 0.1, True, neighbours=150)
    assert found.neighbours == 150
    assert found.threshold > 150 // 2 + 1
    assert parameters(1_000, 0.1, 0.1, True, neighbours=999).neighbours == 999


@pytest.mark.parametrize(
    ("sites", "split_view", "due"),
    [
        (3, True, Parameters(2, 2, 2, 0, 3, 2)),
        (4, True, Parameters(3, 3, 3, 0, 4, 3)),
        (10, True, Parameters(9, 6, 9, 0, 10, 6)),
        (10, False, Parameters(9, 2, 3)),
        (100, True, Parameters(99, 56, 90, 0, 100, 56)),
        (100, False, Parameters(99, 11, 12)),
    ],
)
def test_small_graphs_are_complete(sites: int, split_view: bool, due: Parameters) -> None:
    assert parameters(sites, 0.1, 0.1, split_view) == due


@given(st.integers(3, 100), st.floats(0, 0.4), st.floats(0, 0.4))
def test_a_split_view_never_reveals_both_secrets_of_a_site(
    sites: int, corrupt: float, dropout: float
) -> None:
    try:
        found = parameters(sites, corrupt, dropout, True)
    except SiteError:  # nothing withstands these rates
        return
    colluders = int(corrupt * sites)
    # All k + 1 holders answer for one secret each, and the colluders for the other one too.
    assert sites + colluders < 2 * found.threshold
    assert found.threshold <= found.survivors <= sites


@pytest.mark.parametrize("sites", [0, 1, 2])
def test_a_sum_of_two_hides_nothing(sites: int) -> None:
    with pytest.raises(SiteError, match="hides nothing"):
        parameters(sites, 0.1, 0.1, True)


def test_rates_that_nothing_withstands_are_refused() -> None:
    with pytest.raises(SiteError, match="no threshold is both secure and robust"):
        parameters(10, 0.5, 0.4, True)
    with pytest.raises(SiteError, match="no threshold is both secure and robust"):
        parameters(200, 0.5, 0.4, True)


@given(st.integers(3, 150), st.integers(1, 30), st.binary(min_size=32, max_size=32))
def test_neighbours_are_mutual_and_as_many_as_asked(sites: int, half: int, seed: bytes) -> None:
    made = Graph(sites, min(2 * half, sites - 1), seed)
    near = [made.of(site) for site in range(sites)]
    for site, others in enumerate(near):
        assert len(others) == len(set(others)) == min(2 * half, sites - 1) or made.complete
        assert site not in others
        assert all(site in near[other] for other in others)


def test_the_order_is_the_seeds() -> None:
    one, same, other = (Graph(200, 8, seed).of(0) for seed in (b"a", b"a", b"b"))
    assert one == same != other


def test_many_sites_have_few_neighbours() -> None:
    assert parameters(101, 0.1, 0.1, True).neighbours < 100


@given(st.integers(3, 130), st.floats(0, 0.9), st.floats(0, 0.4), st.booleans())
def test_no_sum_is_of_one_honest_site(
    sites: int, corrupt: float, dropout: float, split_view: bool
) -> None:
    """Colluders know their own updates, and would be left with its."""
    try:
        found = parameters(sites, corrupt, dropout, split_view)
    except SiteError:
        return
    assert found.survivors - colluding(sites, corrupt) >= 2
