"""No image that was trained on or chose anything says how far answers can be trusted."""

from __future__ import annotations

from typing import Any

import federations
import pytest

from fedsight.evaluation.trust.images import HELD_OUT, TESTED, TrustImages, trust_images
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
    for one in (images.fitted, images.cover):
        used = places(one)
        assert len(used) == len(set(used))
        assert {origin for data in one for origin in data.origins.tolist()} == {0, 1, 2}
    assert len(places(images.tested)) > len(set(places(images.tested)))  # as each site sees them


def test_each_image_stays_with_its_site() -> None:
    federation, images = made(rounds={"validation": 0.4})
    aside = federation.aside or ()
    (cover,) = images.cover
    for place, origin in zip(cover.indices.tolist(), cover.origins.tolist(), strict=True):
        assert place in aside[origin]
