"""A malicious site sends figures as if with noise, and ends the evaluation of every round.

The coordinator adds noised sums and repairs the total. A number beside which the count of images is
lost to rounding left nothing to repair, and the square of the noise that a site claims could not be
computed: either ended the job, in no site's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from task_cases import CASES, CLASSES, NAMES, SIDE

from fedsight.core.errors import SiteError
from fedsight.core.types import Sum
from fedsight.engines.remote import messages
from fedsight.engines.remote.figures import FigureReader
from fedsight.evaluation import noised
from fedsight.privacy.noised_sums import NoisedSums, deviation
from fedsight.program.federation import Federation
from fedsight.tasks import multilabel, single_label
from fedsight.tasks.base import Task
from fedsight.tasks.repair import Floats

TASKS = ("classify", "ordinal", "multilabel", "segment", "one person", "detect")
HOSTILE = ("huge", "negative", "one huge", "mixed")


def sums_of(name: str) -> tuple[Task, Mapping[str, Sum], Mapping[str, float]]:
    """A task, its condensed sums over a few images, and their bounds."""
    task, module, batch = CASES[name]()
    with torch.inference_mode():
        sums = task.condensed(task.measure(module.eval(), batch, CLASSES))
    bounds = task.bounds(CLASSES, SIDE * SIDE)
    assert bounds is not None
    return task, sums, bounds


def hostile(kind: str, shape: tuple[int, ...]) -> Floats:
    """Numbers of a sum, each of which is read: at most `MAX_SUM` in absolute value."""
    size = int(np.prod(shape))
    choices = {
        "huge": [messages.MAX_SUM],
        "negative": [-messages.MAX_SUM],
        "one huge": [1e20, *[0.0] * max(0, size - 1)],
        "mixed": [messages.MAX_SUM, -1e50, 0.0, 5e-324],
    }
    return np.resize(np.array(choices[kind]), size).reshape(shape)


def evaluate(name: str, kind: str, noise: float = 5.0) -> None:
    """What the coordinator makes of an honest site's figures and a hostile one's."""
    task, sums, bounds = sums_of(name)
    honest = NoisedSums(sums, deviation(bounds, 5.0, task.whole))
    false = {k: Sum(hostile(kind, np.shape(one.total)), one.count) for k, one in sums.items()}
    both = noised.total([honest, NoisedSums(false, deviation(bounds, noise, task.whole))], task)
    usable = noised.usable(both, task)
    found = task.summary(usable)
    noised.rounded(found, noised.errors(both, task, task.summary))
    task.tables(usable, NAMES)
    task.curves(usable, NAMES)


def naive_projected(values: Floats, total: float) -> Floats:
    """As it was: no number is above its excess once `total` is lost beside it."""
    falling = np.sort(values, axis=None)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, falling.size + 1)
    last = int(np.flatnonzero(falling > excess)[-1])
    return np.asarray(np.maximum(values - excess[last], 0.0))


@pytest.mark.parametrize("name", ["classify", "multilabel"])
def test_one_site_ends_the_evaluation_where_nothing_is_left_to_repair(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (single_label, multilabel):
        monkeypatch.setattr(module, "projected", naive_projected)
    with pytest.raises(IndexError):
        evaluate(name, "one huge")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of numbers that leave float64
@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", TASKS)
def test_whatever_a_site_sends_can_be_evaluated(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noised, "DRAWS", 2)
    evaluate(name, kind)


def test_the_square_of_a_sites_noise_cannot_be_computed() -> None:
    with pytest.raises(OverflowError):
        evaluate("classify", "huge", 1e200)


@pytest.mark.parametrize("noise", [1e100, 1e200, 1e308])
def test_noise_that_no_sum_can_have_is_rejected_in_its_sites_name(
    tiny_federation: Callable[..., Federation], noise: float
) -> None:
    answer = {"noise": noise, "metrics": {"confusion": [[[0.0]], 1], "loss": [[0.0], 1]}}
    with pytest.raises(SiteError, match="site 'south' says that its figures have noise, which"):
        FigureReader(tiny_federation()).read(answer, "south")
