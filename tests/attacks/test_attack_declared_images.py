"""Malicious sites declare so many images that the coordinator cannot hold their numbers.

The sum over all sites was compared with the limit when the federation was put together, and the job
ended for all, although the program goes on without sites that do not fit.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import site_services
from hypothesis import given
from hypothesis import strategies as st
from site_services import FaultyLink, Places

from fedsight.core.errors import DeployError
from fedsight.data.base import Preprocess
from fedsight.deploy import declaration
from fedsight.deploy.declaration import Declaration, gather, oversized_sites
from fedsight.deploy.server.joining import propose

CLASSES = ("ant", "bee")


def declared(train: int, test: int = 0) -> Declaration:
    return Declaration((train, 0), test, False, CLASSES, Preprocess(1, 8, 8))


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(declaration, "MAX_TOTAL_IMAGES", 1_000)
    return 1_000


def test_all_are_refused_where_only_the_sum_is_compared(
    places: Places, site_images: Any, limit: int
) -> None:
    program = site_services.program(site_images, rounds={"quorum": 1})
    found, _, _, _ = propose(program, "run1", boasting(places), {})
    with pytest.raises(DeployError, match="the sites declare"):
        gather(program, found)


def boasting(places: Places) -> FaultyLink:
    """The site `west` declares 5,000 images."""

    def alter(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        answer = json.loads(text)
        if "declared" in answer:
            answer["declared"]["labels"] = [5_000, 0, 0]
        return json.dumps(answer), body

    return FaultyLink(places.sit(), "west", alter)


def test_ours_leaves_out_the_site_that_declares_most(
    places: Places, site_images: Any, limit: int
) -> None:
    program = site_services.program(site_images, rounds={"quorum": 1})
    found, _, _, _ = propose(program, "run1", boasting(places), {})
    out = oversized_sites(found, {})
    assert list(out) == ["west"]
    assert "site 'west' declares the most, 5,003" in out["west"].cause
    gather(program, {site: one for site, one in found.items() if site not in out})


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 900), min_size=1), st.data())
def test_who_is_left_fits_and_nobody_smaller_is_left_out(
    sizes: dict[str, int], data: st.DataObject
) -> None:
    known = data.draw(st.sampled_from([{}, {"old": declared(90)}]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(declaration, "MAX_TOTAL_IMAGES", 1_000)
        out = oversized_sites({name: declared(size) for name, size in sizes.items()}, known)
    left = {name: size for name, size in sizes.items() if name not in out}
    assert sum(left.values()) + 90 * len(known) <= 1_000
    assert all(sizes[name] >= max(left.values(), default=0) for name in out)
    if out:
        least = min(sizes[name] for name in out)
        assert sum(left.values()) + least + 90 * len(known) > 1_000, "no more than it takes"
