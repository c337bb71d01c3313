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


class Lone(Bare):
    """A forward that drops the batch of a single image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class Endless(Bare):
    """Answers that are not finite."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0


class Cut(Bare):
    """Answers without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Chosen(Bare):
    """Class numbers for logits."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(super().forward(x).argmax(1), 10)


class Torn(Bare):
    """A forward that fails in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("only in training")
        return super().forward(x)


class Spoilt(Bare):
    """Weights that are not finite."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.fc.bias, float("nan"))


class Still(Bare):
    """Nothing that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Drifting(Bare):
    """Other weights in each process."""

    def __init__(self) -> None:
        super().__init__()
        self.fc.bias.data = torch.from_numpy(np.random.default_rng().random(10, np.float32))


NETS: dict[str, tuple[Any, str, str]] = {
    "fails": (Failing, "Failing fails on images of this size", "[b, 10], one number for each"),
    "shape": (Narrow, "Narrow gives (2, 7) for 2 images of 10 classes", "correct its forward"),
    "tuple": (Paired, "Paired gives a tuple, not a tensor", "correct its forward"),
    "tied": (Tied, "one parameter under two names: 'fc.weight' and 'other.weight'", "once"),
    "integer": (Typed, "parameter 'extra' of Typed is torch.int64", "in a buffer"),
    "half": (Half, "parameter 'extra' of Half is torch.float16", "speed.precision"),
    "complex": (Complex, "parameter 'extra' of Complex is torch.complex64", "float32"),
    "argument": (Needy, "Needy needs depth", "model=lambda: MyNet(64)"),
    "raises": (broken, "broken cannot be built: ValueError: no such layer", "correct its code"),
    "no module": (nothing, "nothing returns str, not a torch.nn.Module", "return the module"),
    "one image": (Lone, "Lone gives (10,) for 1 image of 10 classes", "correct its forward"),
    "not finite": (Endless, "Endless gives values that are not finite", "correct its forward"),
    "detached": (Cut, "no gradient reaches the parameters of Cut", "detach"),
    "chosen": (Chosen, "Chosen gives torch.int64 instead of logits", "correct its forward"),
    "in training": (Torn, "Torn fails on images of this size: only in training", "its forward"),
    "spoilt": (Spoilt, "parameter 'fc.bias' of Spoilt has values that are not finite", "initial"),
    "still": (
        Still,
        "nothing would be trained: no parameter of Still requires_grad",
        "requires_grad",
    ),
    "drifting": (
        Drifting,
        "Drifting is built differently each time: 'fc.bias'",
        "default generator",
    ),
    "head": (fs.model(Bare, head="top"), "'top', and no layer with parameters has that name", "fc"),
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


class Viewing(nn.Module):
    """What fits images whose channels come first in memory only."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.view(len(x), -1))


def test_a_view_that_training_would_fail_on_is_found_before_it() -> None:
    coloured = few(lambda number: (torch.zeros(3, 8, 8), number % 2))
    (problem,) = fs.check(data=fs.sites({"a": coloured}, test=coloured), model=Viewing)
    assert "Viewing fails on images of this size: view size is not compatible" in problem.cause


class Lazy(nn.Sequential):
    """Layers that take their shapes from the first images."""

    def __init__(self) -> None:
        super().__init__(nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10))


def test_lazy_layers_take_their_shapes_from_the_images_of_the_run() -> None:
    assert fs.check(**BUILT, model=Lazy) == []
    with pytest.raises(fs.ConfigError, match="Lazy has lazy layers that are not initialised yet"):
        fs.model(Lazy())


def test_arguments_of_a_network_that_do_not_fit() -> None:
    with pytest.raises(fs.ConfigError, match=r"model.norm: norm is 'layer', not one of group"):
        fs.model(Bare, norm="layer")  # type: ignore[arg-type]
    with pytest.raises(fs.ConfigError, match=r"model.head: head is 3, not the name of a layer"):
        fs.model(Bare, head=3)  # type: ignore[arg-type]


class Unopened(fs.Source):
    """A source that fails."""

    def open(self) -> Any:
        raise ValueError("no such archive")


class Strange(fs.Source):
    """A source that gives something else."""

    def open(self) -> Any:
        return [1, 2]


class Headless(fs.Model):
    """A network without the names of its head."""

    def make(self, channels: int, height: int, width: int, classes: int) -> Any:
        return Bare()


def test_own_parts_that_fail_are_named_with_the_line() -> None:
    (problem,) = fs.check(data=Unopened)
    assert "Unopened fails: ValueError: no such archive" in problem.cause
    assert "test_bad_objects.py, line" in problem.cause
    (problem,) = fs.check(data=Strange)
    assert "the data source Strange gives a list" in problem.cause
    (problem,) = fs.check(**BUILT, model=Headless)
    assert "Headless fails: TypeError" in problem.cause


def test_your_own_code_that_fails_in_a_worker_is_not_called_a_defect(tmp_path: Path) -> None:
    class Broken(fs.Algorithm):
        """Fails as it trains."""

        def finish(self, *given: Any, **named: Any) -> Any:
            raise ValueError("not today")

    with pytest.raises(fs.FedSightError) as caught:
        fs.run(**BUILT, algorithm=Broken, rounds=1, workers=1, out=tmp_path / "run")
    assert "your code failed: ValueError: not today" in caught.value.cause
    assert "test_bad_objects.py, line" in caught.value.cause


