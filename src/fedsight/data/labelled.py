"""Classes that a site never labelled: an image there without one may show it all the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedsight.core.errors import DataError
from fedsight.core.registry import nearest
from fedsight.data.by_site import Classes, at, check_sites, classes_of


def unlabelled(labelled: Classes | None, site: str | None, classes: Sequence[str]) -> list[int]:
    """The numbers of the classes that are not labelled in images of `site`."""
    known = at(labelled, site)
    if known is None:
        return []
    return [number for number, name in enumerate(classes) if name not in known]


def check_labelled(labelled: Classes | None, sites: Iterable[str], classes: Sequence[str]) -> None:
    """Raise DataError if `data.labelled` names an unknown site or class."""
    check_sites(labelled, "labelled", sites)
    for name in classes_of(labelled):
        if name not in classes:
            cause = f"data.labelled names the unknown class '{name}'"
            raise DataError(cause, nearest(name, classes))
