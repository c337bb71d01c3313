"""The settings of local training: which go with one another, with tasks and with images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import federations
import pytest
from torch import Generator, Tensor

from fedsight.core.errors import ConfigError
from fedsight.core.registry import Registry
from fedsight.data.augment.base import Augmentation, augmentations
from fedsight.program.config import parse
from fedsight.program.train import Train
from fedsight.tasks.base import tasks

FACES = {"model": {"name": "embedding", "backbone": "small_cnn"}, "task": {"name": "faces"}}


@pytest.mark.parametrize(
    ("train", "where", "cause"),
    [
        ({"optimiser": "adamw", "momentum": 0.9}, "train.momentum", "AdamW does not use"),
        ({"schedule_by": "step"}, "train.schedule_by", "learning rate is constant"),
        ({"augment": ["mixup"], "batch": 1}, "train.batch", "a batch has one image"),
    ],
)
def test_settings_that_do_not_go_together(train: dict[str, Any], where: str, cause: str) -> None:
    (problem,) = federations.program(train=train).check()
    assert problem.where == where
    assert cause in problem.cause


def test_settings_that_do() -> None:
    assert Train(schedule_by="step", warmup=1).check() == []
    assert Train(schedule_by="step", schedule="cosine").check() == []


@pytest.mark.parametrize("name", tasks.names())
def test_what_a_task_cannot_learn_from_is_refused_with_the_tasks_that_can(name: str) -> None:
    task, train = tasks.get(name)(), Train(augment=["mixup"], sampling="balanced")
    found = {problem.where: problem for problem in train.check_task(task)}
    expected = set()
    if name not in ("classify", "ordinal", "multilabel"):
        expected.add("train.augment")
    if name not in ("classify", "ordinal"):
        expected.add("train.sampling")
    assert found.keys() == expected
    for problem in found.values():
        assert f"'{name}'" in problem.cause
        assert "'classify'" in problem.cure


def test_a_program_says_so_once() -> None:
    program = federations.program(train={"augment": ["cutmix"]}, **FACES)
    (problem,) = [one for one in program.check() if one.where == "train.augment"]
    assert "'cutmix' mixes images, and the task 'faces' cannot" in problem.cause


@pytest.mark.parametrize("name", augmentations.names())
def test_what_moves_the_content_of_images_is_refused_where_targets_have_places(name: str) -> None:
    found = list(Train(augment=[name]).check_task(tasks.get("detect")()))
    stays = name in ("brightness", "colour", "erase", "shrink")
    assert (found == []) == stays


def test_images_with_other_channels_than_colours_are_named() -> None:
    train = Train(augment=["flip", "colour"])
    assert train.check_images(1) == train.check_images(3) == []
    (problem,) = train.check_images(4)
    assert problem.where == "train.augment"
    assert "'colour' is defined for images with 1 or 3 channels, and these have 4" in problem.cause


def test_an_augmentation_of_ones_own_is_a_part_and_changes_the_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "dim.py"
    code = """
from fedsight.data.augment.base import Augmentation, augmentations

@augmentations.add("dim")
class Dim(Augmentation):
    "Halve the brightness."
    factor: float = 0.5

    def apply(self, x, generator):
        return x * self.factor
"""
    shas = set()
    try:
        for text in (code, code.replace("0.5", "0.25")):
            file.write_text(text)
            table = {"data": {"name": "fashion-mnist-12k"}, "plugins": ["dim.py"]}
            program, _ = parse({**table, "train": {"augment": ["dim"]}}, tmp_path)
            shas.add(program.fingerprint)
            assert type(program.train.augment[0]).__name__ == "Dim"
    finally:
        augmentations.remove("dim")
    assert len(shas) == 2


class Inverted(Augmentation):
    """Negatives, given from Python."""

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        """1 - x."""
        return 1 - x


def test_one_that_is_given_from_python_is_adopted() -> None:
    registry: Registry[Augmentation] = augmentations
    try:
        table = {"data": {"name": "fashion-mnist-12k"}, "train": {"augment": [Inverted()]}}
        program, _ = parse(table, Path())
        (plugin,) = program.plugins
        assert plugin.title == "augmentation Inverted"
        assert registry.get("Inverted") is Inverted
        assert program.table()["train"]["augment"] == ["Inverted"]
    finally:
        registry.remove("Inverted")


def test_a_value_that_is_no_list_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"data": {"name": "fashion-mnist-12k"}, "train": {"augment": "flip"}}, Path())
    (problem,) = caught.value.problems
    assert problem.where == "train.augment"
