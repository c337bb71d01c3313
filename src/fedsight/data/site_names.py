"""The names of sites: nearly equal ones are refused or merged, as those of classes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from fedsight.core.errors import DataError
from fedsight.data.class_names import SITES, Similar, settled_names, used

T = TypeVar("T", bound=Any)  # a dataclass with `site`, a text or None, and `place`


def settled_sites(
    records: Sequence[T], similar: Similar, things: str = "images"
) -> tuple[list[T], tuple[str, ...]]:
    """The records with one spelling for each site, and what to say about it.

    Raises DataError for two names that people take for the same (`Lyon` and `lyon`, unless
    `similar` says otherwise), and for one that stands for a missing value.
    """
    uses = used((record.site, record.place) for record in records if record.site is not None)
    read, notes = settled_names(uses, None, similar, things, SITES)
    if all(name == site for site, name in read.items()):
        return list(records), notes
    settled = [
        record if record.site is None else replace(record, site=read[record.site])
        for record in records
    ]
    return settled, tuple(f"site {note}" for note in notes)


def site_names(sites: Sequence[str | None], origin: str) -> Any:
    """The sites as an array [n], or None if there are none; DataError if only some have one."""
    if any((site is None) != (sites[0] is None) for site in sites):
        raise DataError(
            f"'{origin}': some images have a site and others do not", "name the site of every image"
        )
    return None if sites[0] is None else np.array(sites)
