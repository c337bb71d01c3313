"""Figures from histograms are those that the scores themselves give, and histograms add."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fedsight.tasks.faces import verification as v


def unit(n: int, d: int = 4, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=draws), dim=1)


SCORES = st.lists(st.integers(0, v.BINS - 1), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES)
def test_auc_from_counts_is_the_share_of_pairs_in_the_right_order(
    genuine: list[int], impostor: list[int]
) -> None:
    counts = np.stack([np.bincount(one, minlength=v.BINS) for one in (genuine, impostor)])
    wins = [(a > b) + 0.5 * (a == b) for a in genuine for b in impostor]
    assert v.auc(counts.astype(float)) == pytest.approx(np.mean(wins))


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES, st.floats(0.001, 0.5))
def test_at_the_threshold_for_a_rate_that_rate_is_reached(
    genuine: list[int], impostor: list[int], far: float
) -> None:
    counts = np.stack([np.bincount(one, minlength=v.BINS) for one in (genuine, impostor)])
    threshold = v.threshold_at(counts.astype(float), far)
    assert v.rates_at(counts.astype(float), threshold)[0] == pytest.approx(far)
    assert 0 <= v.equal_error(counts.astype(float)) <= 1


def test_perfect_scores_and_reversed_ones() -> None:
    counts = np.zeros((2, v.BINS))
    counts[v.GENUINE, 900], counts[v.IMPOSTOR, 100] = 5, 7
    assert (v.auc(counts), v.equal_error(counts)) == (1.0, 0.0)
    assert v.auc(counts[::-1]) == 0.0
    assert v.equal_error(counts[::-1]) == pytest.approx(1.0)


def test_every_pair_is_counted_once_and_sites_add() -> None:
    people = torch.tensor([3, 3, 5, 5, 5, 9])
    one, other = v.verify(unit(6), people), v.verify(unit(6, seed=1), people)
    pairs = one["pairs"].total
    assert pairs.sum() == 15
    assert pairs[:, v.GENUINE].sum() == 1 + 3
    assert pairs[0].sum() == 1 + 2 + 0  # 3 and 9 are one half: three images
    assert pairs[1].sum() == 3  # 5 is the other
    assert pairs[2, v.GENUINE].sum() == 0  # nobody is in both halves
    both = one["pairs"] + other["pairs"]
    assert both.total.sum() == 30
    assert set(v.figures({**one, **v.identify(unit(6), people)}, (0.1,))) >= {"auc", "rank_1"}


def plainly(vectors: torch.Tensor, people: torch.Tensor, draws: torch.Tensor) -> list[Any]:
    """The sums of `verify`, pair by pair: [3, 2, BINS] and [RESAMPLES, 3, 2, COARSE]."""
    pairs = np.zeros((3, 2, v.BINS))
    resampled = np.zeros((v.RESAMPLES, 3, 2, v.COARSE))
    number = people.unique(return_inverse=True)[1].tolist()
    for at, one in enumerate(number):
        for to, other in list(enumerate(number))[at + 1 :]:
            score = float(vectors[at] @ vectors[to])
            group = one % 2 if one % 2 == other % 2 else 2
            kind = v.GENUINE if one == other else v.IMPOSTOR
            weights = draws[:, one] if one == other else draws[:, one] * draws[:, other]
            # as wide in the angle: 0 is the bin of opposite vectors
            angle = math.acos(min(max(score, -1.0), 1.0)) / math.pi
            fine, coarse = ((1 - angle) * bins for bins in (v.BINS, v.COARSE))
            pairs[group, kind, min(int(fine), v.BINS - 1)] += 1
            place = min(int(coarse), v.COARSE - 1)
            resampled[:, group, kind, place] += weights.numpy()
    return [pairs, resampled]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=24), st.integers(0, 99))
def test_sums_are_those_of_all_pairs_one_by_one(people: list[int], seed: int) -> None:
    numbers = torch.tensor(people)
    vectors = (unit(len(people), seed=seed) * 256).round() / 256  # products are then exact
    pixels = torch.rand(len(people), 3, generator=torch.Generator().manual_seed(seed))
    found = v.verify(vectors, numbers, pixels)
    number = numbers.unique(return_inverse=True)[1]
    pairs, resampled = plainly(vectors, numbers, v._draws(number, len(set(people)), pixels))
    assert np.array_equal(found["pairs"].total, pairs)
    assert np.array_equal(found["resampled"].total, resampled)


class Largest(TorchDispatchMode):
    """The most bytes that any tensor had which was made meanwhile."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, list | tuple) else [made]:
            if isinstance(one, torch.Tensor):
                self.bytes = max(self.bytes, one.numel() * one.element_size())
        return made


