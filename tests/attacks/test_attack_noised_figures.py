"""Noise hides an image only if its share is bounded: without that, figures tell that it is there.

The attacker knows the image, the other images, and the model, which it has chosen so that the image
stands out: its loss overflows, it has thousands of objects, or it is in pairs with all others. It
sees one set of noised figures and says whether the image was among the test images. In weakened
builds shares are not clipped, and faces are compared with all others; it is then right every time.
In ours it is right as often as the ledger's epsilon allows, which is a little more than one half.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import planted
import pytest
from planted import CLASSES, SIDE, Planted
from test_non_interference import program

from fedsight.client import bound_model
from fedsight.client.step import Client
from fedsight.core.types import Metrics
from fedsight.privacy.noised_sums import Bounds, deviation, event, noised
from fedsight.program.federation import Federation, federate
from fedsight.tasks.base import tasks

NOISE, TRIALS = 5.0, 200
# The task, the scale of the model's parameters, the number of other images, the planted one.
CASES = {
    "classify": (1e6, 6, Planted("noise")),
    "ordinal": (1e6, 6, Planted("noise", label=3)),
    "multilabel": (1e6, 6, Planted("noise", objects=2)),
    "segment": (1e6, 6, Planted("noise", label=2)),
    "detect": (1.0, 6, Planted("noise", objects=1000)),
    "faces": (1.0, 120, Planted("noise")),
}


def unclipped(share: Metrics, bounds: Bounds) -> Metrics:
    """The weakened build: a share is what the model makes of it."""
    return {name: share[name] for name in bounds}


def sums(root: Path, task: str) -> tuple[Federation, Metrics, Metrics]:
    """The sums that get noise, with the image and without it."""
    scale, others, image = CASES[task]
    of = federate(program(root, task, "local"))
    client, part = Client(of), planted.part(task, others + 1, image)
    client.load(of.initial[of.layout.travelling] * scale, {})
    found = [planted.released(client, of, planted.site(part, others + more)) for more in (1, 0)]
    return of, found[0], found[1]


def advantage(of: Federation, there: Metrics, not_there: Metrics) -> float:
    """Share of right guesses among TRIALS with the image and as many without, twice that less 1.

    The guess is the more likely case (Neyman and Pearson): it is the best that there is.
    """
    task = of.program.task
    bounds = task.bounds(CLASSES, SIDE * SIDE)
    assert bounds is not None
    wide = deviation(bounds, NOISE, task.whole)
    way = {name: (there[name].total - not_there[name].total) / wide[name] ** 2 for name in wide}

    def score(sums: Metrics) -> float:
        return sum(float((sums[name].total * way[name]).sum()) for name in wide)

    middle = (score(there) + score(not_there)) / 2
    draw: Callable[[Metrics], float] = lambda one: score(noised(one, bounds, NOISE, task.whole))  # noqa: E731
    right = [draw(there) > middle for _ in range(TRIALS)]
    right += [draw(not_there) <= middle for _ in range(TRIALS)]
    return 2 * float(np.mean(right)) - 1


@pytest.mark.parametrize("task", CASES)
def test_unbounded_shares_tell_who_is_there_and_ours_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    with monkeypatch.context() as weak:
        weak.setattr(bound_model, "bounded", unclipped)
        weak.setattr(bound_model, "TOGETHER", 1000)
        if task == "faces":
            weak.setattr(tasks.get(task), "units", lambda self, labels: 0 * labels)
        assert advantage(*sums(tmp_path, task)) > 0.95
    of, there, not_there = sums(tmp_path, task)
    allowed = math.erf(1 / event(NOISE).under("add_remove") / math.sqrt(8))  # 2 Phi(1 / 2s) - 1
    assert allowed < 0.06
    assert advantage(of, there, not_there) < allowed + 8 / math.sqrt(2 * TRIALS)
    apart = planted.apart(of, there, not_there) / NOISE
    assert math.erf(apart / math.sqrt(8)) <= allowed * (1 + 1e-9)
