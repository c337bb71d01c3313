"""Answers that are large enough miss no more than was allowed, on average over draws of images."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from fedsight.core.errors import DataError
from fedsight.core.types import Batch
from fedsight.evaluation.trust.conformal import smallest
from fedsight.evaluation.trust.risk import Losses, Risk, level
from fedsight.tasks.covering.levels import STEPS, UNIT, Tally, summed
from fedsight.tasks.covering.masks import Masks
from fedsight.tasks.multilabel import MultiLabel
from fedsight.tasks.segmentation import Segmentation

POPULATION, SPLITS = 600, 1500


class Given(nn.Module):
    """Answers with what it is asked."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@cache
def curves() -> Tensor:
    """The loss curve of each image of a population [images, levels]: some are found well, and in
    some next to nothing is."""
    draws = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (POPULATION, 3, 3), generator=draws)
    y[:, 0, 0] = 1
    x = torch.randn(POPULATION, 3, 3, 3, generator=draws)
    lift = 1.5 + 3 * torch.randn(POPULATION, 1, 1, 1, generator=draws)
    x.scatter_add_(1, y[:, None], lift.expand(-1, 1, 3, 3))
    task, masks = Segmentation(), Masks()
    found = [
        masks.counted("answer", task, Given(), Batch(x[at, None], y[at, None].to(torch.uint8)))
        for at in range(POPULATION)
    ]
    assert all(int(one.units[0]) == 1 for one in found)
    return torch.stack([one.losses[0] for one in found])


def plain(units: int, losses: Tensor, coverage: float) -> int | None:
    """The level at which held-out units lose what is allowed, with nothing for the new one."""
    good = losses.double() <= units * (1 - coverage) * UNIT
    return int(good.sum()) - 1 if bool(good[0]) else None


def risks(rule: object, held: int, coverage: float) -> Tensor:
    """The mean loss of new images, for each of many draws of held-out ones."""
    draws, found = torch.Generator().manual_seed(1), []
    for _ in range(SPLITS):
        order = torch.randperm(POPULATION, generator=draws)
        mine, others = order[:held], order[held : held + 100]
        at = rule(held, curves()[mine].sum(0), coverage)  # type: ignore[operator]
        assert at is not None
        found.append(float(curves()[others, at].double().mean()) / UNIT)
    return torch.tensor(found)


@pytest.mark.parametrize(("held", "coverage"), [(9, 0.9), (10, 0.9), (25, 0.8), (60, 0.95)])
def test_new_images_lose_no_more_than_is_allowed(held: int, coverage: float) -> None:
    found = risks(level, held, coverage)
    error = 3 * float(found.std()) / math.sqrt(SPLITS)
    assert float(found.mean()) <= 1 - coverage + error
    assert float(found.mean()) >= 1 - coverage - 2 / (held + 1) - error  # and little less


def test_without_the_correction_few_images_promise_too_much() -> None:
    """The attack on the guarantee: what the test above would find if it were left out."""
    found = risks(plain, 10, 0.9)
    error = 3 * float(found.std()) / math.sqrt(SPLITS)
    assert float(found.mean()) > 0.1 + error


def test_the_level_is_the_highest_that_is_allowed() -> None:
    sums = curves()[:40].sum(0)
    at = level(40, sums, 0.9)
    assert at is not None
    for one, good in ((at, True), (at + 1, False)):
        assert ((int(sums[one]) / UNIT + 1) / 41 <= 0.1) == good
    for coverage in (0.5, 0.9, 0.99):
        least, none = smallest(coverage), torch.zeros(STEPS, dtype=torch.int64)
        assert level(least, none, coverage) == STEPS - 1
        assert level(least - 1, none, coverage) is None


def tally(groups: int, units: int) -> Tally:
    """Of each group the same images, one more unit each."""
    made = Tally.nothing(groups)
    for group in range(groups):
        made.units[group] = units - group
        made.losses[group] = curves()[: units - group].sum(0)
    return made


def risk(guarantee: str) -> Risk:
    whole = tally(4, 24)
    sites = {"lyon": tally(1, 15), "oslo": tally(1, 4)}
    return Risk(Masks(), guarantee, {"answer": Losses(whole, sites)})