def test_memory_goes_by_images_not_by_pairs_and_resamples() -> None:
    with Largest() as largest:
        v.verify(unit(1000), torch.arange(250).repeat_interleave(4))
    assert largest.bytes < 1000**2  # two bytes a pair; with all their resamples it was 800


def test_resamples_repeat_and_hang_on_the_images_alone() -> None:
    people, vectors = torch.tensor([0, 0, 1, 1]), unit(4)
    pixels = torch.rand(4, 1, 2, 2)
    first = v.verify(vectors, people, pixels)["resampled"].total
    again = v.verify(vectors, people + 7, pixels)["resampled"].total
    other = v.verify(vectors, people, pixels * 0.5)["resampled"].total
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_interval_holds_the_figure_and_narrows_with_people() -> None:
    def width(people: int) -> float:
        numbers = torch.arange(people).repeat_interleave(4)
        vectors = torch.nn.functional.normalize(
            unit(people, 8).repeat_interleave(4, 0) + 0.5 * unit(4 * people, 8, seed=2), dim=1
        )
        found = v.figures({**v.verify(vectors, numbers), **v.identify(vectors, numbers)}, (0.1,))
        assert np.isnan(found["auc_low"]) or found["auc_low"] <= found["auc"] <= found["auc_high"]
        return found["auc_high"] - found["auc_low"]

    assert width(60) < width(12)
    assert np.isnan(width(8))  # too few people to tell


def test_thresholds_are_tested_on_people_who_did_not_choose_them() -> None:
    groups = np.zeros((3, 2, v.BINS))
    # In the first half impostors score at most 0.2, in the second at least 0.4.
    groups[0, v.IMPOSTOR, 600], groups[0, v.GENUINE, 650] = 10, 10
    groups[1, v.IMPOSTOR, 700], groups[1, v.GENUINE, 750] = 10, 10
    far, tar = v.crosswise(groups, 0.01)
    # The first's threshold lets all of the second in; the second's refuses all of the first.
    assert (far, tar) == (pytest.approx(0.5), pytest.approx(0.5))


def test_identification_of_known_vectors() -> None:
    axes = torch.eye(4)
    vectors = torch.cat([axes, axes])
    people = torch.arange(4).repeat(2)
    sums = v.identify(vectors, people)
    assert sums["rank"].total.tolist() == [4, 4]
    right, wrong, strangers = sums["open"].total
    assert (right.sum(), wrong.sum(), strangers.sum()) == (2, 0, 2)
    assert v.found_at(sums["open"].total, 0.1) == pytest.approx(1.0)


def test_nothing_to_compare_is_not_a_figure() -> None:
    found = v.figures(
        {**v.verify(unit(1), torch.tensor([0])), **v.identify(unit(1), torch.tensor([0]))}, (0.01,)
    )
    assert all(np.isnan(value) for value in found.values())


@pytest.mark.parametrize("spread", [0.01, 0.05, 0.3])
def test_vectors_that_are_all_close_to_each_other_keep_their_order(spread: float) -> None:
    """As before training: cosines of 0.999 and more. With bins of 0.04 the area's interval was 0.58
    to 0.67 beside an area of 0.97."""
    numbers = torch.arange(40).repeat_interleave(4)
    centres = unit(40, 16, seed=3).repeat_interleave(4, 0)
    near = torch.ones(16) / 4 + spread * (centres + 0.6 * unit(160, 16, seed=4))
    vectors = torch.nn.functional.normalize(near, dim=1).double()
    first, second = torch.triu_indices(160, 160, 1)
    scores = (vectors[first] * vectors[second]).sum(1)
    same = numbers[first] == numbers[second]
    genuine, impostor = scores[same].numpy()[:, None], scores[~same].numpy()[None]
    exact = float(((genuine > impostor) + (genuine == impostor) / 2).mean())
    found = v.figures({**v.verify(vectors, numbers), **v.identify(vectors, numbers)}, (0.1,))
    assert abs(found["auc"] - exact) <= found["auc_slack"] + 1e-9
    if spread >= 0.05:
        assert found["auc"] == pytest.approx(exact, abs=0.005)
        assert found["auc_slack"] < 0.06
    if spread < 0.05:  # the wider bins of resampled pairs hold other areas
        assert np.isnan(found["auc_low"])
        return
    assert found["auc_low"] <= found["auc"] <= found["auc_high"]
    assert found["auc_high"] - found["auc_low"] < 0.2


