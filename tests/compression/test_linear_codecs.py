"""Linear codecs under secure aggregation: what is decoded of a sum is that of the sites."""

from __future__ import annotations

from typing import Any

import federations
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.client.release import UNSENT
from fedsight.client.step import Client
from fedsight.compression.base import codecs
from fedsight.compression.pipeline import Pipeline
from fedsight.compression.settings import Codecs
from fedsight.core.types import Order
from fedsight.engines.workers import WorkerEngine
from fedsight.program import coding
from fedsight.program.program import Speed

LINEAR: dict[str, list[Any]] = {
    "random-k": [{"name": "random-k", "share": 0.3}],
    "unscaled": [{"name": "random-k", "share": 0.3, "scaled": False}],
    "rotate": [{"name": "rotate", "block": 64}],
    "both": [{"name": "rotate", "block": 64}, {"name": "random-k", "share": 0.5}],
}


def pipeline(steps: list[Any]) -> Pipeline:
    found = Codecs.model_validate({"up": {"steps": steps}}, strict=False).up.pipeline
    assert found is not None
    return found


def drawn(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", LINEAR.values(), ids=LINEAR)
@given(count=st.integers(1, 200), key=st.integers(0, 2**63 - 1))
def test_what_is_left_of_a_sum_is_the_sum_of_what_is_left(
    steps: list[Any], count: int, key: int
) -> None:
    codec, one, other = pipeline(steps), drawn(count, 1), drawn(count, 2)
    left = codec.project(one, key) + codec.project(other, key)
    assert left.shape == (codec.left(count),)
    assert torch.allclose(codec.project(one + other, key), left, atol=1e-5)
    apart = codec.expand(codec.project(one, key), count, key) + codec.expand(
        codec.project(other, key), count, key
    )
    assert torch.allclose(codec.expand(left, count, key), apart, atol=1e-5)


def test_only_steps_that_are_linear_say_so() -> None:
    found = {name for name in codecs.names() if pipeline([name]).linear}
    assert found == {"rotate", "random-k"}
    assert not pipeline(["rotate", {"name": "quantise", "bits": 4}]).linear


def secured(steps: list[Any], name: str = "quantised", **sections: Any) -> Any:
    secure = {"name": name, **sections.pop("secure", {})}
    return federations.federation(codec={"up": {"steps": steps}}, secure=secure, **sections)


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_a_rotation_changes_nothing_but_the_rounding(algorithm: str) -> None:
    """Masked or not, in whichever process: the same bits."""
    chosen = {"algorithm": {"name": algorithm}}
    plain = federations.learn(secured([], **chosen))
    turned = secured(LINEAR["rotate"], **chosen)
    found = federations.learn(turned)
    assert torch.allclose(found.vector, plain.vector, atol=1e-4)
    masked = secured(LINEAR["rotate"], "secagg", **chosen)
    engine = WorkerEngine(masked, Speed(workers=2))
    try:
        other = federations.learn(masked, engine)
    finally:
        engine.close()
    assert federations.sha(other.vector) == federations.sha(found.vector)


def test_a_few_bits_of_a_share_are_what_is_counted() -> None:
    of = secured(LINEAR["both"], secure={"bits": 4, "clip": 0.5})
    counts = []
    for one in (secured([]), of):
        diary = federations.Diary()
        federations.learn(one, diary=diary)
        counts.append(diary.lines[-1]["bytes_up"])
    left = of.parts["delta"].values
    assert left == pipeline(LINEAR["both"]).left(of.layout.travelling.stop)
    assert counts[1] == 3 * -(-left * 6 // 8)  # 45, the most that three sites add up to, is 6 bits
    assert counts[0] > 3.5 * counts[1]


def test_what_a_choice_of_values_leaves_out_is_sent_later() -> None:
    up = {"up": {"steps": LINEAR["unscaled"], "feedback": True}}
    of = federations.federation(codec=up, secure={"name": "quantised"})
    linear, size = coding.masked(of.program), of.layout.travelling.stop
    assert linear is not None
    client, plain, memory = Client(of), Client(federations.federation()), {}
    sent, due = torch.zeros(2, size, dtype=torch.float64)
    for round in (1, 2, 3):
        order = Order(round, of.initial[of.layout.travelling])
        reply = client.step(order, 0, memory)
        memory, key = reply.memory, coding.round_key(of.program, round, "delta")
        sent += linear.expand(reply.payload["delta"], size, key)
        due += plain.step(order, 0, {}).payload["delta"]
    assert torch.allclose(sent + memory[UNSENT + "delta"], due, atol=1e-6)


def test_a_blank_reply_has_the_length_of_any_other() -> None:
    of = secured(LINEAR["both"])
    client, order = Client(of), Order(1, of.initial[of.layout.travelling])
    trained, blank = client.step(order, 0, {}), client.blank(order, 0, {})
    assert blank.payload["delta"].shape == trained.payload["delta"].shape
    assert not blank.payload["delta"].any()


@pytest.mark.parametrize(
    ("steps", "where"),
    [(["top-k"], "codec.up.steps"), (["rotate", {"name": "quantise"}], "codec.up.steps")],
)
def test_what_is_not_linear_is_refused_under_masks(steps: list[Any], where: str) -> None:
    program = federations.program(codec={"up": {"steps": steps}}, secure={"name": "secagg"})
    assert where in [problem.where for problem in program.check()]


def test_a_width_that_overflows_the_modulus_is_refused() -> None:
    program = federations.program(
        codec={"up": {"steps": ["rotate"]}}, secure={"name": "secagg", "bits": 31}
    )
    (problem,) = [one for one in program.check() if one.where == "secure.bits"]
    assert "does not fit 32 bits" in problem.cause
