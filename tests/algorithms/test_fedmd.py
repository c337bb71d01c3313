"""FedMD: three networks that have nothing in common learn from their scores of public images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import federations
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.client.memory import MemoryStore
from fedsight.client.step import Client
from fedsight.core.threads import one_thread
from fedsight.core.types import Batch, Order
from fedsight.engines.in_process import InProcessEngine
from fedsight.program.federation import Federation

PUBLIC = 30
THREE: dict[str, Any] = {
    "model": {
        "width": 8,
        "groups": [
            {"sites": ["site-01"], "name": "mlp"},
            {"sites": ["site-0[23]"], "blocks": 1, "width": 4},
        ],
    },
    "algorithm": {"name": "fedmd", "digest": 2},
    "public": {"images": PUBLIC},
    "split": {"name": "dirichlet", "alpha": 0.3, "sites": 4, "min_samples": 10},
    "train": {"epochs": 3, "batch": 200, "lr": 0.1},  # a step has all images there are
    "rounds": {"rounds": 4, "cohort": 2},
}


def opened(**sections: Any) -> Federation:
    return federations.federation(**{**THREE, **sections})


class Site:
    """A site's network and images, in plain PyTorch."""

    def __init__(self, of: Federation, number: int, public: Tensor) -> None:
        data, model = of.client(number), of.member(number).model
        self.batch, self.public = of.batch(data, torch.arange(len(data))), public
        self.module = model.build(1, 14, 14, 10, of.program.model_seed).module

    def train(self, consensus: Tensor | None, lr: float) -> Tensor:
        """Digest and revisit; the logits of the public images after that."""
        optimizer = torch.optim.SGD(self.module.parameters(), lr=lr)

        def step(loss: Tensor) -> None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        for _ in range(0 if consensus is None else 2):
            step((self.module(self.public) - consensus).abs().mean())
        for _ in range(3):
            step(F.cross_entropy(self.module(self.batch.x), self.batch.y))
        with torch.no_grad():
            scores: Tensor = self.module(self.public)
        return scores


def oracle(of: Federation, cohorts: Sequence[Sequence[str]]) -> tuple[Tensor, dict[str, Site]]:
    """Algorithm 1 of the paper, without labels on public images."""
    kept_out = of.program.public.drawn(of.dataset.train)
    public = of.dataset.preprocess.normalise(of.dataset.train.images.read(torch.tensor(kept_out)))
    sites = {of.partition.name(number): Site(of, number, public) for number in range(4)}
    consensus = None
    for cohort in cohorts:
        consensus = torch.stack([sites[name].train(consensus, lr=0.1) for name in cohort]).mean(0)
    assert consensus is not None
    return consensus, sites


def test_it_follows_its_paper_with_two_of_four_unequal_sites_in_a_round(tmp_path: Path) -> None:
    # In two rounds, since an absolute difference near 0 has either sign, which rounding decides.
    of, diary = opened(rounds={"rounds": 2, "cohort": 2}), federations.Diary()
    assert len({of.size(site) for site in range(4)}) > 1
    engine = InProcessEngine(of, tmp_path)
    with one_thread():
        vector = federations.learn(of, engine, diary).travelling
        cohorts = [line["sites"] for line in diary.lines]
        consensus, sites = oracle(of, cohorts)
    engine.close()
    trained = {name for cohort in cohorts for name in cohort}
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    torch.testing.assert_close(vector.view(PUBLIC, 10), consensus, atol=1e-4, rtol=0)
    store = MemoryStore(tmp_path)
    for number in range(4):
        name, member = of.partition.name(number), of.member(number)
        if name in trained:
            kept = member.initial.clone()
            kept[member.layout.personal] = store.load(name, 10**9)["personal"]
            state = member.layout.state_dict(kept)
            for key, value in sites[name].module.state_dict().items():
                torch.testing.assert_close(state[key], value, atol=1e-4, rtol=0)


def test_without_a_digest_each_site_learns_alone(tmp_path: Path) -> None:
    """One architecture, several rounds: the bits of a run of that site's images alone."""
    sections: dict[str, Any] = {"model": {"width": 4}, "algorithm": {"name": "fedmd", "digest": 0}}
    of = opened(**sections, rounds={"rounds": 3})
    engine = InProcessEngine(of, tmp_path)
    federations.learn(of, engine)
    engine.close()
    alone = federations.learn(of.alone(1)).vector
    kept = MemoryStore(tmp_path).load(of.partition.name(1), 10**9)["personal"]
    torch.testing.assert_close(kept, alone, atol=1e-6, rtol=0)


