"""Detection learns boxes, leaves unlabelled classes alone, and says what it found."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsight.core.errors import ConfigError
from fedsight.core.threads import one_thread
from fedsight.core.types import Batch, add_metrics
from fedsight.data.detection.boxes import Row, pack
from fedsight.models.base import models
from fedsight.models.detector import Detector, HeatmapDetector, layer
from fedsight.models.norms import to_group_norm
from fedsight.program.config import parse
from fedsight.program.program import Program
from fedsight.tasks.detection import presentation
from fedsight.tasks.detection.task import Detection

SIDE = 32


def detector(classes: int = 2, width: int = 8) -> Detector:
    module = models.get("small_detector")(width=width).build(1, SIDE, SIDE, classes, 0).module
    assert isinstance(module, Detector)
    return module


def squares(count: int, seed: int = 0) -> tuple[Tensor, list[list[Row]]]:
    """A bright square (class 0) and a dark one (class 1) on grey [count, 1, 32, 32]."""
    rng = np.random.default_rng(seed)
    x = torch.zeros(count, 1, SIDE, SIDE)
    rows: list[list[Row]] = []
    for image in range(count):
        rows.append([])
        for label, (low, high) in enumerate(((0, 8), (16, 24))):
            side = int(rng.integers(6, 9))
            left, top = int(rng.integers(0, SIDE - side)), int(rng.integers(low, high - 0))
            top = min(top, SIDE - side)
            x[image, 0, top : top + side, left : left + side] = 2.0 - 4.0 * label
            rows[-1].append((label, left, top, left + side, top + side))
    return x, rows


def learn(task: Detection, model: Detector, batch: Batch, steps: int) -> Detector:
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        task.loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimiser.step()
    return model.eval()


def score(task: Detection, model: Detector, x: Tensor, rows: list[list[Row]]) -> dict[str, float]:
    with torch.inference_mode():
        return task.summary(task.measure(model, Batch(x, pack(rows, [()] * len(rows))), 2))


@pytest.fixture(scope="module")
def learnt() -> Detector:
    x, rows = squares(16)
    return learn(Detection(), detector(), Batch(x, pack(rows, [()] * 16)), 60)


def test_it_learns_what_it_is_shown(learnt: Detector) -> None:
    figures = score(Detection(), learnt, *squares(16))
    assert figures["map_50"] > 0.8
    assert figures["map"] <= figures["map_50"]
    assert figures["map_small"] == pytest.approx(figures["map"])
    assert np.isnan(figures["map_large"])


def test_sums_of_batches_are_those_of_the_whole(learnt: Detector) -> None:
    x, rows = squares(8)
    task, y = Detection(), pack(rows, [()] * 8)
    with torch.inference_mode():
        whole = task.measure(learnt, Batch(x, y), 2)
        parts = add_metrics(
            [task.measure(learnt, Batch(x[i : i + 4], y[i : i + 4]), 2) for i in (0, 4)]
        )
    for name in ("detections", "objects"):
        np.testing.assert_array_equal(whole[name].total, parts[name].total)


def test_a_label_mix_weighs_the_classes(learnt: Detector) -> None:
    x, rows = squares(8)
    with torch.inference_mode():
        sums = Detection().measure(learnt, Batch(x, pack(rows, [()] * 8)), 2)
    each = [Detection().summary(sums, mix=np.eye(2)[label])["map"] for label in (0, 1)]
    mixed = Detection().summary(sums, mix=np.array([0.25, 0.75]))["map"]
    assert mixed == pytest.approx(0.25 * each[0] + 0.75 * each[1])


def test_an_unlabelled_class_gets_no_gradient_from_the_background() -> None:
    x, rows = squares(4)
    seen = [[row for row in image if row[0] == 0] for image in rows]
    gradients = {}
    for name in ("ignore", "background"):
        model = detector()
        Detection(unlabelled=name).loss(model, Batch(x, pack(seen, [[1]] * 4))).backward()
        heat = dict(model.named_parameters())["body.heat.weight"].grad
        assert heat is not None
        gradients[name] = heat[1].abs().sum()
    assert gradients["ignore"] == 0
    assert gradients["background"] > 0


def tiny() -> Detector:
    """Four convolutions: these squares need no more, and a step takes little."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        body = nn.Sequential(*layer(1, 8, 2), *layer(8, 16, 2), *layer(16, 16), nn.Conv2d(16, 6, 1))
        nn.init.normal_(body[-1].weight, std=0.05)  # type: ignore[arg-type]
        body[-1].bias.data = torch.tensor([-2.2, -2.2, 0.5, 0.5, 0.5, 0.5])
    return HeatmapDetector(to_group_norm(body), 2, 4, (SIDE, SIDE))


