"""Objects from Python that cannot be used: one clear message with the cure, before training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import fedsight as fs

BUILT = {"data": "fashion-mnist-12k", "split": {"name": "iid", "sites": 2}}


class Bare(nn.Module):
    """One layer, to be spoiled."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class Failing(Bare):
    """A forward that does not fit."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(1).flatten(1)[:, :100])


class Narrow(Bare):
    """Too few answers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :7]


class Paired(Bare):
    """An answer that is not a tensor."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), 1


class Tied(Bare):
    """One parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(784, 10)
        self.other.weight = self.fc.weight


class Typed(Bare):
    """A parameter of another type."""

    dtype = torch.int64

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.ones(3, dtype=self.dtype), requires_grad=False)


class Half(Typed):
    dtype = torch.float16


class Complex(Typed):
    dtype = torch.complex64


class Needy(Bare):
    """An argument that nobody gives."""

    def __init__(self, depth: int) -> None:
        super().__init__()


def broken() -> nn.Module:
    raise ValueError("no such layer")


def nothing() -> Any:
    return "a network"


class Locked(Bare):
    """Something that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


NETS: dict[str, tuple[Any, str, str]] = {
    "fails": (Failing, "Failing fails on images of this size", "[b, 10], one number for each"),
    "shape": (Narrow, "Narrow gives (2, 7) for two images of 10 classes", "correct its forward"),
    "tuple": (Paired, "Paired gives a tuple, not a tensor", "correct its forward"),
    "tied": (Tied, "one parameter under two names: 'fc.weight' and 'other.weight'", "once"),
    "integer": (Typed, "parameter 'extra' of Typed is torch.int64", "in a buffer"),
    "half": (Half, "parameter 'extra' of Half is torch.float16", "speed.precision"),
    "complex": (Complex, "parameter 'extra' of Complex is torch.complex64", "float32"),
    "argument": (Needy, "Needy needs depth", "model=lambda: MyNet(64)"),
    "raises": (broken, "broken cannot be built: ValueError: no such layer", "correct its code"),
    "no module": (nothing, "nothing returns str, not a torch.nn.Module", "return the module"),
    "no weights": (nn.Flatten, "Flatten has no parameters", "add layers"),
}


@pytest.mark.parametrize("name", NETS)
def test_a_network_that_cannot_be_trained(name: str) -> None:
    given, cause, cure = NETS[name]
    (problem,) = fs.check(**BUILT, model=given)
    assert problem.where == "model"
    assert cause in problem.cause
    assert cure in problem.cure


@pytest.mark.parametrize("given", [Locked(), lambda: threading.Lock()])
def test_an_object_that_cannot_be_sent_is_refused_before_training(given: Any) -> None:
    (problem,) = fs.check(**BUILT, model=given)
    if isinstance(given, nn.Module):
        assert problem.where == "model"
        assert "Locked cannot be sent to other processes: cannot pickle" in problem.cause
    else:
        assert "returns lock, not a torch.nn.Module" in problem.cause


def test_what_is_no_network_at_all() -> None:
    (problem,) = fs.check(**BUILT, model=3)
    assert problem.where == "model"
    assert "expected settings, got 3" in problem.cause


# -- overrides --------------------------------------------------------------------------------------


def test_all_wrong_keywords_are_named_at_once_with_the_nearest() -> None:
    problems = fs.check(**BUILT, sed=1, trian={"lr": 0.1}, lr=0.1)
    assert [found.where for found in problems] == ["sed", "trian", "lr"]
    assert [found.cure.split("?")[0] for found in problems] == [
        "did you mean 'seed'",
        "did you mean 'train'",
        "did you mean 'train.lr'",
    ]
    problems = fs.check(**BUILT, train={"lrr": 0.1, "epochs": 0}, algorithm="scafold")
    assert [found.where for found in problems] == ["algorithm.name", "train.lrr", "train.epochs"]


def test_a_part_in_the_wrong_place_and_an_unfinished_one() -> None:
    from fedsight.algorithms.fedavg import FedAvg

    (problem,) = fs.check(**{**BUILT, "data": FedAvg()})
    assert "expected a Source, got a FedAvg" in problem.cause

    class Unfinished(fs.Split):
        pass

    (problem,) = fs.check(**{**BUILT, "split": Unfinished})
    assert problem.where == "split"
    assert "abstract" in problem.cause
    (problem,) = fs.check(**{**BUILT, "data": torch.utils.data.TensorDataset(torch.zeros(1))})
    assert "fedsight.sites" in problem.cure


def test_no_config_and_no_data() -> None:
    with pytest.raises(fs.ConfigError, match="no data are given"):
        fs.run(rounds=3)


# -- data sets --------------------------------------------------------------------------------------


def few(make: Callable[[int], Any], count: int = 6) -> list[Any]:
    return [make(number) for number in range(count)]


IMAGE = torch.zeros(1, 8, 8)
GOOD = few(lambda number: (IMAGE, number % 2))
SETS: dict[str, tuple[Any, str, str]] = {
    "not a pair": ([IMAGE], "item 0: expected (image, label), got Tensor", "(image, label)"),
    "three": ([(IMAGE, 0, "x")], "item 0: expected (image, label), got 3 values", "whole number"),
    "no image": ([("x.png", 0)], "item 0: the image is a str", "PIL image"),
    "no pixels": ([(torch.zeros(8), 0)], "item 0: the image has shape (8,)", "[c, h, w]"),
    "shapes": (
        [*GOOD, (torch.zeros(1, 9, 8), 0)],
        "site 'a', item 6: the image is 1 x 9 x 8 float32, but item 0 is 1 x 8 x 8 float32",
        "Resize",
    ),
    "types": (
        [*GOOD, (IMAGE.to(torch.uint8), 0)],
        "item 6: the image is 1 x 8 x 8 uint8, but item 0 is 1 x 8 x 8 float32",
        "one size and type",
    ),
    "integers": ([(IMAGE.long(), 0)], "item 0: the image is torch.int64", "uint8"),
    "normalised": ([(IMAGE - 1, 0)], "pixels are between -1 and -1, not 0 and 1", "mean=[...]"),
    "not finite": ([(IMAGE / 0, 0)], "pixels are between nan and nan", "mean=[...]"),
    "text": ([(IMAGE, "cat")], "the label is 'cat', not a whole number from 0", "0, 1, 2"),
    "negative": ([(IMAGE, -1)], "the label is -1, not a whole number from 0", "0, 1, 2"),
    "fraction": ([(IMAGE, 0.5)], "the label is 0.5, not a whole number", "0, 1, 2"),
    "truth": ([(IMAGE, True)], "the label is True, not a whole number", "0, 1, 2"),
    "vector": ([(IMAGE, torch.ones(2))], "not a whole number from 0", "0, 1, 2"),
    "gap": ([(IMAGE, 0), (IMAGE, 2)], "no training image has the label 1", "classes=[...]"),
    "empty": ([], "site 'a' has no items", "leave this site out"),
    "loader": (
        torch.utils.data.DataLoader(GOOD),  # type: ignore[arg-type]
        "expected a torch.utils.data.Dataset, got DataLoader",
        "not a loader",
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_a_data_set_that_cannot_be_used(name: str) -> None:
    given, cause, cure = SETS[name]
    with pytest.raises(fs.DataError) as caught:
        fs.sites({"a": given})
    assert cause in caught.value.cause
    assert cure in caught.value.cure


def test_a_data_set_that_fails_names_site_and_item() -> None:
    class Torn(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, number: int) -> Any:
            if number == 2:
                raise OSError("the disk is gone")
            return IMAGE, number

    with pytest.raises(fs.DataError, match="site 'b', item 2: reading it fails: OSError: the disk"):
        fs.sites({"a": GOOD, "b": Torn()})


def test_sites_that_do_not_agree_and_arguments_that_do_not_fit() -> None:
    other = few(lambda number: (torch.zeros(3, 8, 8), number % 2))
    with pytest.raises(fs.DataError, match=r"site 'b' has images that are 3 x 8 x 8"):
        fs.sites({"a": GOOD, "b": other})
    with pytest.raises(fs.DataError, match="the test data has images that are 3 x 8 x 8"):
        fs.sites({"a": GOOD}, test=other)
    with pytest.raises(fs.ConfigError, match="expected a dict of data sets"):
        fs.sites(GOOD)  # type: ignore[arg-type]
    with pytest.raises(fs.ConfigError, match="'b', which is not a site"):
        fs.sites({"a": GOOD}, test={"b": GOOD})
    with pytest.raises(fs.ConfigError, match="3 is not a site's name"):
        fs.sites({3: GOOD})  # type: ignore[dict-item]
    with pytest.raises(fs.ConfigError, match="must be between 0 and 1"):
        fs.sites({"a": GOOD}, test_fraction=1.0)
    with pytest.raises(fs.DataError, match="a label 1, but classes names only 1"):
        fs.sites({"a": GOOD}, classes=["one"])
    with pytest.raises(fs.DataError, match="twice"):
        fs.sites({"a": GOOD}, classes=["one", "one"])
    (problem,) = fs.check(data=fs.sites({"a": GOOD}, mean=[0.1, 0.2]), model="small_cnn")
    assert "data.mean is [0.1, 0.2], but the images have 1 channel" in problem.cause


@pytest.mark.parametrize(
    ("image", "dtype", "shape"),
    [
        (Image.new("RGB", (4, 5), (255, 0, 0)), torch.uint8, (3, 5, 4)),
        (Image.new("L", (4, 5), 255), torch.uint8, (1, 5, 4)),
        (Image.new("P", (4, 5)), torch.uint8, (3, 5, 4)),
        (Image.new("1", (4, 5), 1), torch.uint8, (1, 5, 4)),
        (Image.fromarray(np.full((5, 4), 65535, np.uint16)), torch.uint16, (1, 5, 4)),
        (torch.ones(5, 4, dtype=torch.float64), torch.float32, (1, 5, 4)),
    ],
)
def test_images_of_every_kind_become_pixels(
    image: Any, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    items = few(lambda number: (image, torch.tensor(number % 2)))
    opened = fs.sites({"a": items, "b": items}).open()
    pixels: Any = opened.train.images
    assert pixels.pixels.dtype == dtype
    assert pixels.pixels.shape[1:] == shape
    read = pixels.read(torch.tensor([0]))
    assert float(read.max()) == (0.0 if getattr(image, "mode", "") == "P" else 1.0)


# -- losses and measures ----------------------------------------------------------------------------


def ungraded(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).float().mean()


OBJECTIVES: dict[str, tuple[dict[str, Any], str]] = {
    "one argument": ({"loss": lambda logits: logits.mean()}, "the loss fails: TypeError"),
    "a vector": ({"loss": lambda logits, labels: logits.mean(1)}, "the loss gives (3,)"),
    "a number": ({"loss": lambda logits, labels: 1.0}, "the loss gives float"),
    "no gradient": ({"loss": ungraded}, "does not depend on the logits by gradients"),
    "a mean": ({"measure": ungraded}, "the measure gives (), not (3,)"),
    "too much": (
        {"measure": lambda logits, labels: 100.0 * torch.ones(len(labels))},
        "values outside 0 to 1",
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_loss_or_measure_that_does_not_fit(name: str) -> None:
    given, cause = OBJECTIVES[name]
    (problem,) = fs.check(**BUILT, task=fs.task(**given))
    assert problem.where in ("task.loss", "task.measure")
    assert cause in problem.cause
    assert "logits, labels" in problem.cure


def test_a_loss_that_is_no_function() -> None:
    with pytest.raises(fs.ConfigError, match=r"task.loss: expected a function"):
        fs.task(loss=0.5)  # type: ignore[arg-type]


def test_nothing_of_a_refused_run_is_written(tmp_path: Path) -> None:
    with pytest.raises(fs.ModelError):
        fs.run(**BUILT, model=Tied, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
