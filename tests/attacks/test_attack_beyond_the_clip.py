"""A malicious site sends numbers that rounding never makes, and they wrap in the sum.

Rounded updates are added modulo 2^m. Their levels were not looked at, nor was the weight compared
with `secure.cap`: one site moved the model by several clips in either direction, or made the
updates of all others vanish beside its weight, and nothing was said.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked_site import AttackedSite
from masked_round import faulty_round
from site_services import Alter

from fedsight.aggregation.secure import EncodingPlan, SecureSum
from fedsight.core.errors import SiteError
from fedsight.core.types import PartSpec
from fedsight.engines.base import Outcome
from fedsight.privacy.mechanisms.none import Unprotected
from fedsight.privacy.noise import fresh
from fedsight.privacy.secagg.integers import Integers
from fedsight.privacy.secagg.quantise import Quantiser
from fedsight.privacy.secagg.words import Words
from fedsight.privacy.secure import Secure

# They alter what comes of a reply: it comes by itself.
pytestmark = pytest.mark.usefixtures("vectors_apart")

Attack = Callable[..., AttackedSite]
NAMES = tuple("abcde")
MALLORY = NAMES[-1]


def round_of(attack: Attack, root: Path, alter: Alter, **secure: Any) -> Outcome:
    table, rounds = {"name": "quantised", **secure}, {"quorum": 4, "weighting": "samples"}
    return faulty_round(attack, root, NAMES, alter, secure=table, rounds=rounds)


def too_high(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
    """Levels of 2^31 - 1 each: about four times the highest one of five sites, 2^29 - 1."""
    return text, b"\xff\xff\xff\x7f" * (len(body) // 4) if kind == "fetch" else body


def heavy(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
    """The site declares two million images, and weighs its update by them."""
    fields = json.loads(text)
    if "declared" in fields:
        fields["declared"]["labels"] = [1_000_000, 1_000_000]
    if "weight" in fields:
        fields["weight"] = 2_000_000
    return json.dumps(fields), body


def moved(outcome: Outcome) -> float:
    return float(outcome.total.mean()["delta"].abs().max())


def unchecked(self: Any, *args: Any) -> None:
    """As it was."""


def test_one_site_moves_the_mean_by_several_clips_where_levels_are_not_checked(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Quantiser, "check_levels", unchecked)
    outcome = round_of(attack, tmp_path, too_high, clip=0.5)
    assert len(outcome.accepted) == len(NAMES)
    assert moved(outcome) > 0.5, "no mean of clipped updates is so large"


def test_ours_rejects_that_site_and_adds_the_others(attack: Attack, tmp_path: Path) -> None:
    outcome = round_of(attack, tmp_path, too_high, clip=0.5)
    assert [one.site for one in outcome.accepted] == list(NAMES[:-1])
    assert f"site '{MALLORY}' sent the number" in outcome.rejected[MALLORY]
    assert moved(outcome) <= 0.5


def test_under_masks_a_sum_that_no_sites_have_is_not_used(attack: Attack, tmp_path: Path) -> None:
    outcome = round_of(attack, tmp_path, too_high, name="secagg", dropout=0.2)
    with pytest.raises(SiteError, match="the sum of 5 sites holds the number"):
        outcome.total.mean()


def test_all_updates_vanish_beside_a_weight_above_the_cap(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_words(self: SecureSum, words: Words, weight: int, site: str) -> None:
        self.words.add(words)
        self.count += 1
        self.weight += weight

    monkeypatch.setattr(SecureSum, "add_words", add_words)
    outcome = round_of(attack, tmp_path, heavy, cap=8)
    assert len(outcome.accepted) == len(NAMES)
    assert moved(outcome) < 1e-5


def test_in_ours_such_a_weight_does_not_count(attack: Attack, tmp_path: Path) -> None:
    outcome = round_of(attack, tmp_path, heavy, cap=8)
    assert [one.site for one in outcome.accepted] == list(NAMES[:-1])
    assert "has weight 2,000,000, but secure.cap is 8" in outcome.rejected[MALLORY]
    assert moved(outcome) > 1e-3


def sum_of_integers(name: str) -> SecureSum:
    """Of three sites, each of which may send integers up to 1,000."""
    plan = EncodingPlan(
        Secure(name=name),  # type: ignore[arg-type]
        {"delta": 1},
        0,
        1,
        0.1,
        Unprotected(),
        1,
        fresh,
        {"counts": PartSpec((2,), torch.int64, bound=1_000)},
    )
    return SecureSum(plan, 3)


def words(*integers: int) -> Words:
    return Words(np.zeros(1, np.uint32), np.array(integers, np.int64).view(np.uint64))


@pytest.mark.parametrize("integer", [1_001, -1_001, 4_000])
def test_an_integer_above_its_bound_is_rejected_without_masks(
    integer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum_of_integers("quantised")
    total.add_words(words(7, -1_000), 1, "a")
    with pytest.raises(SiteError, match="site 'mallory' sent the number"):
        total.add_words(words(7, integer), 1, "mallory")
    assert total.integers()["counts"].tolist() == [7, -1_000]
    monkeypatch.setattr(Integers, "check_sums", unchecked)
    total.add_words(words(7, integer), 1, "mallory")
    assert total.integers()["counts"].tolist() != [14, -1_000]


def test_sums_of_integers_beyond_the_bounds_of_all_are_not_used() -> None:
    total = sum_of_integers("secagg")
    for one in (words(7, 1_000), words(7, -1_000), words(7, 3_001)):
        total.words.add(one)  # the masks are off
        total.count += 1
    with pytest.raises(SiteError, match="the sum of 3 sites holds the number 3,001"):
        total.integers()
