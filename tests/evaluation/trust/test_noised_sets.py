"""Sets from histograms with noise cover what was asked, the noise counted in; a threshold that
takes the noised numbers as they are does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsight.core.types import Sum
from fedsight.evaluation.trust import noised
from fedsight.evaluation.trust.conformal import BINS, histogram, needed, threshold
from fedsight.evaluation.trust.sets import Sets
from fedsight.privacy import noised_sums

SITES, EACH, ASKED, RUNS = 4, 2500, 0.9, 300


def sums(scores: torch.Tensor, multiplier: float) -> list[noised_sums.NoisedSums]:
    """What each site sends of its scores; the energies are the same here."""
    found = []
    for own in scores.chunk(SITES):
        exact = Sum(noised.coarse(histogram(own)), len(own))
        both = dict.fromkeys(noised.BOUNDS, exact)
        made = noised_sums.noised(both, noised.BOUNDS, multiplier)
        noises = noised_sums.deviation(noised.BOUNDS, multiplier)
        found.append(noised_sums.NoisedSums(made, noises))
    return found


def failing(multiplier: float, count: int) -> noised_sums.NoisedSums:
    """What a site sends whose measuring fails."""
    made = noised_sums.noised(noised.nothing(count), noised.BOUNDS, multiplier)
    return noised_sums.NoisedSums(made, noised_sums.deviation(noised.BOUNDS, multiplier))


def envelope(sites: list[noised_sums.NoisedSums]) -> torch.Tensor:
    noise = noised.deviation_of(one.deviation[noised.SCORES] for one in sites)
    return noised.envelope(noised.added(sites, noised.SCORES), noise)


def believed(sites: list[noised_sums.NoisedSums]) -> float:
    """The threshold by the noised numbers as if they were exact."""
    total = noised.added(sites, noised.SCORES)
    allowed = total.count - needed(total.count, ASKED)
    beyond = np.asarray(total.total)[::-1].cumsum()[::-1]
    return next(edge for edge in range(1, noised.COARSE) if beyond[edge] <= allowed) / noised.COARSE


def drawn(count: int, seed: int) -> torch.Tensor:
    """Scores of true classes, as often each."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covered(limit: float | None, seed: int) -> float:
    """The share of other images within a limit."""
    assert limit is not None
    return float((drawn(20_000, 10_000 + seed) <= limit).double().mean())


def test_sets_cover_what_was_asked_with_the_noise_and_not_without_counting_it() -> None:
    ours, naive = [], []
    for seed in range(RUNS):
        sites = sums(drawn(SITES * EACH, seed), 30.0)
        ours.append(covered(threshold(envelope(sites), ASKED), seed))
        naive.append(covered(believed(sites), seed))
    assert min(ours) >= ASKED - 0.01, "by chance a little more lies beyond an exact threshold"
    assert float(np.mean(ours)) >= ASKED
    assert min(naive) < ASKED - 0.02
    assert sum(one < ASKED for one in naive) > RUNS // 10


@pytest.mark.parametrize("multiplier", [0.5, 5.0, 20.0])
def test_no_number_is_less_than_the_true_one(multiplier: float) -> None:
    width, worst = BINS // noised.COARSE, 0
    for seed in range(200):
        scores = drawn(SITES * EACH, seed)
        exact = histogram(scores).reshape(noised.COARSE, width).sum(1)
        made = envelope(sums(scores, multiplier)).reshape(noised.COARSE, width).sum(1)
        assert int(made.sum()) == len(scores)
        assert bool((made >= 0).all())
        beyond = [one.flip(0).cumsum(0) for one in (exact, made)]
        worst += int(bool((beyond[1] < beyond[0]).any()))
    assert worst <= 2  # one in a thousand, of 200


def test_without_noise_it_is_the_threshold_of_the_edge_or_the_next() -> None:
    """What is left is the coverage that is added for what may fail."""
    scores = drawn(4000, 1)
    exact = Sum(noised.coarse(histogram(scores)), len(scores))
    found = threshold(noised.envelope(exact, 0.0), ASKED)
    limit = threshold(histogram(scores), ASKED)
    assert found is not None
    assert limit is not None
    assert limit <= found <= limit + 2 / noised.COARSE


def test_the_histogram_is_kept_and_read_like_any_other() -> None:
    counts = torch.zeros(3, BINS, dtype=torch.int64)
    counts[0] = envelope(sums(drawn(SITES * EACH, 3), 5.0))
    again = Sets.of(Sets("lac", counts, {"north": counts[0]}).plain(), 3)
    assert torch.equal(again.classes, counts)
    assert torch.equal(again.limits("mixture", 0.8), again.limits("site", 0.8, "north"))


def test_where_noise_hides_all_there_is_no_threshold_within_the_scale() -> None:
    scores = drawn(40, 5)
    assert threshold(envelope(sums(scores, 20.0)), ASKED) == 1.0


@pytest.mark.parametrize("multiplier", [0.1, 5.0])
def test_a_site_whose_measuring_fails_does_not_lower_the_threshold(
    multiplier: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = drawn(SITES * EACH, 2)
    measured = sums(scores, multiplier)
    site = len(scores) // 40  # few enough that its images leave some of the scale
    limit = threshold(envelope(measured), ASKED)
    with_blank = threshold(envelope([*measured, failing(multiplier, site)]), ASKED)
    assert limit is not None
    assert with_blank is not None
    assert limit <= with_blank < 1
    assert covered(with_blank, 2) >= ASKED
    alone = threshold(envelope([failing(multiplier, EACH)]), ASKED)
    assert alone == 1, "of its own images nothing is known"

    def zeros(images: int) -> dict[str, Sum]:
        return {name: Sum(np.zeros(noised.COARSE), images) for name in noised.BOUNDS}

    monkeypatch.setattr(noised, "nothing", zeros)
    many = [*measured, failing(multiplier, len(scores))]
    lower = threshold(envelope(many), ASKED)
    assert covered(lower, 2) < ASKED, "zeros say that none of its images lies beyond any edge"
