"""The parameters are those that the stated rates ask for, and the graph is what they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import SiteError
from fedsight.privacy.secagg.graph import Graph, Parameters, parameters

# (k, t) at 10 % corrupt and 10 % drop-outs: honest-but-curious, split view.
KNOWN = {
    100: ((22, 11), (32, 22)),
    1_000: ((48, 27), (96, 67)),
    10_000: ((54, 31), (122, 85)),
}


@pytest.mark.parametrize("split_view", [False, True])
@pytest.mark.parametrize("sites", KNOWN)
def test_known_parameters_are_reproduced(sites: int, split_view: bool) -> None:
    found = parameters(sites, 0.1, 0.1, split_view, complete=0)
    assert (found.neighbours, found.threshold) == KNOWN[sites][split_view]
    assert found.survivors == sites - sites // 10


@pytest.mark.parametrize(
    ("sites", "split_view", "due"),
    [
        (3, True, Parameters(2, 2, 2, 0, 3, 2)),
        (4, True, Parameters(3, 3, 3, 0, 4, 3)),
        (10, True, Parameters(9, 6, 9, 0, 10, 6)),
        (10, False, Parameters(9, 2, 2)),
        (100, True, Parameters(99, 56, 90, 0, 100, 56)),
        (100, False, Parameters(99, 11, 11)),
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
    graph = Graph(sites, min(2 * half, sites - 1), seed)
    near = [graph.of(site) for site in range(sites)]
    for site, others in enumerate(near):
        assert len(others) == len(set(others)) == min(2 * half, sites - 1) or graph.complete
        assert site not in others
        assert all(site in near[other] for other in others)


def test_the_order_is_the_seeds() -> None:
    one, same, other = (Graph(200, 8, seed).of(0) for seed in (b"a", b"a", b"b"))
    assert one == same != other


def test_many_sites_have_few_neighbours() -> None:
    assert parameters(101, 0.1, 0.1, True).neighbours < 100
