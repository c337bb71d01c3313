"""Sums over lists of sites that all differ by three sites or more, and yet uncover one site.

A site could help with any sum whose sites differ from those of each sum before by so many that the
difference of two is of nobody alone. But three sums may be combined: {a, b, c, x} less
{a, b, c, d, e, f} plus {d, e, f} is x. No site is in all three lists, so none could see more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fedsight.core.errors import DeployError
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger, SumLimit

TARGET, APART = "x", 3
LISTS = ("abcx", "abcdef", "def")
Help = Callable[[Path, str, str], None]


def apart(home: Path, site: str, names: str) -> None:
    """A site that helps where its lists differ by enough."""
    known = [one.question for one in Ledger(home).entries()]
    if any(one != names and len({*one} ^ {*names}) < APART for one in known):
        raise DeployError("the lists differ by too few sites", "")
    Ledger(home).append_new(entry(names))


def ours(home: Path, site: str, names: str) -> None:
    """A site whose contract has lists = 1."""
    Ledger(home).append_new(entry(names), SumLimit(all=1))


def entry(names: str) -> LedgerEntry:
    """A sum of another program each time."""
    return LedgerEntry("sum", program=names, round=1, question=names, data_set="images")


def come_out(root: Path, lists: Iterable[str], help: Help) -> list[str]:
    """The lists whose sums come out: of each, more than half of the sites must help."""
    found = []
    for names in lists:
        helping = 0
        for site in names:
            (root / site).mkdir(exist_ok=True)
            try:
                help(root / site, site, names)
            except DeployError:
                continue
            helping += 1
        if helping > len(names) / 2:
            found.append(names)
    return found


def test_a_combination_of_sums_over_lists_that_differ_by_enough_is_one_sites(
    tmp_path: Path,
) -> None:
    assert come_out(tmp_path, LISTS, apart) == list(LISTS)
    draws = np.random.default_rng(0)
    sent = {site: draws.integers(0, 1 << 40, 20) for site in "abcdefx"}
    first, second, third = (sum(sent[site] for site in names) for names in LISTS)
    assert (first - second + third == sent[TARGET]).all()


@pytest.mark.parametrize("order", [LISTS, LISTS[::-1], (LISTS[0], LISTS[2], LISTS[1])])
def test_ours_give_out_no_three_that_can_be_combined(tmp_path: Path, order: Sequence[str]) -> None:
    found = come_out(tmp_path, order, ours)
    assert found, "a site helps with one list"
    assert all(not {*one} & {*two} for one in found for two in found if one != two)
