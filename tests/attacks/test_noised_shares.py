"""One test image moves noised figures by no more than the ledger charges, whatever it is.

For every registered task: the images of a site with and without one that somebody has planted, or
with another one in its place, measured by the site's own code with a model that the coordinator has
chosen. Thousands of objects, pixels that are not numbers and losses that overflow are among them.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import planted
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted import CLASSES, PIXELS, SIDE, Planted
from test_non_interference import program

from fedsight.client.step import Client
from fedsight.core.types import Metrics
from fedsight.engines.remote import replies
from fedsight.privacy.noised_sums import NoisedSums, deviation, event, noised
from fedsight.program.federation import Federation, federate
from fedsight.tasks.base import tasks

OTHERS = 6  # images that are not planted
NAMES = [name for name in tasks.names() if tasks.get(name).__module__.startswith("fedsight.")]
SCALES = [0.0, 1.0, 1e3, 1e12, 1e30, float("nan")]  # of the model's parameters
images = st.builds(
    Planted,
    pixels=st.sampled_from(PIXELS),
    objects=st.sampled_from([0, 1, 40]),
    label=st.integers(0, CLASSES - 1),
    seed=st.integers(0, 3),
)


@cache
def opened(task: str) -> tuple[Federation, Client]:
    """A federation of the task, and a client that measures for it."""
    of = federate(program(Path(mkdtemp()), task, "local"))
    return of, Client(of)


def with_and_without(
    task: str, scale: float, one: Planted, other: Planted
) -> tuple[Metrics, Metrics, Metrics]:
    """Sums of the images with `one`, with `other` in its place, and with neither."""
    of, client = opened(task)
    client.load(of.initial[of.layout.travelling] * scale, {})
    found = []
    for last in (one, other):
        part = planted.part(task, OTHERS + 1, last)
        found.append(planted.released(client, of, planted.site(part, OTHERS + 1)))
    without = planted.released(client, of, planted.site(part, OTHERS))
    return found[0], found[1], without


def test_all_tasks_state_bounds() -> None:
    assert {"classify", "ordinal", "multilabel", "segment", "detect", "faces"} <= set(NAMES)
    assert all(tasks.get(name)().bounds(CLASSES, SIDE * SIDE) for name in NAMES)


@pytest.mark.parametrize("task", NAMES)
@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(scale=st.sampled_from(SCALES), one=images, other=images)
def test_one_image_moves_the_sums_by_no_more_than_is_charged(
    task: str, scale: float, one: Planted, other: Planted
) -> None:
    of, _ = opened(task)
    first, second, without = with_and_without(task, scale, one, other)
    charged = event(1.0)
    slack = 1 + 1e-9
    assert planted.apart(of, first, without) <= slack / charged.under("add_remove")
    assert planted.apart(of, second, without) <= slack / charged.under("add_remove")
    assert planted.apart(of, first, second) <= slack / charged.under("replace_one")
    for name, total in first.items():
        assert total.total.shape == without[name].total.shape
        assert bool((total.total >= 0).all())


@pytest.mark.parametrize("task", NAMES)
def test_other_images_change_no_bit_of_a_share(task: str) -> None:
    """So the sums of parts are the sum of the whole, also beside thousands of objects."""
    of, client = opened(task)
    client.load(of.initial[of.layout.travelling], {})
    calm = planted.part(task, OTHERS + 1, Planted())
    crowd = planted.part(task, OTHERS + 1, Planted("nan", objects=2000))
    here, there = (planted.released(client, of, planted.site(p, OTHERS)) for p in (calm, crowd))
    assert all((here[name].total == there[name].total).all() for name in here)


@pytest.mark.parametrize("task", NAMES)
@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(
    scale=st.sampled_from(SCALES),
    one=images,
    noise=st.sampled_from([1e-3, 1.0, 5.0, 100.0]),
)
def test_figures_made_of_noised_sums_are_figures(
    task: str, scale: float, one: Planted, noise: float
) -> None:
    of, _ = opened(task)
    sums, _, _ = with_and_without(task, scale, one, one)
    learnt = of.program.task
    bounds = learnt.bounds(CLASSES, SIDE * SIDE)
    assert bounds is not None
    wide = deviation(bounds, noise, learnt.whole)
    usable = learnt.repaired(NoisedSums(noised(sums, bounds, noise, learnt.whole), wide), wide)
    _same_form(usable, replies.blank(of))
    for key, value in learnt.summary(usable).items():
        high = math.inf if key in ("loss", "mae") else 1 + 1e-9
        low = -1 - 1e-9 if key == "kappa" or key.startswith("threshold") else 0.0
        assert math.isnan(value) or low <= value <= high, key
    classes = tuple("abcd")
    assert learnt.tables(usable, classes) is not None
    assert learnt.curves(usable, classes) is not None


def _same_form(found: Metrics, exact: Metrics) -> None:
    assert found.keys() == exact.keys()
    for name, one in found.items():
        assert one.total.shape == exact[name].total.shape
        assert bool((one.total >= 0).all())
