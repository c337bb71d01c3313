"""A malicious site says how much noise its figures have, or sends numbers without proportion, and
the coordinator cannot compute with them: a square that is no number, a sum lost in rounding.

The figures come from all sites together, after the conversation with any one of them. An error
there ended the job, and the next one, without the name of the site.
"""

from __future__ import annotations

from typing import Any

import federations
import numpy as np
import pytest

from fedsight.core.errors import SiteError
from fedsight.core.types import Sum
from fedsight.engines.remote import figures, messages, replies
from fedsight.engines.remote.figures import FigureReader
from fedsight.evaluation import noised
from fedsight.privacy.event import MOST_NOISE
from fedsight.privacy.noised_sums import NoisedSums
from fedsight.tasks import single_label
from fedsight.tasks.classification import Classification
from fedsight.tasks.repair import Floats, projected

OF = federations.federation()
TABLE = messages.metrics_table(replies.blank(OF))


def together(noise: float, changed: dict[str, Any] | None = None) -> dict[str, float]:
    """The figures of two sites, of which one states `noise`."""
    task = Classification()
    first = FigureReader(OF).read({"metrics": TABLE, "noise": 5.0}, "oslo")
    bad = FigureReader(OF).read({"metrics": {**TABLE, **(changed or {})}, "noise": noise}, "bergen")
    sums = noised.total([first, bad], task)
    assert isinstance(sums, NoisedSums)
    noised.errors(sums, task, task.summary)
    return dict(task.summary(noised.usable(sums, task)))


@pytest.mark.parametrize("noise", [1e155, 1e300])
def test_the_square_of_a_noise_of_any_size_ends_the_job(
    monkeypatch: pytest.MonkeyPatch, noise: float
) -> None:
    monkeypatch.setattr(figures, "MOST_NOISE", 1e308)
    monkeypatch.setattr(messages, "MAX_SUM", 1e308)
    with pytest.raises(OverflowError):
        together(noise)


@pytest.mark.parametrize("noise", [MOST_NOISE * 1.01, 1e155, 1e300, 1.7e308])
def test_ours_refuses_it_and_names_the_site(noise: float) -> None:
    with pytest.raises(SiteError, match="site 'bergen' says that its figures have noise"):
        together(noise)


@pytest.mark.parametrize("noise", [5e-324, 1e-300, 1.0, MOST_NOISE])
def test_any_other_noise_leaves_figures(noise: float) -> None:
    assert np.isfinite(together(noise)["loss"])


def naive(values: Floats, total: float) -> Floats:
    """As it was."""
    if total <= 0:
        return np.zeros_like(values)
    falling = np.sort(values, axis=None)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, falling.size + 1)
    last = int(np.flatnonzero(falling > excess)[-1])
    return np.asarray(np.maximum(values - excess[last], 0.0))


HUGE = {"confusion": [np.full((10, 10), 1e100).tolist(), TABLE["confusion"][1]]}


def test_numbers_in_which_the_total_is_lost_end_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FARTHEST", np.inf)
    monkeypatch.setattr(single_label, "projected", naive)
    with pytest.raises(IndexError):
        together(5.0, HUGE)


def test_ours_rejects_them_and_could_make_figures_of_any_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SiteError, match="site 'bergen' sent figures that no model can have"):
        together(5.0, HUGE)
    monkeypatch.setattr(figures, "FARTHEST", np.inf)
    together(5.0, HUGE)
    draws = np.random.default_rng(0)
    for _ in range(100):
        values = draws.choice([1e100, -1e100, 1e17, 0.0, 0.5, -3.0], 20)
        total = float(draws.choice([1.0, 60.0, 1e9]))
        assert (projected(values, total) >= 0).all()
        if np.abs(values).max() < 1e3:
            assert projected(values, total).sum() == pytest.approx(total)
        assert projected(values, total).sum() > 0
    assert Sum(projected(np.array([3.0, 1.0]), 2.0), 1).total.tolist() == [2.0, 0.0]