def federated(task: Detection, sites: list[Batch], rounds: int, steps: int) -> Detector:
    """Federated averaging by hand."""
    whole = tiny()
    for _ in range(rounds):
        states = [learn(task, copy.deepcopy(whole), site, steps).state_dict() for site in sites]
        mean = {name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]}
        whole.load_state_dict(mean)
    return whole.eval()


def test_sites_that_label_one_class_each_learn_both_as_if_all_were_labelled() -> None:
    (x, rows), unseen = squares(24), squares(16, seed=9)
    found = {}
    for name in ("all", "ignore", "background"):
        sites = []
        for site in (0, 1):
            own = list(range(site, 24, 2))
            seen = [[r for r in rows[i] if name == "all" or r[0] == site] for i in own]
            hidden = [[] if name == "all" else [1 - site]] * len(own)
            sites.append(Batch(x[own], pack(seen, hidden)))
        task = Detection(unlabelled="background" if name == "background" else "ignore")
        with one_thread():
            found[name] = score(Detection(), federated(task, sites, 8, 10), *unseen)
    assert found["all"]["f1_50"] > 0.9
    for figure in ("f1_50", "map_50"):
        assert found["ignore"][figure] > found["all"][figure] - 0.15
    # a model that was told that objects are background does not dare to name them
    assert found["background"]["f1_50"] < found["ignore"]["f1_50"] - 0.15


def test_answers_tell_and_mark_what_was_found(learnt: Detector) -> None:
    x, rows = squares(16)
    task, classes = Detection(), ("light", "dark")
    with torch.inference_mode():
        told = task.answers(learnt, x, classes)
        shown = task.samples(learnt, Batch(x, pack(rows, [()] * 16)), classes)
        surest = task.predict(learnt, x)
    assert surest.shape == (16, 2)
    right = [one for one in shown if one.right]
    assert right
    assert right[0].truth == right[0].predicted == "light, dark" or right[0].truth == "light, dark"
    assert [mark.kind for mark in right[0].marks] == ["found", "found"]
    answer = told[right[0].positions[0]]
    assert len(answer.marks) == len(answer.details["boxes"]) == 2
    assert answer.probability == max(box["score"] for box in answer.details["boxes"])


def test_no_object_is_a_right_answer_too() -> None:
    model = detector().eval()
    with torch.inference_mode():
        answer = Detection(shown=0.9).answers(model, torch.zeros(1, 1, SIDE, SIDE), ("a", "b"))[0]
    assert (answer.label, answer.probability, answer.marks) == ("nothing", 0.0, ())


def test_the_report_gets_a_curve_and_a_table_by_class(learnt: Detector) -> None:
    x, rows = squares(8)
    with torch.inference_mode():
        sums = Detection().measure(learnt, Batch(x, pack(rows, [()] * 8)), 2)
    (curve,) = Detection().curves(sums, ("light", "dark"))
    assert set(curve.lines) == {"light", "dark"}
    assert all(
        0 <= value <= 1 for line in curve.lines.values() for point in line for value in point
    )
    outcomes, average = Detection().tables(sums, ("light", "dark"))
    assert [row[:2] for row in average.rows] == [("light", 8.0), ("dark", 8.0)]
    with torch.inference_mode():
        shown = Detection().samples(learnt, Batch(x, pack(rows, [()] * 8)), ("light", "dark"))
    kinds = Counter((mark.label, mark.kind) for one in shown for mark in one.marks)
    for name, found, missed, false, precision, recall, f1 in outcomes.rows:
        assert (found, missed, false) == tuple(
            kinds[name, kind] for kind in ("found", "missed", "false")
        )
        assert found + missed == 8
        assert precision == pytest.approx(found / (found + false))
        assert recall == pytest.approx(found / 8)
        assert f1 == pytest.approx(2 * found / (found + false + 8))


