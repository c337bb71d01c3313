"""Kept activations of frozen layers: no bit changes, and no image passes through them twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import federations
import pytest
from torch import Tensor, nn

from fedsight.client.bound_model import BoundModel
from fedsight.engines.in_process import InProcessEngine
from fedsight.engines.workers import WorkerEngine
from fedsight.models.features import TOGETHER
from fedsight.models.prefix import Prefix
from fedsight.program import kept
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

Make = Callable[..., Federation]
HEAD, LAST = ("head",), ("conv1", "norm1", "head")
RIDGE = {"algorithm": {"name": "ridge", "high": 4.0}, "rounds": {"rounds": 1}}


@pytest.fixture(autouse=True)
def nothing_kept_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_latest", {})


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images have passed through the frozen layers, batch by batch."""
    sizes: list[int] = []
    real = Prefix.activations

    def counted(self: Prefix, module: nn.Module, x: Tensor, together: int = TOGETHER) -> Tensor:
        if together == TOGETHER:
            sizes.append(len(x))
        return real(self, module, x, together)

    monkeypatch.setattr(Prefix, "activations", counted)
    return sizes


def frozen(make: Make, only: tuple[str, ...] = HEAD, **sections: Any) -> Federation:
    model = {"name": "small_cnn", "width": 4, "blocks": 2, "norm": "batch", "dropout": 0.2}
    return make(**{"model": model, "train": {"only": only, "epochs": 2}, **sections})


def learnt(of: Federation, speed: Speed, workers: bool = False, folder: Path | None = None) -> str:
    engine = (WorkerEngine if workers else InProcessEngine)(of, speed=speed, memory=folder)
    try:
        trained = federations.learn(of, engine)
    finally:
        engine.close()
    losses = [sums["loss"].total for sums in trained.sums]
    return federations.sha(trained.vector) + str(losses)


def layer(client: BoundModel) -> str:
    assert client.activations is not None
    return client.activations.prefix.at


@pytest.mark.parametrize("only", [HEAD, LAST])
def test_no_bit_depends_on_the_cache_or_the_engine(
    tiny_federation: Make, tmp_path: Path, only: tuple[str, ...]
) -> None:
    bare = Speed(device="cpu", cache=0, cache_disk=0)
    due = learnt(frozen(tiny_federation, only), bare)
    (tmp_path / "run").mkdir()
    for speed in (Speed(device="cpu"), Speed(device="cpu", cache=0)):
        folder = tmp_path / "run" / "memory"
        assert learnt(frozen(tiny_federation, only), speed, folder=folder) == due
    for speed in (Speed(device="cpu", workers=2), bare.model_copy(update={"workers": 3})):
        assert learnt(frozen(tiny_federation, only), speed, workers=True) == due
    assert list((tmp_path / "run").rglob("*")) == [], "the file has no name"


def test_every_image_passes_through_the_frozen_layers_once(
    tiny_federation: Make, passed: list[int]
) -> None:
    of = frozen(tiny_federation, rounds={"rounds": 3})
    learnt(of, Speed(device="cpu"))
    assert sum(passed) == 120 + 60, "rounds, epochs and figures of each round"
    assert passed.count(TOGETHER) == 120 // TOGETHER + 60 // TOGETHER, "few places stay empty"
    learnt(
        frozen(tiny_federation, rounds={"rounds": 3}), Speed(device="cpu", cache=0, cache_disk=0)
    )
    assert sum(passed) > 4 * 180, "without the cache, every time"