def test_an_interval_of_few_people_holds_the_area_of_all_of_them() -> None:
    """The middle 95 % of resamples of ten people held it in 82 of 100 draws."""
    draws = torch.Generator().manual_seed(3)

    def some(people: int) -> tuple[torch.Tensor, torch.Tensor]:
        centres = torch.randn(people, 16, generator=draws).repeat_interleave(3, 0)
        blur = torch.exp(0.4 * torch.randn(people, 1, generator=draws)).repeat_interleave(3, 0)
        vectors = centres + blur * torch.randn(3 * people, 16, generator=draws)
        numbers = torch.arange(people).repeat_interleave(3)
        return torch.nn.functional.normalize(vectors, dim=1), numbers

    vectors, numbers = some(300)
    scores, same = vectors @ vectors.T, numbers[:, None] == numbers
    pairs = torch.ones_like(scores, dtype=torch.bool).triu(1)
    whole = v.auc(np.stack([v.count(scores[one & pairs]).numpy() for one in (same, ~same)]))
    held = 0
    for _ in range(40):
        vectors, numbers = some(12)
        sums = {**v.verify(vectors, numbers, vectors), **v.identify(vectors, numbers)}
        found = v.figures(sums, (0.1,))
        held += found["auc_low"] <= whole <= found["auc_high"]
    assert held >= 34


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=16), st.integers(0, 99))
def test_probes_are_compared_with_all_images_but_their_own(people: list[int], seed: int) -> None:
    numbers = torch.tensor(people)
    vectors, probes = ((unit(len(people), seed=s) * 256).round() / 256 for s in (seed, seed + 1))
    found = v.verify(vectors, numbers, vectors, probes)
    pairs = np.zeros((3, 2, v.BINS))
    number = numbers.unique(return_inverse=True)[1].tolist()
    for at, one in enumerate(number):
        for to, other in enumerate(number):
            if at == to:
                continue
            group = one % 2 if one % 2 == other % 2 else 2
            kind = v.GENUINE if one == other else v.IMPOSTOR
            pairs[group, kind] += v.count((vectors[at] @ probes[to])[None]).numpy()
    assert np.array_equal(found["pairs"].total, pairs)


def test_probes_that_are_the_images_count_each_pair_twice() -> None:
    people = torch.arange(12).repeat_interleave(3)
    vectors = torch.nn.functional.normalize(unit(12).repeat_interleave(3, 0) + unit(36), dim=1)
    once, twice = v.verify(vectors, people), v.verify(vectors, people, None, vectors)
    for name in ("pairs", "resampled"):
        assert np.array_equal(twice[name].total, 2 * once[name].total)


def test_figures_of_probes_are_those_of_each_kind_and_of_all_at_one_threshold() -> None:
    people = torch.arange(12).repeat_interleave(4)
    vectors = torch.nn.functional.normalize(
        unit(12, 8).repeat_interleave(4, 0) + unit(48, 8), dim=1
    )
    sums = {**v.verify(vectors, people), **v.identify(vectors, people)}
    plain = v.figures(sums, (0.1,))
    assert v.kinds_of(sums) == ()
    far = torch.nn.functional.normalize(vectors + unit(48, 8, seed=3), dim=1)
    sums |= v.probed("near", v.verify(vectors, people, None, vectors))
    sums |= v.probed("far", v.verify(vectors, people, None, far))
    found = v.figures(sums, (0.1,))
    assert v.kinds_of(sums) == ("near", "far")
    assert {name: found[name] for name in plain} == plain
    assert found["near_tar_at_0.1"] == plain["tar_at_0.1"]
    assert found["far_tar_at_0.1"] < found["near_tar_at_0.1"]
    assert found["far_tar_at_0.1_low"] < found["far_tar_at_0.1"] < found["far_tar_at_0.1_high"]
    both = sums["near_pairs"].total + sums["far_pairs"].total
    assert found["degraded_auc"] == v.auc(both.sum(axis=0))
    assert found["degraded_tar_at_0.1"] == v.crosswise(both, 0.1)[1]
