"""Random features before a head: what they are, and that a finished run can be built again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fedsight.core.errors import ModelError
from fedsight.models.base import Network, models
from fedsight.models.lift import Lift, lift

IMAGES = torch.rand(4, 1, 14, 14, generator=torch.Generator().manual_seed(0))


def built(seed: int = 0, **settings: Any) -> Network:
    small = {"width": 4, "blocks": 2, "lift": 6, **settings}
    return models.get("small_cnn").model_validate(small).build(1, 14, 14, 3, seed)


@pytest.mark.parametrize("kind", ["linear", "relu"])
def test_features_are_products_with_seeded_directions_of_mean_square_1(kind: Any) -> None:
    made = Lift(20, 7, kind, seed=3)
    x = torch.rand(5, 20)
    torch.testing.assert_close(made.directions.norm(dim=1), torch.ones(7))
    due = x @ made.directions.T
    due = due.relu() if kind == "relu" else due
    found = made(x)
    torch.testing.assert_close(found.square().mean(1), torch.ones(5))
    torch.testing.assert_close(
        found / found.norm(dim=1, keepdim=True), torch.nn.functional.normalize(due)
    )
    assert torch.equal(made(3 * x).sign(), found.sign())
    assert not bool(made(torch.zeros(1, 20)).any())
    assert torch.equal(Lift(20, 7, kind, seed=3).directions, made.directions)
    assert not torch.equal(Lift(20, 7, kind, seed=4).directions, made.directions)


def test_only_the_head_behind_them_learns() -> None:
    network = built()
    (frozen,) = network.frozen
    assert frozen.endswith(".lift.directions")
    assert {name.rpartition(".")[2] for name in network.head} == {"weight", "bias"}
    assert all(".linear." in name for name in network.head)
    assert network.module(IMAGES).shape == (4, 3)
    plain = models.get("small_cnn").model_validate({"width": 4, "blocks": 2}).build(1, 14, 14, 3, 0)
    own = network.module.state_dict()
    assert all(torch.equal(own[n], v) for n, v in plain.module.state_dict().items() if n in own)


@pytest.mark.parametrize("taps", [(), ("layer1",)])
def test_the_weights_of_a_run_are_those_of_the_whole_network(
    taps: tuple[str, ...], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"architecture": "resnet18", "taps": taps, "lift": 5}
    first = models.get("torchvision").model_validate(settings).build(3, 32, 32, 3, seed=0)
    save_file(first.module.state_dict(), path := tmp_path / "model.safetensors")
    weights = {"weights": path, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    again = models.get("torchvision").model_validate({**settings, **weights})
    state = again.build(3, 32, 32, 3, seed=1).module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.module.state_dict().items())


def test_a_head_of_another_kind_is_refused() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3))
    with pytest.raises(ModelError, match=r"model\.lift: the head of mine is not one linear layer"):
        lift(module, frozenset({"0.weight", "0.bias"}), 4, "linear", 0, "mine")
    problems = models.get("small_detector")(lift=4).check()
    assert [problem.where for problem in problems] == ["model.lift"]
