"""One site moves the model by a number, with an update that is honest.

FedNova and FedExP average one number of each site besides its update: the length of its path and
its squared norm. It only had to be finite. A site that multiplied its length by -200 turned the
step of the whole federation round, and one that multiplied its square by 2,000 had the server go
far beyond the mean update; neither was noticed. Both follow from what the coordinator knows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import federations
import pytest
import torch
from torch import Tensor

from fedsight.client.step import Client
from fedsight.coordinator.protection import Protection
from fedsight.core.errors import SiteError
from fedsight.core.types import Order, Payload
from fedsight.engines.base import Accepted
from fedsight.engines.protected import aggregator_of
from fedsight.engines.remote import messages, replies
from fedsight.program.federation import Federation

LIAR = 1
CASES = [("fednova", "length", -200.0), ("fedexp", "square", 2000.0)]
HONEST: dict[str, dict[str, Any]] = {
    "plain": {},
    "running statistics": {"model": {"norm": "batch"}},
    "sites of many sizes": {
        "split": {"name": "dirichlet", "alpha": 0.5, "sites": 3},
        "train": {"batch": 7, "epochs": 2},
    },
    "a rate that changes within the round": {
        "train": {"schedule": "cosine", "schedule_by": "step", "warmup": 1, "epochs": 2}
    },
    "balanced sampling": {"train": {"sampling": "balanced"}},
    "an update in float16": {"codec": {"up": {"steps": ["float16"]}}},
    "DP-SGD": {
        "privacy": {"name": "example", "noise_multiplier": 1.0},
        "rounds": {"weighting": "uniform"},
    },
}


def order_of(of: Federation) -> Order:
    """The first one."""
    vector = of.initial[of.layout.travelling].clone()
    return Order(1, vector, of.program.shared(of.program.init(vector[of.layout.shared])))


def summed(of: Federation, factors: Mapping[str, float] | None = None) -> tuple[Any, list[str]]:
    """A round's sum as the coordinator makes it of what arrives, and why replies were refused.

    One site multiplies parts of its reply by `factors`.
    """
    client, order, total, refused = Client(of), order_of(of), aggregator_of(of, 3), []
    for number in range(of.population):
        reply = client.step(order, number, {})
        payload: Payload = dict(reply.payload)
        if number == LIAR:
            payload |= {part: payload[part] * factor for part, factor in (factors or {}).items()}
        with tempfile.TemporaryFile() as spool:
            spool.write(messages.pack(list(payload.values())))
            known = Accepted(number, of.name(number), reply.weight, 0.0)
            try:
                replies.add(of, total, spool, known, order)
            except SiteError as error:
                refused.append(error.cause)
    return total, refused


def moved(of: Federation, total: Any) -> Tensor:
    """How far the server's step takes the model."""
    shared = of.initial[of.layout.shared]
    mean, _, state = Protection(of).mean(total, of.program.init(shared.clone()), 1)
    return of.program.algorithm.step(shared.clone(), state, mean, 1)[0] - shared


@pytest.fixture(params=CASES, ids=[name for name, *_ in CASES])
def case(request: pytest.FixtureRequest) -> tuple[Federation, dict[str, float], Tensor]:
    """A federation, what the liar multiplies by what, and an honest step."""
    algorithm, part, factor = request.param
    of = federations.federation(algorithm={"name": algorithm})
    total, refused = summed(of)
    assert not refused
    return of, {part: factor}, moved(of, total)


