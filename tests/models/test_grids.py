"""Grids over inner layers: what the head sees of where in an image something is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import fedsight as fs
from fedsight.core.errors import ModelError
from fedsight.inference.export import export
from fedsight.models.base import Network, models
from fedsight.models.taps import pooled, width_of


def test_cells_are_those_of_adaptive_pooling_after_the_mean_and_the_maximum() -> None:
    one = torch.rand(2, 3, 7, 5)
    for grid in (2, 3, 4):
        means = F.adaptive_avg_pool2d(one, grid)
        cells = [means[:, :, row, column] for row in range(grid) for column in range(grid)]
        expected = torch.cat([one.mean((2, 3)), one.amax((2, 3)), *cells], 1)
        found = pooled(one, grid)
        torch.testing.assert_close(found, expected)
        assert found.shape[1] == 3 * width_of(grid)


def test_without_a_grid_there_are_no_cells() -> None:
    one = torch.rand(2, 3, 6, 6)
    assert torch.equal(pooled(one), pooled(one, 2)[:, :6])
    assert pooled(one).shape[1] == 3 * width_of(1)


def test_a_grid_tells_where_in_the_image_something_is() -> None:
    left = torch.zeros(1, 1, 4, 4)
    left[..., :2] = 1
    assert torch.equal(pooled(left), pooled(left.flip(3)))
    assert not torch.equal(pooled(left, 2), pooled(left.flip(3), 2))


def built(**settings: Any) -> Network:
    model = models.get("torchvision").model_validate({"architecture": "resnet18", **settings})
    return model.build(3, 32, 32, 4, 0)


@pytest.mark.parametrize("order", [1, -1], ids=["first layer first", "last layer first"])
def test_each_layer_has_its_own_grid(order: int) -> None:
    """However model.taps names them: a network gives its layers in the order of its own."""
    network = built(taps=["layer1", "layer2"][::order], grids=[3, 1][::order])
    head = network.module.get_submodule("head")
    assert head.in_features == 64 * (2 + 9) + 128 * 2
    features = network.module.get_submodule("features")
    assert features(torch.rand(2, 3, 32, 32)).shape == (2, head.in_features)


def test_the_order_of_the_layers_changes_nothing() -> None:
    there, back = (
        built(taps=taps, grids=grids)
        for taps, grids in ((["layer1", "layer2"], [3, 1]), (["layer2", "layer1"], [1, 3]))
    )
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(there.module.eval()(images), back.module.eval()(images))


def test_a_layer_that_is_named_twice_is_a_problem() -> None:
    found = models.get("small_cnn").model_validate({"taps": ["relu0", "relu0"]}).check()
    assert [problem.where for problem in found] == ["model.taps"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"taps": ["layer1"], "grids": [9]}, r"'layer1' has 8 x 8 .* grid of 9 x 9"),
        ({"taps": ["layer1", "layer2"], "grids": [8, 8]}, "'layer2' has 4 x 4 values"),
        ({"taps": ["layer2", "layer1"], "grids": [8, 8]}, "'layer2' has 4 x 4 values"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        built(**settings)


@pytest.mark.parametrize(
    "settings", [{"grids": [2]}, {"taps": ["relu0"], "grids": [2, 2]}, {"taps": [], "grids": [1]}]
)
def test_other_numbers_of_grids_than_layers_are_a_problem(settings: dict[str, Any]) -> None:
    found = models.get("small_cnn").model_validate(settings).check()
    assert [problem.where for problem in found] == ["model.grids"]


def test_the_head_on_grids_is_the_pooled_one_and_can_be_exported(tmp_path: Path) -> None:
    def run(sites: int, split: str, **given: Any) -> fs.Run:
        return fs.run(
            data={"name": "fashion-mnist-12k"},
            split={"name": split, "sites": sites, **given},
            model={"name": "small_cnn", "taps": ["relu0", "relu1"], "grids": [3, 2]},
            algorithm={"name": "ridge", "high": 20.0, "low": -20.0},
            rounds=1,
            out=tmp_path / f"{split}-{sites}",
            workers=1,
        )

    spread, pooled = run(5, "labels", labels=2), run(1, "iid")
    assert spread.summary["model_sha256"] == pooled.summary["model_sha256"]
    assert spread.summary["score"] > 0.75
    assert export(spread._saved, "onnx", tmp_path / "model.onnx").is_file()  # compares the answers
