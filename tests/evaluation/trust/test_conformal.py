"""Prediction sets cover what they promise, whatever the scores, and histograms lose nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, betabinom

from fedsight.core.errors import DataError
from fedsight.evaluation.trust import conformal
from fedsight.evaluation.trust.conformal import (
    MANY,
    covered,
    histogram,
    scores,
    smallest,
    threshold,
)
from fedsight.evaluation.trust.sets import Sets

COVERAGES = st.floats(0.05, 0.99)
SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


def exact(values: list[float], coverage: float) -> float:
    """The definition: the ceil((n + 1) coverage)-th smallest score, or infinity."""
    rank = math.ceil((len(values) + 1) * coverage - 1e-9)
    return sorted(values)[rank - 1] if rank <= len(values) else math.inf


@given(SCORES, COVERAGES)
def test_the_threshold_of_a_histogram_is_never_below_the_exact_one(
    values: list[float], coverage: float
) -> None:
    found = threshold(histogram(torch.tensor(values, dtype=torch.float64)), coverage)
    wanted = exact(values, coverage)
    if math.isinf(wanted):
        assert found is None
    else:
        assert found is not None
        assert wanted <= found <= wanted + 1 / conformal.BINS


@given(COVERAGES)
def test_the_smallest_number_of_images_is_enough_and_one_fewer_is_not(coverage: float) -> None:
    least = smallest(coverage)
    for images, enough in ((least, True), (least - 1, False)):
        found = threshold(histogram(torch.full((images,), 0.5)), coverage)
        assert (found is not None) == enough
    assert smallest(0.9) == 9
    assert smallest(0.95) == 19


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
def test_sets_cover_exchangeable_images_of_a_model_that_is_wrong(method: str) -> None:
    """Over splits of 100 and 200 images the mean coverage is 90 % and little more, and 95 % of
    single ones are where the beta-binomial law puts them. Labels come from other probabilities than
    those that the model gives."""
    draws = torch.Generator().manual_seed(3)
    logits = torch.randn(4000, 6, generator=draws) * 2
    truth = torch.softmax(logits * 0.4, 1).multinomial(1, generator=draws).squeeze(1)
    shares = torch.softmax(logits, 1)
    shown, low, high = [], *covered(100, 0.9, 200)
    for _ in range(300):
        order = torch.randperm(4000, generator=draws)
        held, tested = order[:100], order[100:300]
        counts = Sets.counted(method, shares[held], truth[held], logits[held])
        sets = Sets(method, counts, {})
        inside = sets.inside(sets.limits("mixture", 0.9), shares[tested], logits[tested])
        shown.append(float(inside.gather(1, truth[tested, None]).double().mean()))
    assert 0.9 - 0.006 <= np.mean(shown) <= 0.9 + 1 / 101 + 0.008
    assert np.mean([low <= share <= high for share in shown]) >= 0.92


def test_each_class_is_covered_where_the_guarantee_is_its_own() -> None:
    """A model that never believes in class 2 covers it in no common set."""
    draws = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (6000,), generator=draws)
    logits = 3.0 * torch.nn.functional.one_hot(truth, 3) + torch.randn(6000, 3, generator=draws)
    logits[:, 2] -= 4.0
    shares, half = torch.softmax(logits, 1), slice(0, 3000)
    sets = Sets("lac", Sets.counted("lac", shares[half], truth[half], logits[half]), {})
    found = {}
    for guarantee in ("mixture", "class"):
        inside = sets.inside(sets.limits(guarantee, 0.8), shares[3000:], logits[3000:])
        right = inside.gather(1, truth[3000:, None]).squeeze(1)
        found[guarantee] = [float(right[truth[3000:] == c].double().mean()) for c in range(3)]
    assert found["mixture"][2] < 0.6
    assert min(found["class"]) > 0.77


def test_scores_are_those_of_the_papers() -> None:
    shares, draw = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([0.5])
    assert scores("lac", shares, draw)[0].tolist() == pytest.approx([0.5, 0.7, 0.8])
    assert scores("aps", shares, draw)[0].tolist() == pytest.approx([0.25, 0.65, 0.9])
    raps = [0.25 / 1.2, 0.75 / 1.2, 1.1 / 1.2]  # 0.1 for each rank beyond the first, of at most 1.2
    assert scores("raps", shares, draw)[0].tolist() == pytest.approx(raps)


def test_the_spread_of_coverage_is_beta_binomial() -> None:
    for images, coverage, tested in ((9, 0.9, 30), (500, 0.9, 2000), (40, 0.5, 17)):
        rank = math.ceil((images + 1) * coverage - 1e-9)
        law = betabinom(tested, rank, images + 1 - rank)
        low, high = covered(images, coverage, tested)
        assert (low * tested, high * tested) == pytest.approx((law.ppf(0.025), law.ppf(0.975)))


def test_the_spread_of_more_images_than_it_depends_on_takes_no_longer() -> None:
    """A site says how many images it has tested: 2^24 took seconds and 500 MB."""
    assert covered(500, 0.9, 1 << 24) == covered(500, 0.9, MANY)
    law = beta(451, 50)  # of ever more images
    assert covered(500, 0.9, 1 << 24) == pytest.approx(law.ppf((0.025, 0.975)), abs=1e-3)


def test_histograms_of_sites_add_up_to_those_of_all_images() -> None:
    draws = torch.Generator().manual_seed(1)
    logits = torch.randn(300, 5, generator=draws)
    truth, shares = torch.randint(0, 5, (300,), generator=draws), torch.softmax(logits, 1)
    whole = Sets.counted("aps", shares, truth, logits)
    site = torch.randint(0, 4, (300,), generator=draws)
    parts = [
        Sets.counted("aps", shares[site == one], truth[site == one], logits[site == one])
        for one in range(4)
    ]
    assert torch.equal(torch.stack(parts).sum(0), whole)
    kept = Sets.of(Sets("aps", whole, {"lyon": whole.sum(0)}).plain(), 5)
    assert torch.equal(kept.classes, whole)
    assert torch.equal(kept.sites["lyon"], whole.sum(0))


def test_too_few_images_name_the_smallest_number_that_is_enough() -> None:
    counts = torch.zeros(2, conformal.BINS, dtype=torch.int64)
    counts[0, 7] = 8
    sets = Sets("lac", counts, {"oslo": counts[0]})
    for guarantee, site in (("mixture", None), ("class", None), ("site", "oslo")):
        whose = " of each class, at most," if guarantee == "class" else ""
        with pytest.raises(DataError, match=f"8 held-out inputs{whose} are too few") as error:
            sets.limits(guarantee, 0.9, site)
        assert f"at least 9{whose[:14]}," in error.value.cure
        assert sets.limits(guarantee, 0.8, site)[0] == 8 / conformal.BINS
    assert math.isinf(sets.limits("class", 0.8)[1])  # a class without images is in every set
    with pytest.raises(DataError, match="no site with held-out inputs is named") as error:
        sets.limits("site", 0.5)
    assert "oslo" in error.value.cure
    with pytest.raises(DataError, match="no site has held-out inputs"):
        Sets("lac", counts, {}).limits("site", 0.5)
