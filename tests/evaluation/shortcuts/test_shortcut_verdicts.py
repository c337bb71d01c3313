"""Verdicts: sites that are alike are named as seldom as is said, and marks are found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedsight.evaluation.shortcuts import verdicts
from fedsight.evaluation.shortcuts.counts import WHOLE, Looks, Pastes
from fedsight.evaluation.shortcuts.verdicts import DIFFERS, SHORTCUT, UNTESTED, findings, tail

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


def pastes(raised: list[int], tried: list[int], donors: int = 12) -> Pastes:
    made = torch.zeros(len(raised), dtype=torch.int64)
    units = torch.tensor([min(donors, times) for times in tried])
    return Pastes(units, torch.tensor(tried), made, torch.tensor(raised))


def pasted(donors: int, tried: int, hits: int) -> dict[str, int]:
    """Of one spot at one site; all that were raised were given the class, too."""
    return {"donors": donors, "tried": tried, "made": hits, "raised": hits}


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


def test_a_site_that_has_nothing_to_paste_on_is_not_said_to_be_well() -> None:
    """All positives from one hospital: 16 of 16 against 0 of 32, and no other image there."""
    run = {site: looks(np.zeros((2, SPOTS + 1), np.int64)) for site in range(3)}
    run[0].hottest[0, 0] = 16
    for site in (1, 2):
        run[site].hottest[0, 20] = run[site].hottest[1, 20] = 16
    found, _ = findings(run)
    assert (found[0].site, found[0].spot, found[0].hottest) == (0, 0, 16)
    none = [0] * len(found)
    elsewhere = {site: pastes(none, [60] * len(found)) for site in (1, 2)}
    told = verdicts.verdicts(run, found, {0: pastes(none, none), **elsewhere})
    assert told == {0: UNTESTED}
    # as little can be said if there is nothing at the other sites to compare with
    alone = {0: pastes([60] * len(found), [60] * len(found)), 1: pastes(none, none)}
    assert verdicts.verdicts(run, found, alone | {2: pastes(none, none)})[0] == UNTESTED


def test_sites_that_only_stand_out_beside_one_that_cannot_be_tested_are_not_named() -> None:
    """Site 2 looks where sites 1 and 3 do less often; without site 0 that is no more than chance,
    and of two sites nobody can say which one is odd."""
    run = {site: looks(np.zeros((1, SPOTS + 1), np.int64)) for site in range(4)}
    run[0].hottest[0, 0] = 16  # may be a mark
    run[1].hottest[0, [20, 21]] = torch.tensor([10, 6])
    run[2].hottest[0, 20] = 16
    run[3].hottest[0, [20, 21]] = torch.tensor([10, 6])
    found, _ = findings(run)
    assert [one.site for one in found] == [0, 2]
    each = {site: pastes([30, 30], [60, 60]) for site in (1, 2, 3)}
    told = verdicts.verdicts(run, found, {0: pastes([0, 0], [0, 0]), **each})
    assert told == {0: UNTESTED}
    two = {site: run[site] for site in (0, 2)}
    found, _ = findings(two)
    told = verdicts.verdicts(two, found, {0: pastes([0, 0], [0, 0]), 2: each[2]})
    assert told == {0: UNTESTED, 1: UNTESTED}


def test_images_that_a_spot_is_taken_from_are_the_units() -> None:
    few, many = pasted(2, 60, 42), pasted(16, 60, 42)
    other = [pasted(16, 60, 18), pasted(16, 60, 18)]
    assert verdicts.speaks([many], other)
    assert not verdicts.speaks([few], other)  # 42 of 60, but of two images
    assert not verdicts.speaks([many], [pasted(1, 60, 18)])
    # more often than elsewhere, and not: never elsewhere
    assert verdicts.speaks([pasted(16, 60, 60)], [pasted(16, 120, 60), pasted(16, 120, 60)])
    assert not verdicts.speaks([pasted(0, 0, 0)], other)
    assert not verdicts.speaks([many], [pasted(0, 0, 0)])
    # each image counts once, whatever there was to paste it on
    assert verdicts._raised([pasted(1, 60, 60), pasted(3, 12, 0)]) == (0.25, 4)


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


def test_a_spot_decides_everywhere_only_if_it_does_at_two_sites_and_fails_at_none() -> None:
    clear = pasted(16, 60, 60)
    assert verdicts.deciding([clear, clear], 20) == 2
    assert verdicts.deciding([clear], 20) == 0
    assert verdicts.deciding([clear, pasted(0, 0, 0)], 20) == 0  # only one site has the class
    assert verdicts.deciding([clear, pasted(10, 10, 0)], 20) == 0
    assert verdicts.deciding([clear, clear, pasted(16, 60, 30)], 20) == 0
    assert verdicts.deciding([clear, clear, pasted(16, 60, 36)], 20) == 2  # the third is unclear
    assert verdicts.deciding([clear, pasted(1, 60, 60)], 20) == 0  # that is one image
    assert verdicts.deciding([], 0) == 0


def test_that_a_spot_decides_is_said_the_less_easily_the_more_spots_were_asked_about() -> None:
    """40 of 60 is beyond one half at 95 %; twenty such tests find one in many runs by chance."""
    near = [pasted(16, 60, 40), pasted(16, 60, 40)]
    assert verdicts.deciding(near, 1) == 2
    assert verdicts.deciding(near, 20) == 0


def test_spots_that_decide_by_chance_are_hardly_ever_told() -> None:
    """Twenty spots at five sites, each giving half of the images the class: without counting
    the tests, any two sites' intervals would do."""
    rng = np.random.default_rng(1)
    told = 0
    for _ in range(300):
        made = rng.binomial(60, 0.5, (20, 5))
        # what fails at a site is left out, so that the level alone decides
        rows = [[pasted(16, 60, int(hits)) for hits in row if hits > 30] for row in made]
        told += any(verdicts.deciding(row, 20) for row in rows)
    assert told <= 300 * verdicts.ERROR


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
