"""Over which lists of sites a masked sum is asked for."""

from __future__ import annotations

import pytest

from fedsight.core.errors import SiteError
from fedsight.engines.remote.site_lists import (
    MOST_LISTS,
    OFF_LIST,
    Willing,
    agreed,
    largest_group,
    lists_without,
    read_lists,
)

SITES = ["a", "b", "c", "d"]


def test_the_longest_lists_come_first_and_none_is_too_short() -> None:
    assert lists_without(4) == [[], [0], [1], [2], [3]]
    assert lists_without(2) == [[]]
    assert len(lists_without(200)) == MOST_LISTS


def test_the_longest_list_that_all_its_sites_help_with_is_asked() -> None:
    willing = {site: Willing("m", frozenset({0, 4}), "") for site in SITES}
    assert agreed(SITES, willing) == (SITES, {})
    willing |= {site: Willing("m", frozenset({4}), "no") for site in "abc"}
    assert agreed(SITES, willing) == (["a", "b", "c"], {"d": OFF_LIST})
    assert agreed(SITES, {site: Willing("m", frozenset(), "no") for site in SITES}) == (
        [],
        dict.fromkeys(SITES, "no"),
    )
    assert agreed(SITES, {site: willing[site] for site in "bcd"}) == (
        [],
        {"b": "no", "c": "no"},
    ), "a site that says nothing is in no list"


def test_the_largest_group_of_one_rule_is_summed() -> None:
    rules = {"a": "x", "b": "y", "c": "y", "d": "x"}
    assert largest_group({site: Willing(rule) for site, rule in rules.items()}) == ["a", "d"]
    rules["e"] = "y"
    assert largest_group({site: Willing(rule) for site, rule in rules.items()}) == ["b", "c", "e"]


def test_lists_are_read_as_they_are_meant() -> None:
    assert read_lists({"sites": SITES, "lists": [[], [1, 3]]}) == [SITES, ["a", "c"]]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sites": "a", "lists": []},
        {"sites": [1], "lists": []},
        {"sites": ["a"], "lists": 3},
        {"sites": ["a"], "lists": [["a"]]},
        {"sites": ["a"], "lists": [[]] * (MOST_LISTS + 1)},
    ],
)
def test_other_lists_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(SiteError, match="cannot be read"):
        read_lists(fields)


@pytest.mark.parametrize("answer", [{}, {"policy": 1}, {"policy": "x", "lists": ["a"]}])
def test_an_answer_that_says_nothing_is_refused(answer: dict[str, object]) -> None:
    with pytest.raises(SiteError, match="'a' does not say"):
        Willing.read(answer, "a")
