"""FedEx-LoRA: after a round the model is the weighted mean of the sites' models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import federations
import pytest
import torch
from torch import Tensor

from fedsight.aggregation.mean import Mean
from fedsight.client.step import Client
from fedsight.coordinator.closing import closed
from fedsight.coordinator.session import Session
from fedsight.core.errors import SiteError
from fedsight.core.layout import Kind, Layout
from fedsight.core.types import Order, Reply
from fedsight.engines.in_process import InProcessEngine
from fedsight.evaluation.delivery.deliver import with_own
from fedsight.models.low_rank import PLACE, merged
from fedsight.program.federation import Federation

BASE, DOWN, UP = (f".{PLACE}.{end}" for end in ("original", "0.A", "0.B"))
FEDEX: dict[str, Any] = {
    "algorithm": {"name": "fedex-lora"},
    "adapter": {"name": "lora", "rank": 2},
    "split": {"name": "quantity", "sites": 3, "min_samples": 8},
    "train": {"epochs": 3, "lr": 0.2},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "convolutions": {},
    "convolutions, updates in 8 bits": {
        "codec": {"up": {"steps": [{"name": "quantise", "block": 512}, "zstd"]}}
    },
    "linear layers": {"model": {"name": "mlp"}},
    "a pretrained kind of network": {
        "model": {"name": "timm", "architecture": "test_efficientnet"},
        "adapter": {"name": "lora", "rank": 1, "alpha": 3.0},
    },
}
CLOSE = {"atol": 2e-7, "rtol": 1e-5}


def fedex(**sections: Any) -> Federation:
    keys = FEDEX.keys() | sections.keys()
    return federations.federation(
        **{key: {**FEDEX.get(key, {}), **sections.get(key, {})} for key in keys}
    )


def effective(of: Federation, travelling: Tensor) -> dict[str, Tensor]:
    """The tensors that the network computes with: of an adapted layer, the merged weight."""
    vector = torch.cat([travelling, of.initial[of.layout.kept]])
    return merged(with_own(of, vector, None))


def received(of: Federation, reply: Reply) -> Tensor:
    """The update of a reply, decoded, without what is derived of it."""
    return of.parts["delta"].decode(reply.payload["delta"])[of.layout.sent]


def exact_mean(of: Federation, start: Tensor, round: int) -> dict[str, Tensor]:
    """The mean of the models that the sites train from `start`, weighted by their images."""
    client, layout = Client(of), of.layout
    total = float(sum(of.size(site) for site in range(of.population)))
    found: dict[str, Tensor] = {}
    for site in range(of.population):
        reply = client.step(Order(round, start), site, {})
        model = start.clone()
        model[layout.sent] += received(of, reply)
        for name, value in effective(of, model).items():
            share = of.size(site) / total * value.double()
            found[name] = found.get(name, 0) + share
    return {name: value.float() for name, value in found.items()}


def weights(tensors: Mapping[str, Tensor], of: Federation) -> dict[str, Tensor]:
    """Of these the weights of adapted layers."""
    places = {e.name.removesuffix(UP) for e in of.layout.entries if e.name.endswith(UP)}
    return {name: tensors[name] for name in tensors if name.removesuffix(".weight") in places}


@pytest.mark.parametrize("network", NETWORKS)
def test_in_each_round_the_model_is_the_weighted_mean_of_the_sites_models(network: str) -> None:
    of, diary = fedex(**NETWORKS[network]), federations.Diary()
    federations.learn(of, diary=diary)
    start = of.initial[of.layout.travelling]
    for round, checkpoint in enumerate(diary.checkpoints, start=1):
        due, found = exact_mean(of, start, round), effective(of, checkpoint.vector)
        assert found.keys() == due.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, due[name], **CLOSE)
        start = checkpoint.vector
    assert len(diary.checkpoints) == 2


@pytest.mark.parametrize("network", NETWORKS)
def test_the_mean_of_both_factors_alone_is_not(network: str) -> None:
    plain = fedex(**{**NETWORKS[network], "algorithm": {"name": "fedavg"}})
    start = plain.initial[plain.layout.travelling]
    due = weights(exact_mean(plain, start, 1), plain)
    trained = federations.Diary()
    federations.learn(plain, diary=trained)
    found = weights(effective(plain, trained.checkpoints[0].vector), plain)
    assert any((found[name] - due[name]).abs().max() > 100 * CLOSE["atol"] for name in due)


def test_what_is_added_to_the_frozen_weights_is_the_residual_of_the_paper() -> None:
    """mean(B A) - mean(B) mean(A), of the factors themselves, times alpha / rank."""
    of, diary = fedex(adapter={"alpha": 6.0}), federations.Diary()
    federations.learn(of, diary=diary)
    before, after = (one.vector for one in diary.checkpoints)
    layout, client = of.layout, Client(of)
    entries = {entry.name: entry for entry in layout.entries}
    sites, shares = list[Tensor](), list[float]()
    for site in range(of.population):
        model = before.clone()
        model[layout.sent] += received(of, client.step(Order(2, before), site, {}))
        sites.append(model.double())
        shares.append(of.size(site))
    shares = [share / sum(shares) for share in shares]
    places = [name.removesuffix(BASE) for name in entries if name.endswith(BASE)]
    assert len(places) == 2
    for place in places:
        downs = [entries[place + DOWN].view(one) for one in sites]
        ups = [entries[place + UP].view(one) for one in sites]
        rows = list(zip(shares, ups, downs, strict=True))
        exact = sum(share * (up @ down) for share, up, down in rows)
        up, down = (sum(row[0] * row[end] for row in rows) for end in (1, 2))
        residual = 3.0 * (exact - up @ down)
        base = entries[place + BASE]
        moved = (after - before)[base.start : base.stop]  # in the order of the memory
        assert residual.abs().max() > 1e-5
        torch.testing.assert_close(moved.double(), residual.flatten(), atol=1e-8, rtol=1e-3)


def test_sites_neither_train_nor_send_the_weights_that_move() -> None:
    of, diary = fedex(), federations.Diary()
    layout = of.layout
    moved = {e.name for e in layout.entries if e.kind == Kind.MOVED}
    assert moved == {f"conv{block}{BASE}" for block in (0, 1)}
    client, start = Client(of), of.initial[layout.travelling]
    reply = client.step(Order(1, start), 0, {})
    assert len(reply.payload["delta"]) == layout.sent.stop == layout.moved.start
    assert torch.equal(client.vector[layout.moved], start[layout.moved])
    after = federations.learn(of, diary=diary).vector
    assert not torch.equal(after[layout.moved], start[layout.moved])
    assert torch.equal(after[layout.frozen], of.initial[layout.frozen])


def test_bytes_are_those_of_the_factors_up_and_of_the_moved_weights_too_down() -> None:
    of, diary = fedex(), federations.Diary()
    layout = of.layout
    federations.learn(of, diary=diary)
    first, second = diary.lines
    assert first["bytes_up"] == second["bytes_up"] == 3 * 4 * layout.sent.stop
    assert first["bytes_down"] == 0  # sites build the first model themselves
    assert second["bytes_down"] == 3 * 4 * (layout.sent.stop + layout.length(Kind.MOVED))


def test_what_is_derived_at_the_coordinator_is_nothing_that_a_site_left_out() -> None:
    of = fedex(codec={"up": {"steps": ["float16"], "feedback": True}})
    client, start = Client(of), of.initial[of.layout.travelling]
    kept = client.step(Order(1, start), 0, {}).memory["unsent delta"]
    assert len(kept) == of.layout.sent.stop
    assert 0 < float(kept.abs().max()) < 1e-3


def test_a_finish_solves_for_the_head_on_the_weights_that_moved() -> None:
    """The sites are sent them in its round too."""
    of = fedex(finish={"name": "ridge"})
    trained, session = federations.learn(of), Session(of)
    other = trained.vector.clone()
    other[of.layout.moved] += torch.randn(other[of.layout.moved].shape)
    ends = [
        closed(session, InProcessEngine, federations.overall(of), replace(trained, vector=vector))
        for vector in (trained.vector, other)
    ]
    head = next(entry for entry in of.layout.entries if entry.name == "head.weight")
    one, another = (head.view(end.vector) for end in ends)
    assert (one - another).abs().max() > 0.01
    assert torch.equal(ends[1].vector[of.layout.moved], other[of.layout.moved])


@pytest.mark.parametrize(
    ("algorithm", "kind"), [("fedex-lora", Kind.MOVED), ("fedavg", Kind.FROZEN)]
)
def test_the_round_of_a_finish_sends_what_training_has_changed(algorithm: str, kind: Kind) -> None:
    of = fedex(algorithm={"name": algorithm}, finish={"name": "ridge"})
    closing = of.program.closing()
    assert closing is not None
    kinds = {entry.name: entry.kind for entry in of.under(closing).layout.entries}
    assert kinds[f"conv0{BASE}"] == kind
    assert kinds[f"conv0{DOWN}"] == kinds[f"conv0{UP}"] == Kind.BUFFER


def test_where_one_factor_learns_there_is_nothing_to_add() -> None:
    of = fedex(train={"only": ["*.B", "head"]})
    assert of.derived is None
    assert not of.layout.length(Kind.MOVED)
    plain = fedex(train={"only": ["*.B", "head"]}, algorithm={"name": "fedavg"})
    assert federations.sha(federations.learn(of).vector) == federations.sha(
        federations.learn(plain).vector
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda delta: delta[:-1], "values, not"),
        (lambda delta: torch.cat([delta, torch.ones(fedex().derived.values)]), "values, not"),
        (lambda delta: delta.double(), "torch.float64"),
        (lambda delta: delta * torch.nan, "not finite"),
        (lambda delta: delta + 1e30, "not finite|64-bit range"),
        (lambda delta: delta + 1e6, "64-bit range"),  # of the product alone
    ],
)
def test_an_update_from_which_nothing_can_be_derived_is_refused_by_name(
    spoil: Any, message: str
) -> None:
    of = fedex()
    total = Mean().aggregator(of.parts, 2)
    update = torch.full((of.layout.sent.stop,), 0.01)
    total.add({"delta": update}, 1, "good")
    before = {part: value.clone() for part, value in total.tensors.items()}
    with pytest.raises(SiteError, match=f"'bad'.*({message})"):
        total.add({"delta": spoil(update)}, 1, "bad")
    assert all(torch.equal(before[part], value) for part, value in total.tensors.items())
    assert len(total.mean()["delta"]) == of.layout.travelling.stop


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no adapter": ({"adapter": {"name": "none"}}, "algorithm.name", "set adapter.name = 'lora'"),
    "one factor": ({"adapter": {"name": "ffa-lora"}}, "algorithm.name", "'ffa-lora' does not"),
    "masks": ({"secure": {"name": "secagg"}}, "algorithm.name", "which secure aggregation hides"),
    "median": ({"aggregation": {"name": "median"}}, "aggregation.name", "this rule forms none"),
    "local noise": (
        {
            "privacy": {"name": "local", "noise_multiplier": 1.0},
            "rounds": {"weighting": "uniform"},
        },
        "algorithm.name",
        "multiplied by that in the other",
    ),
    "rough codec": (
        {"codec": {"up": {"steps": [{"name": "eden", "bits": 1}]}}},
        "codec.up.steps.0",
        "larger than the product",
    ),
    "differences": ({"codec": {"down": {"steps": ["float16"]}}}, "codec.down.steps", "decoded"),
    "narrower networks": (
        {"model": {"width": 8, "groups": [{"sites": ["site-01"], "width": 4}]}},
        "algorithm.name",
        "does not treat each value",
    ),
    "buffered rounds": (
        {"rounds": {"mode": "buffered"}, "timing": {"delay_seconds": 1.0}},
        "algorithm.name",
        "products of single updates",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_be_exact_is_refused_with_its_cure(case: str) -> None:
    sections, where, words = REFUSED[case]
    usual = {key: value for key, value in FEDEX.items() if key != "adapter"}
    given = {**usual, "adapter": {"name": "lora"}, **sections}
    problems = {problem.where: problem for problem in federations.program(**given).check()}
    problem = problems.pop(where)
    assert words in f"{problem.cause}; {problem.cure}"
    assert problem.cure
    assert problems.keys() <= {"adapter.name"}  # which narrower networks do not go with either
    assert not federations.program(**FEDEX).check()


def test_a_weight_moves_only_beside_two_factors_that_all_sites_share() -> None:
    of = fedex()
    kinds = {f"conv0{DOWN}": Kind.PERSONAL}
    layout: Layout = of.layout.rekind(
        lambda name, kind: kinds.get(name, Kind.FROZEN if kind == Kind.MOVED else kind)
    )
    assert of.program.algorithm.moves(layout) == {f"conv1{BASE}"}
