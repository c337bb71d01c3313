"""No image that was trained on or chose anything says how far answers can be trusted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import federations
import numpy as np
import pytest

from fedsight.data.partition import Groups
from fedsight.evaluation.trust import images as chosen
from fedsight.evaluation.trust.images import (
    HELD_OUT,
    TESTED,
    TrustImages,
    parts_of_test,
    trust_images,
)
from fedsight.program.federation import Federation


def places(parts: Any) -> list[tuple[str, int]]:
    """Which image each is: of which part of the data, and where in it."""
    return [(id(data.part.images), place) for data in parts for place in data.indices.tolist()]


def made(**sections: Any) -> tuple[Federation, TrustImages]:
    federation = federations.federation(**sections)
    return federation, trust_images(federation, federation.program.differs(federation.network))


@pytest.mark.parametrize(
    "sections",
    [
        {"rounds": {"validation": 0.4}},
        {},
        {"shift": {"kind": "noise", "strength": 0.3}},
        {"algorithm": {"name": "fedrep"}, "rounds": {"validation": 0.4}},
        {"data": {"owners": 3}},
        {"rounds": {"validation": 0.4, "keep": "best"}},
    ],
)
def test_the_three_parts_share_no_image_with_each_other_or_with_training(
    sections: dict[str, Any],
) -> None:
    federation, images = made(**sections)
    parts = [set(places(one)) for one in (images.fitted, images.cover, images.tested)]
    trained = set(places(federation.client(site) for site in range(3)))
    for at, one in enumerate(parts):
        assert one
        assert not one & trained
        for other in parts[at + 1 :]:
            assert not one & other


def test_held_out_images_serve_unless_they_chose_the_round() -> None:
    federation, images = made(rounds={"validation": 0.4})
    assert images.by == HELD_OUT
    aside = {place for own in federation.aside or () for place in own.tolist()}
    used = {place for one in (images.fitted, images.cover) for _, place in places(one)}
    assert used == aside
    assert sum(map(len, images.tested)) == 60  # the whole test part
    federation, images = made(rounds={"validation": 0.4, "keep": "best"})
    assert images.by == TESTED
    kept = {id(federation.dataset.test.images)}
    assert {part for part, _ in places(images.cover)} == kept
    assert sum(map(len, images.tested)) == 30


@pytest.mark.parametrize("validation", [0.0, 0.4])
def test_an_image_that_several_sites_see_serves_one_of_them(validation: float) -> None:
    shift = {"kind": "noise", "strength": 0.3}
    _, images = made(rounds={"validation": validation}, shift=shift)
    for one in (images.fitted, images.cover, images.tested):
        used = places(one)
        assert len(used) == len(set(used))
        origins = [origin for data in one for origin in data.origins.tolist()]
        counts = Counter(origins)
        assert counts.keys() == {0, 1, 2}
        if one is images.tested:
            assert max(counts.values()) - min(counts.values()) <= 1
            # and none by its place in the part: labels may come in turn
            turns = {(at - site) % 3 for (_, at), site in zip(used, origins, strict=True)}
            assert turns == {0, 1, 2}


def test_each_image_stays_with_its_site() -> None:
    federation, images = made(rounds={"validation": 0.4})
    aside = federation.aside or ()
    (cover,) = images.cover
    for place, origin in zip(cover.indices.tolist(), cover.origins.tolist(), strict=True):
        assert place in aside[origin]


def test_many_sites_with_an_image_each_fill_both_halves() -> None:
    """Each site draws by itself which half its image is in."""
    federation, _ = made(data={"owners": 60}, split={"sites": 60})
    federation = replace(federation, partition=Groups([np.array([at]) for at in range(60)]))
    sites = [federation.partition.name(site) for site in range(60)]
    dataset = replace(federation.dataset, test=replace(federation.dataset.test, sites=sites))
    one = trust_images(replace(federation, dataset=dataset).viewed(), False)
    tested, fitted, cover = (sum(map(len, part)) for part in (one.tested, one.fitted, one.cover))
    assert tested + fitted + cover == 60
    assert 20 <= tested <= 40
    assert min(fitted, cover) >= 7
    assert {place % 2 for _, place in places(one.fitted)} == {0, 1}  # not every other site


def test_a_site_divides_its_images_as_they_are_divided_among_others() -> None:
    federation, whole = made(data={"owners": 3})
    for number, view in enumerate(federation.views):
        alone = parts_of_test(federation.testing((view,)), False)
        for mine, theirs in ((alone.fitted, whole.fitted), (alone.cover, whole.cover)):
            own = {place for one in theirs for place, origin in
                   zip(one.indices.tolist(), one.origins.tolist(), strict=True)
                   if origin == number}  # fmt: skip
            assert {place for _, place in places(mine)} == own != set()


def test_a_group_at_several_sites_is_in_one_of_the_parts() -> None:
    federation, _ = made(data={"owners": 4})
    test = replace(federation.dataset.test, groups=[f"patient {at // 5}" for at in range(60)])
    dataset = replace(federation.dataset, test=test)
    found = trust_images(replace(federation, dataset=dataset), False)
    parts = [{place // 5 for _, place in places(one)} for one in (found.fitted, found.cover)]
    parts.append({place // 5 for _, place in places(found.tested)})
    assert sum(map(len, parts)) == len(set().union(*parts)) == 12


def test_of_many_images_those_drawn_keep_the_mixture_of_sites(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    federation, _ = made(data={"owners": 4}, algorithm={"name": "fedrep"})
    sites = ["site-00"] * 45 + ["site-01"] * 10 + ["site-02"] * 5
    dataset = replace(federation.dataset, test=replace(federation.dataset.test, sites=sites))
    federation = replace(federation, dataset=dataset).viewed()
    whole = {len(data): data for data in trust_images(federation, True).tested}
    monkeypatch.setattr(chosen, "MOST", 12)
    few = trust_images(federation, True).tested
    assert sum(map(len, few)) == 12
    assert max(map(len, few)) >= 7
    for data in few:
        own = next(one for one in whole.values() if one.origins[0] == data.origins[0])
        assert set(data.indices.tolist()) <= set(own.indices.tolist())
        assert np.all(np.diff(data.indices) > 0)
