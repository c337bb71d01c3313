"""The tables of the page on secure aggregation are what the code computes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedsight.core.types import PartSpec
from fedsight.privacy.secagg import graph, words
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.graph import GRINDING, parameters
from fedsight.privacy.secagg.integers import Integers
from fedsight.privacy.secagg.keys import SIGNATURE
from fedsight.privacy.secagg.shares import SHARE
from fedsight.privacy.secure import Secure

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "secure-aggregation.md"


def rows() -> list[list[str]]:
    """The cells of all tables."""
    lines = PAGE.read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]


@pytest.mark.parametrize("sites", [100, 1_000, 10_000])
def test_the_parameters_are_those_of_the_code(sites: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "COMPLETE", 0)
    computed = parameters.__wrapped__  # not from the cache
    curious = computed(sites, 0.1, 0.1, False)
    plain, ground = (computed(sites, 0.1, 0.1, True, bits) for bits in (0, GRINDING))
    due = [
        *(f"{one.neighbours}, {one.threshold}" for one in (curious, plain, ground)),
        f"{ground.window} of {ground.neighbours // 2}",
        f"{ground.signatures} of {ground.committee}",
    ]
    assert due in [row[1:] for row in rows() if row[0].startswith(f"{sites:,}")]


@pytest.mark.parametrize("grinding", [0, 20, 40, 60])
def test_what_trying_costs_is_what_the_code_asks_for(grinding: int) -> None:
    due = [str(grinding)]
    for sites in (1_000, 10_000):
        one = parameters(sites, 0.1, 0.1, True, grinding=grinding)
        due += [f"{one.neighbours}, {one.threshold}", str(one.neighbours + 1)]
    assert due in rows()


def test_the_bytes_of_each_phase_are_those_of_the_messages() -> None:
    head, record = m.MARK + m.DIGEST, m.NUMBER + SIGNATURE
    bytes_of = {row[0]: row[-1] for row in rows()}
    assert bytes_of["0 keys"] == str(head + m.NUMBER + m.ADVERT)
    assert bytes_of["1 shares"] == f"{m.NUMBER + m.SEALED} k"
    assert bytes_of["2 confirmation"] == bytes_of["4 agreement"] == str(head + record)
    assert bytes_of["3 update"] == "d m / 8 + i w / 8"
    assert bytes_of["5 unmasking"] == f"{m.NUMBER + m.KIND + SHARE} (k + 1)"


@pytest.mark.parametrize(("sites", "bound"), [(10, 4095), (100, 1 << 40), (1_000, 5)])
def test_the_bytes_of_an_update_are_those_of_the_formula(sites: int, bound: int) -> None:
    """d values of m bits, and i integers of w, the least with 2^w > 2 n b."""
    d, i = 1000, 800
    specs = {"gram": PartSpec((i,), torch.int64, bound=bound)}
    made = Secure(bits=14).quantiser({"delta": d}, sites, 1, 0.1)
    made = replace(made, integers=Integers.of(specs, sites))
    m = 14 + math.ceil(math.log2(sites))
    w = math.floor(math.log2(2 * sites * bound)) + 1
    assert words.size(made) == d * m // 8 + i * w // 8