def test_what_is_kept_is_read_again_exactly() -> None:
    import json

    for guarantee in ("mixture", "site", "class"):
        kept = json.loads(json.dumps(risk(guarantee).plain()))
        found = Risk.of(kept, Masks(), 3)
        assert found.guarantee == guarantee
        for one, other in (
            (found.parts["answer"].everything, risk(guarantee).parts["answer"].everything),
            (found.parts["answer"].sites["oslo"], risk(guarantee).parts["answer"].sites["oslo"]),
        ):
            assert torch.equal(one.units, other.units)
            assert torch.equal(one.losses, other.losses)
    kept = risk("mixture").plain()
    groups = kept["parts"]["answer"]["groups"]
    for broken in (
        groups[:3],
        [[1 << 70]] * 4,
        [[1, [0, UNIT + 1]]] * 4,
        [[1, [0, UNIT], [1, 1]]] * 4,
        [[1, [-1, 1]]] * 4,
        [[True]] * 4,
        [[1, [STEPS, 1]]] * 4,
        [[1, [5, 1], [5, 1]]] * 4,
        [[1, [5, 1], [4, 1]]] * 4,
        [[1, [5, 0]]] * 4,
    ):
        parts = {"answer": {"groups": broken, "sites": {}}}
        with pytest.raises((ValueError, IndexError)):
            Risk.of({**kept, "parts": parts}, Masks(), 3)
    with pytest.raises(ValueError, match="another task"):
        Risk.of({**kept, "covers": "labels"}, Masks(), 3)
    assert MultiLabel.covering is not None
    with pytest.raises(ValueError, match="another task"):
        Risk.of(kept, MultiLabel.covering, 3)
    with pytest.raises(ValueError, match="guarantee"):
        Risk.of({**kept, "guarantee": "all"}, Masks(), 3)


def test_each_guarantee_comes_from_its_own_images() -> None:
    common = risk("mixture").levels(0.9)["answer"].tolist()
    assert common == [level(24, curves()[:24].sum(0), 0.9)] * 3
    own = risk("site").levels(0.9, "lyon")["answer"].tolist()
    assert own == [level(15, curves()[:15].sum(0), 0.9)] * 3
    each = risk("class").levels(0.9)["answer"].tolist()
    assert each == [level(n, curves()[:n].sum(0), 0.9) for n in (23, 22, 21)]


def test_too_few_images_name_the_number_that_is_enough() -> None:
    with pytest.raises(DataError, match="24 held-out images that show a foreground") as error:
        risk("mixture").levels(0.99)
    assert "at least 99 of them" in error.value.cure
    with pytest.raises(DataError, match="4 held-out images") as error:
        risk("site").levels(0.9, "oslo")
    assert "at least 9" in error.value.cure
    with pytest.raises(DataError, match="23 held-out inputs of each class, at most"):
        risk("class").levels(0.99)
    with pytest.raises(DataError, match="is named") as error:
        risk("site").levels(0.5)
    assert "lyon, oslo" in error.value.cure
    alone = Risk(Masks(), "site", {"answer": Losses(tally(4, 24), {})})
    with pytest.raises(DataError, match="no site has held-out inputs"):
        alone.levels(0.5, "lyon")
    lossy = tally(4, 24)
    lossy.losses[:] = 24 * UNIT
    with pytest.raises(DataError, match="even the largest answers"):
        Risk(Masks(), "mixture", {"answer": Losses(lossy, {})}).levels(0.5)


def test_a_class_with_too_few_images_is_left_out_of_no_answer() -> None:
    whole = tally(4, 24)
    whole.units[3], whole.losses[3] = 2, 0
    found = Risk(Masks(), "class", {"answer": Losses(whole, {})}).levels(0.9)["answer"]
    assert found[2] < 0 < found[0]


def test_sums_of_sites_are_those_of_all() -> None:
    parts = [tally(2, count) for count in (3, 8, 5)]
    assert torch.equal(summed(parts, 2).losses, sum(one.losses for one in parts))
    assert int(summed(parts, 2).units[0]) == 16