def test_nothing_of_a_network_is_in_what_leaves_its_site() -> None:
    """But its scores of public images: whole numbers of the network after training."""
    of = opened()
    client, begun = Client(of.member(1)), torch.randn(PUBLIC * 10)
    learnt = client.step(Order(1, begun), 1, {})
    assert {name: part.dtype for name, part in learnt.payload.items()} == {
        "scores": torch.int64,
        "sites": torch.int64,
    }
    assert learnt.payload["scores"].shape == (PUBLIC * 10,)
    assert learnt.memory.keys() == {"personal"}
    client.load(begun, learnt.memory)
    client.model.eval()
    with torch.no_grad():
        seen = client.model(client.batch(of.public, torch.arange(PUBLIC)).x)
    expected = (seen.double() * 65536).round().long().reshape(-1)
    assert torch.equal(learnt.payload["scores"], expected)
    kept = learnt.memory["personal"].numpy().tobytes()
    sent = b"".join(part.numpy().tobytes() for part in learnt.payload.values())
    pieces = (kept[at : at + 8] for at in range(0, len(kept), 8))
    assert not any(one in sent for one in pieces if one.strip(b"\0"))


def test_labels_of_public_images_are_nowhere() -> None:
    """Whatever the source says of them, the bits are the same."""
    of = opened(rounds={"rounds": 2})
    train, places = of.dataset.train, of.program.public.drawn(of.dataset.train)
    other = train.labels.copy()
    other[places] = (other[places] + 3) % 10
    assert not of.dataset.public.labels.any()
    assert of.dataset.public.targets is None
    changed = replace(of, dataset=replace(of.dataset, train=replace(train, labels=other)))
    assert federations.sha(federations.learn(changed).travelling) == federations.sha(
        federations.learn(of).travelling
    )
    held = {place for site in range(4) for place in of.partition.indices(site).tolist()}
    assert not held & set(places.tolist())
    assert len(held) == len(train) - PUBLIC


def test_masked_sums_give_the_same_bits() -> None:
    rounds = {"rounds": 2}
    plain = federations.learn(opened(rounds=rounds))
    masked = federations.learn(opened(rounds=rounds, secure={"name": "secagg"}))
    assert federations.sha(plain.travelling) == federations.sha(masked.travelling)


def test_scores_that_no_sites_have_are_impossible() -> None:
    algorithm = opened().program.algorithm
    most = 256 << 16
    scores, two = torch.full((PUBLIC, 10), 2 * most), torch.tensor([2])
    assert algorithm.is_possible({"scores": scores, "sites": two}, 5)
    assert not algorithm.is_possible({"scores": scores, "sites": torch.tensor([1])}, 5)
    assert not algorithm.is_possible({"scores": scores, "sites": two}, 1)
    assert not algorithm.is_possible({"scores": scores * 0, "sites": -two}, 5)
    scores[3, 3] = -2 * most - 1
    assert not algorithm.is_possible({"scores": scores, "sites": two}, 5)


def test_every_network_has_scores_within_the_range() -> None:
    of = opened()
    network = replace(of.network, module=nn.Identity())
    batch = Batch(torch.tensor([[float("nan"), float("inf"), -1e9, 300.0, -1.5]]), torch.zeros(1))
    found = of.program.algorithm.statistics(network, 5, [batch])["scores"]
    assert found.tolist() == [[0, 256 << 16, -(256 << 16), 256 << 16, -3 << 15]]


def test_sites_that_protect_single_images_send_what_their_noised_networks_think() -> None:
    """Also one whose images all fail, which looks like any other."""
    sections: dict[str, Any] = {
        "privacy": {"name": "example", "noise_multiplier": 1.0},
        "rounds": {"rounds": 1},
    }
    of = opened(**sections)
    assert of.program.check() == []
    order = Order(1, torch.randn(PUBLIC * 10))
    client = Client(of.member(0), hides=True)
    blank = client.blank(order, 0, {})
    assert int(blank.payload["sites"]) == 1
    client.load(order.vector, blank.memory)
    client.model.eval()
    with torch.no_grad():
        seen = client.model(client.batch(of.public, torch.arange(PUBLIC)).x)
    assert torch.equal(blank.payload["scores"], (seen.double() * 65536).round().long().reshape(-1))
    plan = federations.federation(**{**sections, "split": THREE["split"]}).plan
    assert of.plan.passes == plan.passes * 3  # three epochs, and nothing for public images


@pytest.mark.parametrize(
    ("sections", "where", "words"),
    [
        ({"public": {}}, "public", "there are none"),
        ({"public": {"seed": 1}}, "public.images", "how many"),
        ({"algorithm": {"name": "fedproto"}}, "public", "does not use public images"),
        ({"task": {"name": "multilabel"}}, "algorithm.name", "does not score"),
        ({"data": {"harmonise": "site"}}, "data.harmonise", "no site"),
        ({"privacy": {"name": "local", "epsilon": 8.0}}, "privacy.name", "neither clipped"),
        ({"privacy": {"name": "central", "epsilon": 8.0}}, "privacy.name", "neither clipped"),
        ({"aggregation": {"name": "median"}}, "aggregation.name", "sums of integers"),
        ({"codec": {"up": {"steps": ["float16"]}}}, "codec.up.steps", "whole numbers only"),
    ],
)
def test_what_does_not_compose_is_refused(sections: dict[str, Any], where: str, words: str) -> None:
    found = federations.program(**{**THREE, **sections}).check()
    assert any(one.where == where and words in one.cause and one.cure for one in found), found
