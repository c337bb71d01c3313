"""Whether sites have people to compare with, where images are compared with one another."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedsight.core.errors import Problem

NAMED = 5  # sites in a message

Trained = Mapping[str, npt.NDArray[np.int64]]  # the numbers of the people in images [n], by site


def problems(trained: Trained) -> list[Problem]:
    """One site must have two people."""
    if len(_lonely(trained)) < len(trained):
        return []
    cause = (
        "images are compared with those of other people at their site, and no site has two people "
        "to train on"
    )
    return [Problem("task.against", cause, "set it to 'vectors', or add people")]


def notes(trained: Trained) -> tuple[str, ...]:
    """Which sites have one person, whose images nothing holds apart from others'."""
    lonely = _lonely(trained)
    if not lonely:
        return ()
    named, more = ", ".join(lonely[:NAMED]), len(lonely) - NAMED
    if more > 0:
        return (
            f"sites with one person to train on: {named} and {more} more; they only draw that "
            "person's images together (task.against = 'images')",
        )
    return (
        f"sites with one person to train on: {named}; they only draw that person's images "
        "together (task.against = 'images')",
    )


def _lonely(trained: Trained) -> list[str]:
    """The sites that train on one person, or on nobody."""
    return sorted(name for name, labels in trained.items() if len(np.unique(labels)) < 2)
