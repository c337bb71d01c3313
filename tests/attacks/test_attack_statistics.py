"""A malicious site sends sums of products that no images have, for a head in closed form.

Of the integers that a site sends, only the bound of the largest site was compared. A count that
takes back all others' left zero images to divide by, and the coordinator ended with an error of
linear algebra; a site with four images could weigh as much as all, for the class that it liked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked_site import AttackedSite
from hypothesis import given
from hypothesis import strategies as st
from masked_round import faulty_round
from site_services import Alter
from torch import Tensor

from fedsight.algorithms.base import Mean
from fedsight.algorithms.closed_form import are_sums, solve, symmetric, triangle, with_one
from fedsight.algorithms.ridge import Ridge
from fedsight.core.errors import SiteError
from fedsight.engines.base import Outcome

# They alter what comes of a reply: it comes by itself.
pytestmark = pytest.mark.usefixtures("vectors_apart")

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "mallory")
TOP, WIDE, CLASSES = 4095, 4, 3


def cancels(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
    """The last of the sums of products is the number of images; two others have four each."""
    if kind != "fetch":
        return text, body
    sent = np.frombuffer(body, "<i8").copy()
    side = next(s for s in range(1, len(sent)) if s * (s + 1) // 2 + 2 * s == len(sent))
    sent[:] = 0
    sent[side * (side + 1) // 2 - 1] = -8
    return text, sent.tobytes()


def scrambles(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
    """Numbers in as few bits as the bounds take."""
    return text, b"\x11" * len(body) if kind == "fetch" else body


def round_of(attack: Attack, root: Path, alter: Alter = cancels, **secure: Any) -> Outcome:
    sections: dict[str, Any] = {
        "algorithm": {"name": "ridge"},
        "rounds": {"rounds": 1, "quorum": 2},
    }
    if secure:
        sections["secure"] = secure
    outcome: Outcome = faulty_round(attack, root, NAMES, alter, **sections)
    return outcome


def step(outcome: Outcome) -> None:
    sums = outcome.total.integers()
    Ridge().step(torch.zeros(0), {}, Mean({}, 1.0, sums), 1)


def test_a_count_that_takes_back_all_others_ends_the_coordinator(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ridge, "is_possible", lambda *_: True)
    outcome = round_of(attack, tmp_path)
    assert len(outcome.accepted) == 3
    assert int(outcome.total.integers()["gram"][-1]) == 0
    with pytest.raises(SiteError, match="no site has sent sums"):  # it was an error of torch's
        step(outcome)
    with pytest.raises(RuntimeError, match="failed to converge"):
        torch.linalg.eigh(torch.full((3, 3), torch.nan, dtype=torch.float64))


@pytest.mark.parametrize(("alter", "secure"), [(cancels, "none"), (scrambles, "quantised")])
def test_ours_rejects_that_site_and_solves_for_the_others(
    attack: Attack, tmp_path: Path, alter: Alter, secure: str
) -> None:
    outcome = round_of(attack, tmp_path, alter, name=secure)
    assert [one.site for one in outcome.accepted] == ["a", "b"]
    assert "'mallory' sent statistics that its 4 images cannot have" in outcome.rejected["mallory"]
    step(outcome)


# -- what images can have --------------------------------------------------------------------------


def sums_of(levels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    gram = symmetric(triangle(with_one(levels.double())), levels.shape[1] + 1)
    whole = torch.cat([levels, torch.ones(len(levels), 1)], dim=1).to(torch.int64)
    cross = torch.zeros(CLASSES, WIDE + 1, dtype=torch.int64).index_add_(0, labels, whole)
    return gram, cross.T.contiguous()


@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.sampled_from([1, 2, TOP]))
def test_the_sums_of_any_images_are_possible(seed: int, images: int, top: int) -> None:
    """Of a site, of several, and where some sites have sent zeros."""
    rng = np.random.default_rng(seed)
    levels = torch.from_numpy(rng.integers(0, top + 1, (images, WIDE)))
    levels[:, 0] = top  # constant, and the largest value
    gram, cross = sums_of(levels, torch.from_numpy(rng.integers(0, CLASSES, images)))
    assert are_sums(gram, cross, images, top)
    assert are_sums(gram, cross, images + 7, top)
    assert are_sums(100_000 * gram, 100_000 * cross, 100_000 * images, top)
    assert images == 0 or not are_sums(gram, cross, images - 1, top)


def lies() -> dict[str, tuple[Tensor, Tensor]]:
    """Each differs in a few values from honest sums of eight images."""
    rng = np.random.default_rng(1)
    levels = torch.from_numpy(rng.integers(1, TOP + 1, (8, WIDE)))
    gram, cross = sums_of(levels, torch.from_numpy(np.arange(8) % CLASSES))
    found = {}

    def lie(what: str, **values: tuple[int, int, int]) -> None:
        changed = {"gram": gram.clone(), "cross": cross.clone()}
        for name, (row, column, value) in values.items():
            changed[name][row, column] = value
            if name == "gram":
                changed[name][column, row] = value
        found[what] = changed["gram"], changed["cross"]

    most = 8 * TOP * TOP
    lie("less than no image", gram=(-1, -1, -8))
    lie("no image", gram=(-1, -1, 0))
    lie("a label more", cross=(-1, 0, 9))
    lie("labels taken back", cross=(-1, 0, -3))
    lie("features of one class alone", cross=(0, 0, 8 * TOP))
    lie("a square above its sum's", gram=(0, 0, most + 1))
    lie("a square below its sum's", gram=(0, 0, 1))
    lie("a product above its factors'", gram=(0, 1, most))
    lie("a sum of its own", gram=(0, -1, 7))
    lie("products that are not of numbers", gram=(0, 1, int(gram[0, 1]) // 1_000))
    return found


@pytest.mark.parametrize("what", lies())
def test_what_no_eight_images_have_is_refused(what: str) -> None:
    gram, cross = lies()[what]
    assert int(gram.abs().max()) <= 8 * TOP * TOP + 1, "within the bounds of a part"
    assert not are_sums(gram, cross, 8, TOP)


def test_without_images_nothing_is_solved() -> None:
    nothing = torch.zeros(WIDE + 1, WIDE + 1, dtype=torch.int64)
    assert are_sums(nothing, nothing[:, :CLASSES], 8, TOP)
    with pytest.raises(SiteError, match="no site has sent sums of any image"):
        solve(nothing, nothing[:, :CLASSES])
