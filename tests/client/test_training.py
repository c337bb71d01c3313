"""Local training: which tensors learn, how fast, with which optimizer, on which device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import federations
import pytest
import torch
from torch import Tensor, nn

from fedsight.client.optimizers import LocalAdamW, LocalSGD, RateGroup, rate_groups
from fedsight.client.step import Client
from fedsight.core import devices
from fedsight.core.errors import ConfigError, EngineError
from fedsight.core.layout import Kind
from fedsight.core.types import Order
from fedsight.engines.base import collect
from fedsight.engines.in_process import InProcessEngine
from fedsight.program.config import parse
from fedsight.program.federation import Federation
from fedsight.program.program import Speed
from fedsight.program.train import Train


def moved(of: Federation) -> dict[str, bool]:
    """Which tensors one client step changes."""
    client = Client(of)
    client.step(Order(1, of.initial[of.layout.travelling]), 0, {})
    return {
        entry.name: not torch.equal(entry.view(client.vector), entry.view(of.initial))
        for entry in of.layout.entries
    }


def channels_last(shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
    """Random values; those of a convolution are channels-last, as the layout stores them."""
    drawn = torch.randn(shape, generator=draws)
    return drawn.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else drawn


def pairs() -> tuple[list[nn.Parameter], list[nn.Parameter], list[list[Tensor]]]:
    """Parameters, their copies, and the gradients of five steps."""
    draws = torch.Generator().manual_seed(3)
    shapes: tuple[tuple[int, ...], ...] = ((4, 3), (5,), (6, 3, 5, 4))
    ours = [nn.Parameter(channels_last(shape, draws)) for shape in shapes]
    theirs = [nn.Parameter(one.detach().clone()) for one in ours]
    steps = [[channels_last(shape, draws) for shape in shapes] for _ in range(5)]
    return ours, theirs, steps


@pytest.mark.parametrize(
    ("kind", "oracle", "train"),
    [
        (LocalSGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
        (LocalSGD, torch.optim.SGD, {}),
        (LocalAdamW, torch.optim.AdamW, {"weight_decay": 0.01}),
    ],
)
def test_steps_with_groups_are_those_of_pytorchs_own_optimizer(
    kind: Any, oracle: Any, train: Mapping[str, float]
) -> None:
    ours, theirs, steps = pairs()
    groups = [RateGroup((1,), 0.5), RateGroup((0, 2), 0.1)]
    optimizer = kind(ours, groups, Train(**train))
    words = {"weight_decay": 0.0, **train}
    other = oracle(
        [{"params": [theirs[1]], "lr": 0.5}, {"params": [theirs[0], theirs[2]], "lr": 0.1}], **words
    )
    for gradients in steps:
        optimizer.step([gradient.clone() for gradient in gradients])
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient
        other.step()
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("kind", "train"), [(LocalSGD, {"momentum": 0.9}), (LocalAdamW, {})])
def test_the_order_of_weights_in_memory_costs_no_copies_and_changes_no_bits(
    kind: Any, train: Mapping[str, float]
) -> None:
    last, _, steps = pairs()
    first = [
        nn.Parameter(one.detach().clone(memory_format=torch.contiguous_format)) for one in last
    ]
    made = [kind(one, [RateGroup((0, 1, 2), 0.1)], Train(**train)) for one in (last, first)]
    for gradients in steps:
        given = [gradient.clone() for gradient in gradients]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            made[0].step(given)
        assert "aten::clone" not in {event.name for event in seen.events()}
        made[1].step([gradient.contiguous() for gradient in gradients])
    for one, two in zip(last, first, strict=True):
        assert torch.equal(one, two)


def test_gradients_in_another_order_than_their_weights_are_put_in_theirs() -> None:
    ours, theirs, steps = pairs()
    made = [LocalSGD(one, [RateGroup((0, 1, 2), 0.1)], Train()) for one in (ours, theirs)]
    for gradients in steps:
        made[0].step([gradient.contiguous() for gradient in gradients])
        made[1].step(gradients)
    for one, two in zip(ours, theirs, strict=True):
        assert torch.equal(one, two)


def test_a_group_by_name_learns_at_its_own_rate_and_a_schedule_moves_all() -> None:
    of = federations.federation(train={"lr": 0.1, "groups": [{"params": ["head"], "lr": 0.5}]})
    names = [name for name, _ in of.network.module.named_parameters()]
    head, rest = rate_groups(names, of.program.train, 0.05, of.network)
    assert {names[at] for at in head.positions} == set(of.network.head)
    assert head.lr == pytest.approx(0.25)
    assert rest.lr == 0.05
    assert sorted([*head.positions, *rest.positions]) == list(range(len(names)))


def test_a_group_that_learns_nothing_to_speak_of_changes_the_run() -> None:
    plain = federations.learn(federations.federation())
    slow = federations.federation(train={"groups": [{"params": ["conv*"], "lr": 1e-12}]})
    found = federations.learn(slow)
    convolution = next(e for e in slow.layout.entries if e.name == "conv0.weight")
    start, end = (convolution.view(vector) for vector in (slow.initial, found.vector))
    assert torch.allclose(start, end, atol=1e-9)
    assert not torch.allclose(start, convolution.view(plain.vector), atol=1e-4)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_only_what_is_named_learns_and_travels(norm: str) -> None:
    of = federations.federation(model={"norm": norm}, train={"only": ["head", "norm1"]})
    changed = {name for name, has in moved(of).items() if has}
    learns = {name for name in moved(of) if name.startswith(("head.", "norm1."))}
    assert changed == learns
    sent = {e.name for e in of.layout.entries if e.stop <= of.layout.travelling.stop}
    assert sent == learns
    assert of.parts["delta"].values == of.layout.travelling.stop < of.layout.size
    diary = federations.Diary()
    trained = federations.learn(of, diary=diary)
    assert diary.lines[0]["bytes_up"] == 3 * 4 * of.layout.travelling.stop
    assert torch.equal(trained.vector[of.layout.frozen], of.initial[of.layout.frozen])
    assert not torch.equal(trained.vector[of.layout.shared], of.initial[of.layout.shared])


def test_a_frozen_batch_norm_normalises_by_its_statistics_in_training_too() -> None:
    of = federations.federation(model={"norm": "batch"}, train={"only": ["head"]})
    client = Client(of)
    client.step(Order(1, of.initial[of.layout.travelling]), 0, {})
    norms = [part for part in client.model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    assert not any(part.training for part in norms)
    assert client.model.training


@pytest.mark.parametrize("algorithm", ["scaffold", "fedadam", "fedprox"])
def test_algorithms_work_on_what_learns_alone(algorithm: str) -> None:
    of = federations.federation(algorithm={"name": algorithm}, train={"only": ["head"]})
    trained = federations.learn(of)
    assert torch.equal(trained.vector[of.layout.frozen], of.initial[of.layout.frozen])
    for value in trained.checkpoint.state.values():
        assert len(value) == of.layout.shared.stop


@pytest.mark.parametrize(
    ("train", "where", "cure"),
    [
        ({"only": ["haed"]}, "train.only", "did you mean 'head'?"),
        ({"only": ["head", "block*"]}, "train.only", "known"),
        ({"groups": [{"params": ["nothing"], "lr": 1.0}]}, "train.groups.0", "known"),
    ],
)
def test_a_pattern_that_names_nothing_is_a_problem_with_its_cure(
    train: dict[str, Any], where: str, cure: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        federations.federation(train=train)
    (problem,) = caught.value.problems
    assert problem.where == where
    assert cure in problem.cure


def test_a_network_of_which_nothing_learns_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        federations.federation(model={"norm": "batch"}, train={"only": ["norm0.running_mean"]})
    assert "nothing would be trained" in caught.value.problems[0].cause


def test_momentum_is_not_adamws() -> None:
    (problem,) = federations.program(train={"optimiser": "adamw", "momentum": 0.9}).check()
    assert problem.where == "train.momentum"


def test_adamw_trains_and_engines_agree() -> None:
    of = federations.federation(train={"optimiser": "adamw", "lr": 0.003})
    plain = federations.learn(federations.federation(train={"lr": 0.003}))
    one, two = federations.learn(of), federations.learn(of)
    assert (
        federations.sha(one.vector) == federations.sha(two.vector) != federations.sha(plain.vector)
    )


def test_a_device_that_is_not_there_is_named_with_those_that_are() -> None:
    for name in ("cuda:97", "mps"):
        with pytest.raises(EngineError, match=f"no device '{name}'") as caught:
            devices.find_device(name)
        assert "cpu" in caught.value.cure
    with pytest.raises(EngineError, match="'tpu' is not a device"):
        devices.find_device("tpu")
    (problem,) = Speed(device="cuda:97").check()
    assert problem.where == "speed.device"
    assert "choose one of: auto, cpu" in problem.cure


def test_auto_is_an_accelerator_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.find_device("auto") == torch.device("cuda:0")
    assert devices.find_device("cuda:1") == torch.device("cuda:1")
    assert Speed(device="cuda").processes == 2  # one for each card
    assert Speed(device="cuda:1").processes == 1
    each = Speed(device="cuda", workers=5).each(5)
    assert [one.device for one in each] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]
    assert {one.device for one in Speed(device="cuda:1").each(3)} == {"cuda:1"}
    assert {one.device for one in Speed(device="cpu").each(3)} == {"cpu"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices.find_device("auto").type in ("cpu", "mps")


@pytest.mark.parametrize("resident", [0, 1, None])
def test_images_that_stay_on_the_device_change_no_bit(resident: int | None) -> None:
    of = federations.federation()
    engine = InProcessEngine(of, speed=Speed(device="cpu", resident=resident))
    kept = federations.sha(federations.learn(of, engine).vector)
    assert len(engine._worker.clients.of(None)._sites) == (0 if resident == 0 else 3)
    engine.close()
    assert kept == federations.sha(federations.learn(federations.federation()).vector)


def test_a_gpu_repeats_itself_and_computes_float32_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = (conv.fp32_precision, matmul.fp32_precision)
    try:
        devices.prepare(torch.device("cpu"), precise=True)
        assert not torch.are_deterministic_algorithms_enabled()
        devices.prepare(torch.device("cuda", 0), precise=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "ieee")
        devices.prepare(torch.device("cuda", 0), precise=False)
        assert (conv.fp32_precision, matmul.fp32_precision) == ("tf32", "tf32")
    finally:
        torch.use_deterministic_algorithms(False)
        conv.fp32_precision, matmul.fp32_precision = before
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    (problem,) = Speed(device="cpu", precision="tf32").check()
    assert problem.where == "speed.precision"


def test_the_device_is_no_part_of_the_fingerprint() -> None:
    table = {"data": {"name": "fashion-mnist-12k"}}
    one, _ = parse(table, None)  # type: ignore[arg-type]
    other, speed = parse({**table, "speed": {"device": "cpu"}}, None)  # type: ignore[arg-type]
    assert one.fingerprint == other.fingerprint
    assert speed.device == "cpu"


def test_what_does_not_travel_is_adopted_once() -> None:
    """A site that has no file of weights is given the frozen and the personal slice."""
    of = federations.federation(algorithm={"name": "fedbn"}, train={"only": ["head", "norm1"]})
    assert of.layout.length(Kind.PERSONAL)
    assert of.layout.length(Kind.FROZEN)
    given, other = torch.full_like(of.initial, 0.25), replace(of)
    client = Client(other)
    client.adopt(given[of.layout.kept])
    client.load(of.initial[of.layout.travelling], {})
    assert torch.equal(client.vector[of.layout.kept], given[of.layout.kept])


def test_replies_are_handed_back_as_they_come() -> None:
    of = federations.federation()
    engine = InProcessEngine(of)
    try:
        work = engine.submit(Order(1, of.initial[of.layout.travelling]), [0, 1, 2])
        arrivals = iter(work)
        first = next(arrivals)
        assert [one.site for one in work.outcome.accepted] == [first.site] == ["site-00"]
        assert len(list(arrivals)) == 2
        assert work.outcome.total.count == 3
        again = collect(engine, Order(1, of.initial[of.layout.travelling]), [2, 1, 0])
        assert [one.client for one in again.accepted] == [0, 1, 2]
    finally:
        engine.close()


def test_clients_of_one_federation_do_not_train_each_others_weights() -> None:
    """They share the process's network, whoever used it last."""
    of = federations.federation()
    order = Order(1, of.initial[of.layout.travelling])
    alone = Client(federations.federation()).step(order, 0, {}).payload["delta"]
    one, other = Client(of), Client(of)
    deltas = [client.step(order, 0, {}).payload["delta"].clone() for client in (one, other, one)]
    assert alone.any()
    assert all(torch.equal(delta, alone) for delta in deltas)
