"""Deletion, insertion, the baselines and the check by shuffled weights, on known models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fedsight.core.errors import DataError
from fedsight.core.rng import generator
from fedsight.evaluation.explanations import faithfulness
from fedsight.evaluation.explanations.absence import absent
from fedsight.evaluation.explanations.faithfulness import area, at_random, curves, edges, ranked
from fedsight.evaluation.explanations.measure import measured
from fedsight.evaluation.explanations.methods import Network, heat_of
from fedsight.evaluation.explanations.randomisation import (
    likeness,
    rank_correlation,
    shuffled,
    silent,
)
from fedsight.evaluation.explanations.scores import PIXELS, ClassScore, scored
from fedsight.evaluation.explanations.subjects import subjects
from fedsight.evaluation.explanations.verdicts import judged, same_answers
from fedsight.program.federation import Federation
from fedsight.program.views import View
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


def test_large_images_go_through_the_network_a_few_at_a_time() -> None:
    seen: list[int] = []

    class Counted(Bright):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.shape[0] * x.shape[2] * x.shape[3])
            return super().forward(x)

    x, about = torch.rand(2, 1, 512, 512), torch.zeros(2, 1)
    found = ClassScore(Counted(), Classification())
    deleted, inserted = curves(found, x, about, ranked(x[:, 0]))
    heat_of(Network(found), "occlusion", x[:1], about[:1])
    assert deleted.shape == inserted.shape == (2, faithfulness.STEPS + 1)
    assert max(seen) == PIXELS


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


def test_grad_cam_of_a_network_that_has_learnt_nothing_does_not_hold(
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
    assert found["methods"]["grad-cam"]["result"] != "holds"
    assert found["layer"] == "relu1"
    assert found["shuffled_answers"] is None  # 12 images do not say
    assert len(found["samples"]) == 4


def test_what_the_sites_protect_is_not_measured(tiny_federation: Federate) -> None:
    of = tiny_federation(secure={"name": "secagg"})
    with pytest.raises(DataError, match="not measured"):
        measured(of, network(of))


def test_too_few_answers_are_refused(tiny_federation: Federate) -> None:
    of = tiny_federation()
    with pytest.raises(DataError, match="are needed"):
        measured(of, network(of), None, 3)


def of_bright(heats: dict[str, Tensor], count: int = 40) -> dict[str, dict[str, Tensor]]:
    """The curves of heats on images of which only the upper left quarter counts, with noise."""
    x = quarter().repeat(count, 1, 1, 1)
    x = x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    bright, about = ClassScore(Bright(), Classification()), torch.zeros(count, 1)
    chance = at_random(x, generator(0, "chance"))
    known = {"random": chance, "edges": edges(x)}
    found = {}
    for name, heat in {**known, **heats}.items():
        heat = heat.expand(count, -1, -1)
        deleted, inserted = curves(bright, x, about, ranked(heat, generator(1, name)))
        apart = torch.randn(count, generator=torch.Generator().manual_seed(1)) * 0.1
        found[name] = {
            "deletion": deleted, "insertion": inserted, "shuffled": apart, "silent": silent(heat),
        }  # fmt: skip
    return found


def test_a_good_method_holds_a_bad_one_fails_and_chance_is_not_decided() -> None:
    heats = {
        "good": quarter()[:, 0],
        "bad": -quarter()[:, 0],
        "chance": at_random(torch.zeros(40, 1, 28, 28), generator(7, "other")),
    }
    every = of_bright(heats)
    baselines = {name: every.pop(name) for name in ("random", "edges")}
    told = {name: judged(own, baselines, False) for name, own in every.items()}
    assert told["good"]["result"] == "holds"
    assert told["good"]["fails"] == told["good"]["undecided"] == []
    assert told["bad"]["result"] == "fails"
    assert set(told["bad"]["fails"]) >= {"random-deletion", "random-insertion"}
    assert "random-deletion" in told["chance"]["undecided"]
    assert "edges-deletion" in {*told["bad"]["fails"], *told["chance"]["undecided"]}
    assert told["good"]["gains"]["random"]["deletion"]["low"] > 0


@pytest.mark.parametrize(
    ("value", "alike", "result"),
    [
        (0.9, False, "fails"), (0.9, True, "holds"), (0.9, None, "undecided"),
        (0.1, False, "holds"), (0.1, None, "holds"),
    ],
)  # fmt: skip
def test_likeness_to_a_network_that_has_learnt_nothing_counts_unless_it_answers_alike(
    value: float, alike: bool | None, result: str
) -> None:
    every = of_bright({"good": quarter()[:, 0]})
    baselines = {name: every.pop(name) for name in ("random", "edges")}
    own = {**every["good"], "shuffled": every["good"]["shuffled"] * 0.1 + value}
    assert judged(own, baselines, alike)["result"] == result


def test_heat_that_says_nothing_fails_and_follows_no_order_of_reading() -> None:
    even = torch.full((1, 28, 28), 0.3)
    every = of_bright({"dead": even})
    baselines = {name: every.pop(name) for name in ("random", "edges")}
    told = judged(every["dead"], baselines, False)
    assert "silent" in told["fails"]
    assert told["silent"] == 1
    assert told["shuffled"]["mean"] is None
    order = ranked(even.repeat(2, 1, 1))
    assert order[0].tolist() != sorted(order[0].tolist())
    assert order[0].tolist() != order[1].tolist()


def test_whether_networks_answer_alike_takes_thirty_images_and_an_interval() -> None:
    draws = torch.Generator().manual_seed(0)
    own, noise = torch.rand(200, generator=draws), torch.rand(200, generator=draws)
    assert same_answers(own, own + 0.1 * noise) is True
    assert same_answers(own, noise) is False
    assert same_answers(own[:29], own[:29]) is None
    assert same_answers(own[:30], own[:30] + 1.2 * noise[:30]) is None  # 0.6, from 0.3 to 0.8


def test_running_statistics_are_shuffled_too_and_fixed_buffers_are_not() -> None:
    model = nn.Sequential(nn.Conv2d(1, 64, 1), nn.BatchNorm2d(64))
    model.register_buffer("fixed", torch.arange(64.0))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean = torch.arange(64.0)
    other = shuffled(model, 0)
    moved = other[1].running_mean  # type: ignore[index]
    assert not torch.equal(moved, norm.running_mean)
    assert torch.equal(moved.sort().values, norm.running_mean)
    assert torch.equal(other.fixed, torch.arange(64.0))


def test_a_site_is_measured_on_its_own_images_or_it_is_said_whose(
    tiny_federation: Federate,
) -> None:
    of = tiny_federation()
    assert {view.site for view in of.views} == {None}
    found = measured(of, network(of), ["occlusion"], 6, 0)
    assert found["common"]
    assert {one["site"] for one in found["samples"]} == {""}
    views = (View(None, of.views[0].indices), View(0, of.views[0].indices[:20]))
    of = replace(of, views=views)
    assert {one.site for one in subjects(of, network(of).scored, 10)} == {"", "site-00"}
    assert {one.site for one in subjects(of, network(of).scored, 10, 0)} == {"site-00"}