def test_one_number_turns_the_step_round_or_stretches_it_where_it_is_believed(
    case: tuple[Federation, dict[str, float], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    of, lie, honest = case
    monkeypatch.setattr(replies, "_check_scalars", lambda *given: None)
    total, refused = summed(of, lie)
    assert not refused
    step = moved(of, total)
    assert step.norm() > 50 * honest.norm()
    cosine = torch.cosine_similarity(step, honest, dim=0)
    assert cosine == pytest.approx(-1 if "length" in lie else 1, abs=1e-3)


def test_ours_refuses_a_number_that_does_not_belong_to_the_update(
    case: tuple[Federation, dict[str, float], Tensor],
) -> None:
    of, lie, honest = case
    total, (why,) = summed(of, lie)
    (part,) = lie
    assert f"site '{of.name(LIAR)}' sent the {part} " in why
    assert "belongs to it" in why
    assert moved(of, total).norm() < 3 * honest.norm(), "that of the two others"


@pytest.mark.parametrize("sections", HONEST.values(), ids=HONEST)
@pytest.mark.parametrize("algorithm", ["fednova", "fedexp"])
def test_honest_numbers_are_taken(algorithm: str, sections: dict[str, Any]) -> None:
    of = federations.federation(algorithm={"name": algorithm}, **sections)
    total, refused = summed(of)
    assert refused == []
    assert total.count == of.population


def test_a_divisor_below_the_least_turns_the_step_round_where_it_is_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = federations.federation(algorithm={"name": "qfedavg"})
    honest = moved(of, summed(of)[0])
    total, (why,) = summed(of, {"divisor": -5.0})
    assert f"site '{of.name(LIAR)}' sent the divisor " in why
    assert "to which at least" in why
    assert torch.cosine_similarity(moved(of, total), honest, dim=0) > 0.5
    monkeypatch.setattr(replies, "_check_scalars", lambda *given: None)
    total, refused = summed(of, {"divisor": -5.0})
    assert not refused
    assert torch.cosine_similarity(moved(of, total), honest, dim=0) < -0.999


@pytest.mark.parametrize("q", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("sections", [how for how in HONEST if how != "DP-SGD"])
def test_honest_divisors_are_taken(sections: str, q: float) -> None:
    of = federations.federation(algorithm={"name": "qfedavg", "q": q}, **HONEST[sections])
    assert summed(of)[1] == []


def test_a_factor_below_the_least_turns_the_step_round_where_it_is_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = federations.federation(algorithm={"name": "afl"})
    total, refused = summed(of)
    assert refused == []
    honest = moved(of, total)
    for lie in (-5.0, 1e-6):
        total, (why,) = summed(of, {"factor": lie})
        assert f"site '{of.name(LIAR)}' sent the factor " in why
        assert torch.cosine_similarity(moved(of, total), honest, dim=0) > 0.5
    assert summed(of, {"factor": 0.0, "delta": 0.0})[1] == []  # a failure that must not show
    monkeypatch.setattr(replies, "_check_scalars", lambda *given: None)
    total, refused = summed(of, {"factor": -5.0})
    assert not refused
    assert torch.cosine_similarity(moved(of, total), honest, dim=0) < -0.999


LOSSY = {"codec": {"up": {"steps": ["float16"]}}}


@pytest.mark.parametrize(("algorithm", "part"), [("qfedavg", "divisor"), ("afl", "factor")])
def test_a_negative_number_beside_an_update_that_a_codec_changed_is_refused(
    algorithm: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least was asked for only where the update came as it is."""
    of = federations.federation(algorithm={"name": algorithm}, **LOSSY)
    total, refused = summed(of)
    assert not refused
    honest = moved(of, total)
    total, (why,) = summed(of, {part: -5.0})
    assert f"site '{of.name(LIAR)}' sent the {part} " in why
    assert torch.cosine_similarity(moved(of, total), honest, dim=0) > 0.5
    monkeypatch.setattr(type(of.program.algorithm), "least", lambda *given: {})
    total, refused = summed(of, {part: -5.0})
    assert not refused
    assert torch.cosine_similarity(moved(of, total), honest, dim=0) < -0.99


@pytest.mark.parametrize("sections", [{}, LOSSY], ids=["plain", "float16"])
def test_a_factor_above_the_most_leaves_the_others_no_share(
    sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are multiplied by the same, as if the site's loss had always been the largest."""
    of = federations.federation(algorithm={"name": "afl"}, **sections)
    lie = {"factor": 1e3, "delta": 1e3}
    if sections:
        lie.pop("delta")  # its bytes are no numbers
    total, (why,) = summed(of, lie)
    assert "to which at most 256 belongs" in why
    honest = moved(of, total)
    monkeypatch.setattr(replies, "_check_bounds", lambda *given: None)
    total, refused = summed(of, lie)
    assert not refused
    step = moved(of, total)
    alone = torch.cosine_similarity(step, honest, dim=0)
    assert alone < 0.99 if "delta" in lie else step.norm() < 0.01 * honest.norm()


def test_an_update_of_zeros_may_come_with_zeros() -> None:
    """A protected site whose training failed sends them."""
    of = federations.federation(algorithm={"name": "fednova"})
    assert summed(of, {"length": 0.0, "delta": 0.0})[1] == []
    assert len(summed(of, {"length": 0.0})[1]) == 1
    assert summed(of, {"delta": 0.0})[1] == []


def test_what_a_codec_changed_is_not_compared_but_what_follows_from_the_images_is() -> None:
    of = federations.federation(algorithm={"name": "fedexp"}, **LOSSY)
    assert summed(of, {"square": 2.0})[1] == []
    of = federations.federation(algorithm={"name": "fednova"}, **LOSSY)
    assert len(summed(of, {"length": 2.0})[1]) == 1