def test_an_object_is_found_once_and_what_else_is_there_is_false_or_missed() -> None:
    box, away = (0.0, 0.0, 10.0, 10.0), (40.0, 40.0, 50.0, 50.0)
    found = [(0.0, 0.6, *box), (0.0, 0.9, *box), (1.0, 0.8, *away), (1.0, 0.7, *box)]
    truth = [(0.0, *box), (0.0, *away), (-1.0, 0.0, 0.0, 0.0, 0.0)]
    shown = presentation.sample(0, found, truth, ("cat", "dog"))
    assert not shown.right
    assert [(mark.kind, mark.label, mark.score) for mark in shown.marks] == [
        ("false", "cat", 0.6),
        ("found", "cat", 0.9),
        ("false", "dog", 0.8),
        ("false", "dog", 0.7),
        ("missed", "cat", None),
    ]
    assert presentation.sample(0, found[1:2], truth[:1], ("cat", "dog")).right
    assert presentation.sample(0, [], [], ("cat", "dog")).right


def test_the_report_tells_which_site_finds_which_class(learnt: Detector) -> None:
    x, rows = squares(16)
    second = [[box for box in image if box[0] == 0] for image in rows[8:]]  # no dark one is there
    x[8:][x[8:] < 0] = 0
    with torch.inference_mode():
        parts = {
            "north": Batch(x[:8], pack(rows[:8], [()] * 8)),
            "south": Batch(x[8:], pack(second, [()] * 8)),
        }
        sums = {site: Detection().measure(learnt, batch, 2) for site, batch in parts.items()}
    (table,) = Detection().site_tables(sums, ("light", "dark"))
    assert table.columns == ("Class", "north", "south")
    (_, *light), (_, dark_north, dark_south) = table.rows
    expected = [Detection().summary(sums[site], np.array([1.0, 0.0]))["map"] for site in sums]
    assert light == pytest.approx(expected)
    assert dark_north is not None
    assert dark_south is None
    assert Detection().site_tables({"north": sums["north"]}, ("light", "dark")) == []


def scenes(**sections: dict[str, object]) -> Program:
    tables = {
        "data": {"name": "scenes"},
        "split": {"name": "natural"},
        "model": {"name": "small_detector"},
        "task": {"name": "detect"},
    }
    return parse({**tables, **sections}, base=None)[0]


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"model": {"name": "small_cnn"}}, "model.name"),
        ({"task": {"name": "classify"}}, "model.name"),
        ({"train": {"augment": ["flip"]}}, "train.augment"),
        ({"shift": {"kind": "rotate", "strength": 10.0}}, "shift.kind"),
        ({"model": {"name": "small_detector", "norm": "frozen"}}, "model.norm"),
        ({"model": {"name": "torchvision_detector", "architecture": "fcos"}}, "model.architecture"),
    ],
)
def test_what_does_not_go_together_is_refused(
    sections: dict[str, dict[str, object]], where: str
) -> None:
    assert where in [problem.where for problem in scenes(**sections).check()]


def test_only_boxes_can_be_learnt_by_a_detector() -> None:
    dataset = scenes(data={"name": "fashion-mnist-12k"}).data.open()
    assert [problem.where for problem in Detection().check(dataset)] == ["data.name"]
    with pytest.raises(ConfigError, match="needs a detector"):
        Detection().predict(nn.Identity(), torch.zeros(1, 1, 8, 8))
    small = scenes(data={"name": "scenes", "train": 1, "test": 1}).data.open()
    assert Detection().check(small) == []
    assert Detection().check(replace(small, train=replace(small.train, targets=None)))


def test_measuring_leaves_the_model_as_it_was(learnt: Detector) -> None:
    before = copy.deepcopy(learnt.state_dict())
    score(Detection(), learnt, *squares(2))
    assert all(torch.equal(value, before[name]) for name, value in learnt.state_dict().items())
