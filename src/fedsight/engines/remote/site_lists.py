"""Which sites a masked sum over test images is asked of, where each helps with few lists of sites.

A site that was lost once may have left the others with a recorded list that it is not on. So each
is asked, before there are keys, over which of some lists it would help with a sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedsight.core.errors import SiteError
from fedsight.engines.remote.messages import read_reason

MOST_LISTS = 256
MOST_NAMES = 10_000  # of sites, of which a question has lists
FEWEST = 3  # sites of a masked sum
OTHER_RULE = (
    "contract.figures and contract.figures_lists are not those of the sites that are summed, and "
    "sums are made only of sites with the same"
)
OFF_LIST = (
    "contract.figures_lists: the other sites have helped with a sum without this one before, and "
    "permit no other list"
)
_UNREADABLE = "the coordinator sent lists of sites that cannot be read"
_SAME_VERSION = "run the same FedSight version at the coordinator and at the sites"


def lists_without(sites: int) -> list[list[int]]:
    """Lists of so many sites, each by the places of those that it leaves out, the fewest first."""
    places = range(sites)

    def each() -> Iterator[list[int]]:
        for gone in range(max(0, sites - FEWEST) + 1):
            yield from map(list, itertools.combinations(places, gone))

    return list(itertools.islice(each(), MOST_LISTS))


def read_lists(fields: Mapping[str, Any]) -> list[list[str]]:
    """The lists of names in a question that has `sites`, and `lists` as `lists_without` makes them;
    SiteError if they are not such."""
    names: Any = fields.get("sites")
    lists: Any = fields.get("lists")
    right = isinstance(lists, list) and len(lists) <= MOST_LISTS
    right = right and _is_list_of(names, str) and len(names) <= MOST_NAMES
    if not (right and all(_is_list_of(one, int) for one in lists)):
        raise SiteError(_UNREADABLE, _SAME_VERSION)
    places = [frozenset(gone) for gone in lists]  # each may be as long as the header
    return [[name for place, name in enumerate(names) if place not in gone] for gone in places]


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(one) is kind for one in value)


@dataclass(frozen=True)
class Willing:
    """What a site answers: its owner's rule for these sums, the places of the lists that it would
    help with, and why not with the first of the others."""

    policy: str
    lists: frozenset[int] = frozenset()
    refused: str = ""

    @classmethod
    def read(cls, answer: Mapping[str, Any], site: str) -> Willing:
        """Those in a header; SiteError if they are not there."""
        policy: Any = answer.get("policy")
        lists: Any = answer.get("lists", [])
        if not (isinstance(policy, str) and _is_list_of(lists, int)):
            cause = f"site '{site}' does not say with which sums it would help"
            raise SiteError(cause, _SAME_VERSION)
        return cls(read_reason(policy), frozenset(lists), read_reason(answer.get("refused", "")))


def largest_group(found: Mapping[str, Willing]) -> list[str]:
    """The most sites whose owners have the same rule; of two groups of one size, that of the
    alphabetically first site."""
    groups: dict[str, list[str]] = {}
    for site in sorted(found):
        groups.setdefault(found[site].policy, []).append(site)
    return max(groups.values(), key=len, default=[])


def agreed(sites: list[str], found: Mapping[str, Willing]) -> tuple[list[str], dict[str, str]]:
    """The most of these sites that would all help with a sum over one another, and why the others
    are not in it; by what they have found of the lists `lists_without` makes of them.

    Of lists of one length it is one without those that refuse the list of all: a single site that
    helps with no list on which some other is would otherwise keep that one from all sums to come.
    """
    best: list[int] | None = None
    refusing = {
        number for number, site in enumerate(sites) if site in found and 0 not in found[site].lists
    }
    for place, gone in enumerate(lists_without(len(sites))):
        if best is not None and len(gone) > len(best):
            break
        left = [site for number, site in enumerate(sites) if number not in gone]
        if not all(site in found and place in found[site].lists for site in left):
            continue
        if best is None or len(refusing.intersection(gone)) > len(refusing.intersection(best)):
            best = gone
    if best is None:
        return [], {site: one.refused for site, one in found.items() if one.refused}
    left = [site for number, site in enumerate(sites) if number not in best]
    return left, {sites[number]: OFF_LIST for number in best}
