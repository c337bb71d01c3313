"""Splits have known answers, whatever NumPy's version, and need none of its distributions."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from fedsight.data.assembly import held_out
from fedsight.data.base import ArrayImages, Part
from fedsight.data.partition import Partition, splits
from fedsight.data.sources.scenes import Scenes
from fedsight.privacy.sampling import Cyclic, FixedSize, Poisson
from fedsight.program.config import example
from fedsight.program.validation import set_aside

LABELS = np.arange(1000, dtype=np.int64) % 10
ANSWERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "iid": ("iid", {}, "83ad36e2a458ad19"),
    "dirichlet": ("dirichlet", {"alpha": 0.3}, "b67e9cba5d3bf2af"),
    "dirichlet of small alpha": ("dirichlet", {"alpha": 0.05, "sites": 3}, "d51536a8a5d4a00e"),
    "dirichlet of large alpha": ("dirichlet", {"alpha": 20.0}, "6e8d6dbe0bbd2f47"),
    "labels": ("labels", {"labels": 3}, "520855c5d6e8eab4"),
    "quantity": ("quantity", {}, "293a34db021a6164"),
    "quantity, lognormal": ("quantity", {"law": "lognormal"}, "9849df58884cbc9a"),
    "virtual": ("virtual", {"sites": 50, "samples": 30}, "06abc6df3d3950ae"),
}


@pytest.fixture(params=["as it is", "without NumPy's distributions"])
def _numpy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy as it is, and NumPy whose distributions cannot be asked."""

    def changed(*_: object) -> None:
        raise AssertionError("a distribution of NumPy's was asked, which may change")

    if request.param != "as it is":
        monkeypatch.setattr(np.random, "Generator", changed)
        monkeypatch.setattr(np.random, "default_rng", changed)
        monkeypatch.setattr(torch, "randperm", changed)


def part(labels: np.ndarray) -> Part:
    images = ArrayImages(torch.zeros((len(labels), 1, 1, 1), dtype=torch.uint8), "test")
    return Part(images, labels)


def code(groups: list[np.ndarray]) -> str:
    """The first digits of a hash of who has which images."""
    seen = hashlib.sha256()
    for group in groups:
        seen.update(np.asarray(group, dtype="<i8").tobytes() + b"/")
    return seen.hexdigest()[:16]


def groups(partition: Partition) -> list[np.ndarray]:
    return [partition.indices(site) for site in range(len(partition))]


@pytest.mark.usefixtures("_numpy")
@pytest.mark.parametrize("case", ANSWERS)
def test_a_split_has_its_known_answer(case: str) -> None:
    name, options, wanted = ANSWERS[case]
    made = splits.get(name)(**options).divide(part(LABELS), 10, 7)
    assert code(groups(made)) == wanted


@pytest.mark.usefixtures("_numpy")
def test_the_main_example_divides_its_images_as_ever() -> None:
    """The figures of the documentation rest on it."""
    program, _ = example("fashion")
    opened = program.data.open()
    made = program.split.divide(opened.train, len(opened.classes), program.split_seed)
    assert [len(group) for group in groups(made)] == [
        1529,
        1358,
        603,
        878,
        636,
        564,
        1389,
        472,
        1483,
        1088,
    ]
    assert code(groups(made)) == "ba4252fdec19d098"


@pytest.mark.usefixtures("_numpy")
def test_test_and_validation_images_have_known_answers() -> None:
    assert code([np.flatnonzero(held_out(LABELS, None, 0.2, 0))]) == "5441cf4c32a6cde5"
    made = splits.get("iid")(sites=3).divide(part(LABELS), 10, 7)
    kept, aside = set_aside(made, 0.1, 7)
    assert code([*groups(kept), *aside]) == "a127409e79e9122f"


@pytest.mark.usefixtures("_numpy")
def test_cohorts_have_known_answers() -> None:
    assert FixedSize(4).draw(1000, 3, 5) == [121, 219, 394, 913]
    assert Poisson(0.005).draw(1000, 3, 5) == [186, 283, 615, 817]
    assert Cyclic(3).draw(10, 3, 2) == [1, 3, 5]


@pytest.mark.usefixtures("_numpy")
def test_composed_scenes_have_known_answers() -> None:
    opened = Scenes(sites=2, train=3, test=2, alpha=0.7).open()
    seen = hashlib.sha256(opened.train.images.pixels.numpy().tobytes()).hexdigest()
    assert seen[:16] == "962dade185427bc6"
