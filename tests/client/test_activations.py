"""Kept activations of frozen layers: no bit changes, and no image passes through them twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import federations
import pytest
import torch
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
    monkeypatch.setattr(kept, "_latest", [])


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


def test_a_head_goes_on_from_the_features_of_a_closed_form_one(
    tiny_federation: Make, passed: list[int]
) -> None:
    learnt(frozen(tiny_federation, **RIDGE), Speed(device="cpu"))
    assert sum(passed) == 180
    learnt(frozen(tiny_federation), Speed(device="cpu"))
    assert sum(passed) == 180, "the same images, and the same frozen layers"


def test_a_start_in_closed_form_shares_what_the_run_after_it_keeps(
    tiny_federation: Make, passed: list[int]
) -> None:
    due = learnt(frozen(tiny_federation, **RIDGE), Speed(device="cpu"))
    of, ridge = frozen(tiny_federation, LAST), frozen(tiny_federation, **RIDGE).program
    kept.keep(of, Speed(device="cpu"))
    passed.clear()
    assert learnt(of.under(ridge), Speed(device="cpu"))[:64] == due[:64], "the head's bits"
    learnt(of, Speed(device="cpu"))
    assert sum(passed) == 180


def test_a_ridge_head_and_the_last_layers_share_an_earlier_place(
    tiny_federation: Make, passed: list[int]
) -> None:
    due = learnt(frozen(tiny_federation, **RIDGE), Speed(device="cpu"))
    before = sum(passed)
    early = Speed(device="cpu", cache_at="conv1")
    assert learnt(frozen(tiny_federation, **RIDGE), early)[:64] == due[:64], "the head's bits"
    assert sum(passed) == 2 * before
    learnt(frozen(tiny_federation, LAST), Speed(device="cpu"))
    assert sum(passed) == 2 * before


@pytest.mark.parametrize(
    "other",
    [
        {"data": {"train": 119}},
        {"data": {"broken": 3}},  # one image is not what it was
        {"seed": 1},  # other weights
    ],
)
def test_other_images_or_weights_never_meet_what_was_kept(
    tiny_federation: Make, passed: list[int], other: dict[str, Any]
) -> None:
    for sections, due in (({}, 2 * TOGETHER), ({}, 0), (other, 2 * TOGETHER)):
        passed.clear()
        of = frozen(tiny_federation, **sections)
        client = BoundModel(of)
        assert client.activations is not None
        client.activations.fill(of.client(0))
        assert sum(passed) == due


def test_weights_that_a_site_adopts_replace_those_it_began_with(tiny_federation: Make) -> None:
    of = frozen(tiny_federation)
    client, positions = BoundModel(of), torch.arange(4)
    before = client.activations
    assert before is not None
    client.adopt(client.initial[client.layout.kept] * 2)
    after = client.activations
    assert after is not None
    one, other = (known.batch(of.client(0), positions).x for known in (before, after))
    assert not torch.equal(one, other)
    client.load(client.initial[client.layout.travelling], {})
    client.model.eval()
    due = client.model(client.batch(of.client(0), positions).x)
    with client.inputs(of.client(0)) as read:
        torch.testing.assert_close(client.model(read(positions).x), due)


def test_images_are_not_computed_together_where_each_is_protected(tiny_federation: Make) -> None:
    private = {"name": "example", "noise_multiplier": 1.0, "clip": 1.0}
    of = frozen(tiny_federation, privacy=private, model={"name": "small_cnn", "width": 4})
    assert BoundModel(of).activations is None


def test_augmented_images_are_trained_on_anew_and_tested_from_the_cache(
    tiny_federation: Make, passed: list[int]
) -> None:
    train = {"only": HEAD, "epochs": 1, "augment": ["flip"]}
    learnt(frozen(tiny_federation, train=train), Speed(device="cpu"))
    assert sum(passed) == 60


def test_each_site_sees_shifted_images_in_its_own_way(
    tiny_federation: Make, passed: list[int]
) -> None:
    shift = {"kind": "contrast", "strength": 0.5}
    bare = Speed(device="cpu", cache=0, cache_disk=0)
    due = learnt(frozen(tiny_federation, shift=shift), bare)
    passed.clear()
    assert learnt(frozen(tiny_federation, shift=shift), Speed(device="cpu")) == due
    assert sum(passed) == 120 + 2 * 3 * 60, "training images once, those of the views each time"


def test_a_broken_image_of_another_site_does_not_fail_this_one(
    tiny_federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = frozen(tiny_federation)
    mine, real = set(of.client(0).indices.tolist()), of.dataset.train.images.read

    def read(indices: Tensor) -> Tensor:
        if not set(indices.tolist()) <= mine:
            raise ValueError("another site's image was read")
        return real(indices)

    monkeypatch.setattr(of.dataset.train.images, "read", read)
    client = BoundModel(of)
    assert client.activations is not None
    client.activations.fill(of.client(0))
    assert client.activations.batch(of.client(0), torch.arange(40)).x.shape == (40, 72)
