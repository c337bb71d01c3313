"""Deletion, insertion, the baselines and the check by shuffled weights, on known models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedsight.core.errors import DataError
from fedsight.core.rng import generator
from fedsight.evaluation.explanations import faithfulness
from fedsight.evaluation.explanations.absence import absent
from fedsight.evaluation.explanations.faithfulness import area, at_random, curves, edges, ranked
from fedsight.evaluation.explanations.measure import measured
from fedsight.evaluation.explanations.methods import Network
from fedsight.evaluation.explanations.randomisation import (
    likeness,
    rank_correlation,
    shuffled,
)
from fedsight.evaluation.explanations.scores import ClassScore, scored
from fedsight.evaluation.explanations.subjects import subjects
from fedsight.program.federation import Federation
from fedsight.tasks.classification import Classification

Federate = Callable[..., Federation]


class Bright(nn.Module):
    """Class 0 as far as the upper left quarter is bright."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        bright = x[:, 0, :half, :half].mean((1, 2))
        return torch.stack([4 * bright, 0 * bright], 1)


@pytest.fixture
def bright() -> ClassScore:
    return ClassScore(Bright(), Classification())


def quarter(side: int = 28) -> Tensor:
    """A bright upper left quarter on black."""
    x = torch.zeros(1, 1, side, side)
    x[..., : side // 2, : side // 2] = 1
    return x


def test_curves_begin_and_end_with_the_image_and_the_image_without_detail(
    bright: ClassScore,
) -> None:
    x, about = quarter(), torch.zeros(1, 1)
    deleted, inserted = curves(bright, x, about, ranked(x[:, 0]))
    ends = [float(bright.shown(one, about)) for one in (x, absent(x))]
    assert [float(deleted[0, 0]), float(deleted[0, -1])] == pytest.approx(ends)
    assert [float(inserted[0, -1]), float(inserted[0, 0])] == pytest.approx(ends)
    assert deleted.shape == (1, faithfulness.STEPS + 1)


def test_the_right_order_is_better_than_chance_and_the_wrong_one_worse(bright: ClassScore) -> None:
    x, about = quarter(), torch.zeros(1, 1)
    right, wrong = ranked(x[:, 0]), ranked(-x[:, 0])
    chance = ranked(at_random(x, generator(0, "chance")))
    down, up = (
        [float(area(curves(bright, x, about, order)[at])) for order in (right, chance, wrong)]
        for at in (0, 1)
    )
    assert down == sorted(down)
    assert up == sorted(up, reverse=True)
    assert down[1] - down[0] > 0.005
    assert up[0] - up[1] > 0.005


@pytest.mark.parametrize("side", [5, 14, 23, 30])
def test_every_cell_is_taken_away_once_whatever_the_size(bright: ClassScore, side: int) -> None:
    x = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    order = ranked(at_random(x, generator(1, "order")))
    rows, columns = faithfulness.grid_of(x)
    assert order.sort(dim=1).values.tolist() == [list(range(rows * columns))] * 2
    deleted, _ = curves(bright, x, torch.zeros(2, 1), order)
    assert torch.allclose(deleted[:, -1], bright.shown(absent(x), torch.zeros(2, 1)))


def test_areas_are_mean_heights() -> None:
    assert area(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.5, 0.0]])).tolist() == [1.0, 0.5]


def test_edges_are_where_brightness_changes() -> None:
    heat = edges(quarter())[0]
    assert float(heat[5, 5]) == float(heat[20, 20]) == 0
    assert float(heat[5, 13]) == float(heat[5, 14]) == pytest.approx(4.0)
    assert float(heat[13, 5]) == pytest.approx(4.0)


def test_what_is_absent_is_the_mean_of_what_is_around() -> None:
    even = torch.full((1, 3, 10, 20), 0.3)
    assert torch.allclose(absent(even), even)
    noise = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert float(absent(noise).std()) < 0.2 * float(noise.std())


def test_shuffled_weights_are_the_same_numbers_in_another_order() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 30))
    before = [value.clone() for value in model.parameters()]
    other = shuffled(model, 0)
    for old, kept, new in zip(before, model.parameters(), other.parameters(), strict=True):
        assert torch.equal(old, kept)
        assert not torch.equal(kept, new)
        assert torch.equal(kept.flatten().sort().values, new.flatten().sort().values)
    again = shuffled(model, 0)
    assert all(map(torch.equal, other.parameters(), again.parameters()))


def test_likeness_is_a_rank_correlation() -> None:
    heat = torch.rand(3, 14, 14, generator=torch.Generator().manual_seed(0))
    found = likeness(heat, torch.stack([heat[0].exp(), -heat[1], torch.zeros(14, 14)]))
    assert found.tolist() == pytest.approx([1, -1, 0])
    # By hand: ranks 0, 1.5, 1.5, 3 and 0, 1, 2, 3 minus 1.5; 4.5 / sqrt(4.5 * 5).
    values, others = torch.tensor([[[1.0, 2.0, 2.0, 5.0]], [[1.0, 2.0, 3.0, 4.0]]])
    tied = rank_correlation(values, others)
    assert float(tied) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def network(of: Federation) -> Network:
    return Network(scored(of.program.task, of.network.module.eval()), of.network.head)


def test_subjects_are_test_images_of_all_sites_with_their_answers(
    tiny_federation: Federate,
) -> None:
    of = tiny_federation()
    found = subjects(of, network(of).scored, 20)
    assert len(found) == 20
    assert len({one.position for one in found}) == 20
    assert {one.label for one in found} <= set(of.dataset.classes)
    x = torch.stack([one.x for one in found])
    answers = of.program.task.predict(of.network.module, x).argmax(1)
    assert answers.tolist() == [int(one.given) for one in found]


def test_a_network_that_has_learnt_nothing_is_explained_no_better_than_chance(
    tiny_federation: Federate,
) -> None:
    of = tiny_federation()
    found = measured(of, network(of), ["grad-cam", "occlusion"], 12)
    assert found["images"] == 12
    assert set(found["methods"]) == {"grad-cam", "occlusion"}
    assert set(found["baselines"]) == {"random", "edges"}
    for told in found["methods"].values():
        for key in ("deletion", "insertion", "shuffled"):
            assert told[key]["low"] <= told[key]["mean"] <= told[key]["high"]
        assert len(told["deletion_curve"]) == faithfulness.STEPS + 1
    assert "deletion" in found["methods"]["grad-cam"]["fails"]
    assert len(found["samples"]) == 4


def test_what_the_sites_protect_is_not_measured(tiny_federation: Federate) -> None:
    of = tiny_federation(secure={"name": "secagg"})
    with pytest.raises(DataError, match="not measured"):
        measured(of, network(of))


def test_too_few_answers_are_refused(tiny_federation: Federate) -> None:
    of = tiny_federation()
    with pytest.raises(DataError, match="are needed"):
        measured(of, network(of), None, 3)