@pytest.mark.parametrize("name", [3, "", Bare])
def test_a_part_is_registered_under_a_text(name: Any) -> None:
    with pytest.raises(fs.FedSightError, match="is not the name of a part"):
        fs.register(name)
    with pytest.raises(fs.FedSightError, match=r"dict is neither a part nor a torch\.nn\.Module"):
        fs.register("table")(dict)


# -- overrides -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("given", [{"plugins": None}, {"plugins": [3]}, {"train": {3: 1}}])
def test_values_of_another_type_are_problems_not_tracebacks(given: dict[str, Any]) -> None:
    (problem,) = fs.check(**BUILT, **given)
    assert problem.where in ("plugins", "train.3")


def test_paths_and_configs_of_another_type() -> None:
    for call in (lambda: fs.run(3), lambda: fs.run(**BUILT, out=3), lambda: fs.load(3)):  # type: ignore[arg-type]
        with pytest.raises(fs.ConfigError, match="expected the path of a"):
            call()


def test_numbers_of_numpy_are_numbers() -> None:
    assert fs.check(**BUILT, seed=np.int64(3), rounds=np.int64(2)) == []


def test_no_config_and_no_data() -> None:
    with pytest.raises(fs.ConfigError, match="no data are given"):
        fs.run(rounds=3)


# -- data sets -------------------------------------------------------------------------------------


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
    "identifier": ([(IMAGE, 10**9)], "no training image has the label 0", "classes=[...]"),
    "too large": ([(IMAGE, 2**70)], "not a whole number from 0", "0, 1, 2"),
    "channels last": ([(torch.zeros(9, 9, 3), 0)], "with its channels last", "permute(2, 0, 1)"),
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
    "given",
    [
        {"classes": 3},
        {"classes": "ab"},
        {"test": {}},
        {"test_fraction": "0.2"},
        {"test_seed": "x"},
        {"mean": 0.5},
        {"mean": ["x"]},
        {"std": [float("nan")]},
    ],
    ids=str,
)
def test_arguments_of_another_type_are_named(given: dict[str, Any]) -> None:
    with pytest.raises(fs.ConfigError) as caught:
        fs.sites({"a": GOOD}, **given)
    assert next(iter(given)) in caught.value.problems[0].cause


@pytest.mark.parametrize("name", [" a", "a\nb", "a\0b", "x" * 81])
def test_site_names_that_cannot_name_a_file(name: str) -> None:
    with pytest.raises(fs.ConfigError, match="not a site's name"):
        fs.sites({name: GOOD})


@pytest.mark.parametrize("given", [{"a": GOOD}, [GOOD]])
def test_data_sets_without_sites_are_told_of_sites(given: Any) -> None:
    held = torch.utils.data.TensorDataset(torch.zeros(1))
    (problem,) = fs.check(data={"a": held} if isinstance(given, dict) else [held])
    assert "fedsight.sites" in problem.cure


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


# -- losses and measures ---------------------------------------------------------------------------


def ungraded(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).float().mean()


OBJECTIVES: dict[str, tuple[dict[str, Any], str]] = {
    "one argument": (
        {"loss": lambda logits: logits.mean()},
        "the loss fails on 11 images: TypeError",
    ),
    "a vector": ({"loss": lambda logits, labels: logits.mean(1)}, "the loss gives (11,)"),
    "a number": ({"loss": lambda logits, labels: 1.0}, "the loss gives float"),
    "no gradient": ({"loss": ungraded}, "does not depend on the logits by gradients"),
    "a mean": ({"measure": ungraded}, "the measure gives (), not (11,)"),
    "not a number": ({"loss": lambda logits, labels: logits.sum() / 0}, "the loss gives"),
    "never a number": ({"measure": lambda logits, labels: logits[:, 0] * torch.nan}, "0 to 1"),
    "too much at times": (
        {"measure": lambda logits, labels: 5 * logits[:, 0].sign().relu()},
        "0 to",
    ),
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


def test_a_loss_that_would_not_be_trained_and_names_that_are_taken() -> None:
    class Warm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(logits / self.temperature, labels)

    with pytest.raises(fs.ConfigError, match="Warm has parameters"):
        fs.task(loss=Warm())

    def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.argmax(1) == labels).float()

    with pytest.raises(fs.ConfigError, match="a run has a figure of that name already"):
        fs.task(measure=accuracy)
    with pytest.raises(fs.ConfigError, match="3 cannot be the name of a figure"):
        fs.task(measure=accuracy, name=3)  # type: ignore[arg-type]
    with pytest.raises(fs.ConfigError, match="there is no measure"):
        fs.task(name="right")
    assert fs.task(measure=accuracy, name="right").headline == "right"
    assert fs.task(measure=lambda logits, labels: labels > 0).headline == "measure"


def test_a_loss_that_is_no_function() -> None:
    with pytest.raises(fs.ConfigError, match=r"task.loss: expected a function"):
        fs.task(loss=0.5)  # type: ignore[arg-type]


def test_nothing_of_a_refused_run_is_written(tmp_path: Path) -> None:
    with pytest.raises(fs.ModelError):
        fs.run(**BUILT, model=Tied, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
