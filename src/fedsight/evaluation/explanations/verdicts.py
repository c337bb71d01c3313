"""What follows from a method's figures: it holds, it fails, or the images do not decide.

Every comparison is of the same images: the mean of the differences, with its 95 % interval, which
is to lie wholly on one side for anything to follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedsight.core.intervals import Z, of_mean
from fedsight.evaluation.explanations.faithfulness import area
from fedsight.evaluation.explanations.randomisation import rank_correlation

ALIKE = 0.5  # rank correlation from which explanations, or answers, are too much alike
FEWEST = 30  # images of which it can be said whether two networks answer alike
RANDOM, EDGES = "random", "edges"  # what methods are compared with
DELETION, INSERTION, SHUFFLED, SILENT = "deletion", "insertion", "shuffled", "silent"
HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"


def judged(
    own: Mapping[str, Tensor], baselines: Mapping[str, Mapping[str, Tensor]], alike: bool | None
) -> dict[str, Any]:
    """A method's verdict with what it rests on, as plain values.

    `own` has curves [n, points] of deletion and insertion, the likeness [n] to the heat of the
    network with shuffled weights, and where the method says nothing [n]; `baselines` the curves of
    the same images. `alike`: whether the shuffled network answers alike; None: not known.

    `gains` are by how much deletion is lower and insertion higher than with a baseline; `fails` and
    `undecided` name the comparisons, such as "edges-deletion", that went wrong or decide nothing.
    """
    gains = {
        name: {
            key: spread(sign * (area(own[key]) - area(curve[key])))
            for key, sign in ((DELETION, -1), (INSERTION, 1))
        }
        for name, curve in baselines.items()
    }
    found = {
        f"{name}-{key}": _above(told, 0.0)
        for name, both in gains.items()
        for key, told in both.items()
    }
    spoken = own[SHUFFLED][own[SILENT] == 0]
    likeness = spread(spoken)
    found[SHUFFLED] = _unlike(likeness, alike)
    quiet = float(own[SILENT].mean())
    found[SILENT] = FAILS if quiet >= 0.5 else HOLDS
    fails = [reason for reason, verdict in found.items() if verdict == FAILS]
    open_ = [reason for reason, verdict in found.items() if verdict == UNDECIDED]
    return {
        "gains": gains,
        SHUFFLED: likeness,
        SILENT: quiet,
        "result": FAILS if fails else UNDECIDED if open_ else HOLDS,
        "fails": fails,
        "undecided": open_,
    }


def same_answers(own: Tensor, other: Tensor) -> bool | None:
    """Whether a network with shuffled weights answers like the trained one, from the scores [n] of
    both: then shuffling shows nothing. None: so few images do not say.

    By the 95 % interval of their rank correlation (Bonett and Wright 2000).
    """
    if len(own) < FEWEST:
        return None
    found = float(rank_correlation(own[None], other[None]))
    half = Z * math.sqrt((1 + found**2 / 2) / (len(own) - 3))
    middle = math.atanh(max(-1 + 1e-9, min(1 - 1e-9, found)))
    if math.tanh(middle - half) >= ALIKE:
        return True
    return False if math.tanh(middle + half) < ALIKE else None


def spread(values: Tensor) -> dict[str, float | None]:
    """The mean of values [n] with its 95 % interval; None for what so few do not say."""
    listed = values.double().tolist()
    bounds = (math.fsum(listed) / len(listed) if listed else math.nan, *of_mean(listed))
    names = ("mean", "low", "high")
    return {
        name: one if math.isfinite(one) else None for name, one in zip(names, bounds, strict=True)
    }


def _above(told: Mapping[str, float | None], least: float) -> str:
    low, high = told["low"], told["high"]
    if low is None or high is None:
        return UNDECIDED
    return HOLDS if low > least else FAILS if high < least else UNDECIDED


def _unlike(told: Mapping[str, float | None], alike: bool | None) -> str:
    """Explanations of the shuffled network are to be unlike; those of one that answers alike may
    be as they are."""
    negated = {
        "low": None if told["high"] is None else -told["high"],
        "high": None if told["low"] is None else -told["low"],
    }
    found = _above(negated, -ALIKE)
    if found == HOLDS or alike:
        return HOLDS
    return UNDECIDED if alike is None else found
