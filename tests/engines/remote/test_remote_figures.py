"""What a coordinator accepts as figures: exact sums, or sums with a stated noise."""

from __future__ import annotations

from typing import Any

import federations
import pytest

from fedsight.core.errors import SiteError
from fedsight.engines.remote import messages, replies
from fedsight.engines.remote.figures import FigureReader
from fedsight.privacy.noised_sums import NoisedSums
from fedsight.tasks.base import Task
from fedsight.tasks.classification import Classification

OF = federations.federation()
TABLE = messages.metrics_table(replies.blank(OF))


def test_sums_are_exact_unless_noise_is_stated() -> None:
    reader = FigureReader(OF)
    assert not isinstance(reader.read({"metrics": TABLE}, "oslo"), NoisedSums)
    found = reader.read({"metrics": TABLE, "noise": 2.0}, "oslo")
    assert isinstance(found, NoisedSums)
    bounds = Classification().bounds(10, 784)
    assert bounds is not None
    assert found.deviation == {name: 2.0 * 2.0 * bound for name, bound in bounds.items()}


@pytest.mark.parametrize("noise", [0.0, -1.0, 5, True, "5", float("nan"), float("inf"), [5.0]])
def test_implausible_noise_is_refused(noise: Any) -> None:
    with pytest.raises(SiteError, match="site 'oslo' says that its figures have noise"):
        FigureReader(OF).read({"metrics": TABLE, "noise": noise}, "oslo")


def test_noise_on_figures_without_bounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classification, "bounds", Task.bounds)
    with pytest.raises(SiteError, match="which this task's cannot have"):
        FigureReader(OF).read({"metrics": TABLE, "noise": 5.0}, "oslo")


def test_noised_sums_of_another_form_are_refused() -> None:
    with pytest.raises(SiteError, match="not the finite sums of this task"):
        FigureReader(OF).read({"metrics": {"loss": TABLE["loss"]}, "noise": 5.0}, "oslo")
