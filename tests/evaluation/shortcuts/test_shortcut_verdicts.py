"""Verdicts: sites that are alike are named as seldom as is said, and marks are found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedsight.evaluation.shortcuts import verdicts
from fedsight.evaluation.shortcuts.counts import WHOLE, Looks, Pastes
from fedsight.evaluation.shortcuts.verdicts import DIFFERS, SHORTCUT, findings, tail

SPOTS, CLASSES = 36, 10


def looks(hottest: np.ndarray) -> Looks:
    """Of counts [classes, spots + 1] of the spot that matters most."""
    found = Looks.none(*(hottest.shape[0], hottest.shape[1] - 1))
    found.hottest.copy_(torch.from_numpy(hottest))
    return found


def alike(seed: int, sites: int = 10) -> dict[int, Looks]:
    """Sites whose images of a class are alike, but which have few classes, each unevenly."""
    rng = np.random.default_rng(seed)
    where = rng.dirichlet(np.full(SPOTS + 1, 0.3), CLASSES)  # few spots matter
    found = {}
    for site in range(sites):
        counts = np.minimum(12, rng.geometric(0.15, CLASSES) - 1)
        rows = [rng.multinomial(n, where[label]) for label, n in enumerate(counts)]
        found[site] = looks(np.stack(rows))
    return found


def pastes(raised: list[int], tried: list[int]) -> Pastes:
    made = torch.zeros(len(raised), dtype=torch.int64)
    return Pastes(torch.tensor(tried), made, torch.tensor(raised))


def test_the_exact_test_is_fishers() -> None:
    """The lady tasting tea (Fisher 1935): 3 or 4 of 4 cups right, 17 in 70."""
    assert tail(3, 4, (1, 4)) == pytest.approx(17 / 70)
    assert tail(4, 4, (0, 4)) == pytest.approx(1 / 70)
    assert tail(0, 4, (4, 4)) == 1
    assert tail(12, 12, (0, 500)) == pytest.approx(1 / math.comb(512, 12))


def test_sites_that_are_alike_are_hardly_ever_named() -> None:
    """The weakened rule, which does not count its tests, names a site in nearly every run."""
    runs = [alike(seed) for seed in range(200)]
    named = sum(bool(findings(run)[0]) for run in runs)
    assert named <= 6  # 2 are expected at most; 7 or more have a probability below 0.005
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts, "_tests", lambda least: 1)
        weak = sum(bool(findings(run)[0]) for run in runs[:20])
    assert weak >= 10


def test_a_mark_at_one_site_is_found_with_its_spot_and_class() -> None:
    run = alike(3)
    run[4].hottest[2] = 0
    run[4].hottest[2, 5] = 9
    (one,), _ = findings(run)
    assert (one.site, one.label, one.spot) == (4, 2, 5)
    assert one.hottest == one.images == 9
    assert one.p <= verdicts.FALSE_ALARM


def test_a_class_of_one_site_alone_is_not_compared() -> None:
    run = alike(3, sites=4)
    for look in run.values():
        look.hottest[2] = 0
    run[1].hottest[2, 5] = 12
    named, tests = findings(run)
    assert named == []
    assert (1, 2) in verdicts.uncompared(run, tests)
    run[3].hottest[2, 20] = 12
    named, tests = findings(run)
    assert [(one.site, one.label, one.spot) for one in named] == [(1, 2, 5), (3, 2, 20)]
    assert not {(1, 2), (3, 2)} & {*verdicts.uncompared(run, tests)}


def test_only_tests_that_can_find_something_are_counted() -> None:
    """Tarone (1990): as many as could be significant if no others were made."""
    assert verdicts._tests([]) == 1
    assert verdicts._tests([0.5] * 1000) == 1
    assert verdicts._tests([1e-9] * 40 + [0.5] * 1000) == 40
    assert verdicts._tests([0.009] * 40) == 2  # of which none can be at most 0.005


def test_whether_a_spot_speaks_for_the_class_decides() -> None:
    run = alike(3)
    run[4].hottest[2] = 0
    run[4].hottest[2, 5] = 9
    found, _ = findings(run)
    strong = {site: pastes([50 if site == 4 else 2], [50]) for site in run}
    assert verdicts.verdicts(run, found, strong) == {0: SHORTCUT}
    weak = {site: pastes([10], [50]) for site in run}
    assert verdicts.verdicts(run, found, weak) == {0: DIFFERS}
    nobody = {site: pastes([0], [0]) for site in run}
    assert verdicts.verdicts(run, found, nobody) == {0: DIFFERS}


def test_a_site_is_not_named_because_another_one_has_the_shortcut() -> None:
    """Of two sites one has a mark. At the other all look where the class is, and nobody does so at
    the first: that alone makes it conspicuous."""
    run = {site: looks(np.zeros((1, SPOTS + 1), np.int64)) for site in (0, 1)}
    run[0].hottest[0, 0] = 12  # the mark
    run[1].hottest[0, 20] = 12  # what all others look at
    found, _ = findings(run)
    assert [(one.site, one.spot) for one in found] == [(0, 0), (1, 20)]
    # pasted, spot 0 speaks for the class where the mark is; spot 20 is alike at both
    both = {0: pastes([40, 25], [40, 40]), 1: pastes([2, 24], [40, 40])}
    assert verdicts.verdicts(run, found, both) == {0: SHORTCUT}


def test_a_spot_that_decides_at_all_sites_has_to_make_the_class() -> None:
    assert verdicts.decides(90, 100)
    assert not verdicts.decides(50, 100)
    assert not verdicts.decides(6, 10)  # beyond one half, by chance
    assert not verdicts.decides(0, 0)


def test_counts_are_whole_and_add_up_whatever_is_counted() -> None:
    generator = torch.Generator().manual_seed(3)
    drops = torch.randn(40, SPOTS, generator=generator)
    drops[3] = -1.0  # nothing speaks for the class
    drops[7, 2] = torch.nan
    labels = torch.arange(40) % 3
    right, without = drops[:, 0] > 0, drops > 0.5
    whole = Looks.of(drops, labels, (right, without), 3)
    halves = [
        Looks.of(drops[at], labels[at], (right[at], without[at]), 3)
        for at in (slice(0, 17), slice(17, 40))
    ]
    for name, value in vars(halves[0] + halves[1]).items():
        assert value.dtype == torch.int64
        assert torch.equal(value, getattr(whole, name))
    assert int(whole.hottest.sum()) == 40
    assert whole.hottest[0, -1] == 1  # image 3
    assert whole.hottest[1, -1] == 1  # image 7
    assert abs(int(whole.mass.sum()) - 38 * WHOLE) <= 38 * SPOTS / 2
    assert int(whole.peak.sum()) <= 38 * WHOLE
    for label in range(3):
        mine = (labels == label) & right
        assert whole.right[label] == mine.sum()
        assert torch.equal(whole.lost[label], (~without[mine]).sum(0))
