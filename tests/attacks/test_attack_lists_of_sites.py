"""Lists of sites in questions about masked sums: what a site says of them, and what they cost.

Where each site helps with sums over one list, the first list is the last. So a malicious site that
helps with no list on which some other is, and claims to be willing otherwise, had that one left out
of it for good. And a coordinator had a site look for each of many names in a list of many numbers.
"""

from __future__ import annotations

from typing import Any

import pytest

from fedsight.core.errors import SiteError
from fedsight.engines.remote import site_lists
from fedsight.engines.remote.site_lists import (
    MOST_NAMES,
    Willing,
    agreed,
    lists_without,
    read_lists,
)

SITES = ["anna", "bert", "carl", "zoe"]
LISTS = lists_without(len(SITES))
RULE = "masked:1"


def willing(**without: set[int]) -> dict[str, Willing]:
    """What the sites say; those `without` some places, only with lists that leave these out."""
    return {
        site: Willing(RULE, frozenset(
            place for place, gone in enumerate(LISTS) if without.get(site, set()) <= {*gone}
        ))
        for site in SITES
    }  # fmt: skip


def first_that_fits(sites: list[str], found: dict[str, Willing]) -> list[str]:
    """The weakened build: the first list with which all on it would help."""
    for place, gone in enumerate(lists_without(len(sites))):
        left = [site for number, site in enumerate(sites) if number not in gone]
        if all(place in found[site].lists for site in left):
            return left
    return []


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_who_helps_with_no_list_of_all_leaves_itself_out(victim: int) -> None:
    said = willing(zoe={victim})
    assert SITES[victim] not in first_that_fits(SITES, said), "the honest site, for good"
    left, why = agreed(SITES, said)
    assert left == SITES[:3]
    assert set(why) == {"zoe"}


def test_a_site_that_others_have_no_list_with_is_left_out_as_before() -> None:
    said = willing(anna={3}, bert={3}, carl={3})
    assert agreed(SITES, said)[0] == SITES[:3]
    assert agreed(SITES, willing())[0] == SITES
    assert agreed(SITES, {site: Willing(RULE, frozenset(), "no") for site in SITES})[0] == []


class Number(int):
    """Counts how often it is compared."""

    compared = 0
    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        Number.compared += 1
        return int(self) == other


def test_a_long_list_costs_a_look_at_each_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_lists, "_is_list_of", lambda value, kind: isinstance(value, list))
    many = 300
    names, gone = ["a"] * many, [Number(-1 - n) for n in range(many)]
    fields: dict[str, Any] = {"sites": names, "lists": [gone]}
    Number.compared = 0
    assert len([name for place, name in enumerate(names) if place not in gone]) == many
    assert Number.compared == many**2, "of 2 MiB, for half an hour"
    Number.compared = 0
    assert read_lists(fields) == [names]
    assert Number.compared <= 2 * many


def test_more_names_than_sites_are_refused() -> None:
    fields = {"sites": ["a"] * (MOST_NAMES + 1), "lists": [[]]}
    with pytest.raises(SiteError, match="lists of sites that cannot be read"):
        read_lists(fields)
    assert read_lists({"sites": ["a"] * MOST_NAMES, "lists": [[]]}) == [["a"] * MOST_NAMES]
