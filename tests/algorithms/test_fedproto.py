"""FedProto: three networks that have nothing in common learn from one another's prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import federations
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedsight.algorithms.base import Local
from fedsight.client.memory import MemoryStore
from fedsight.client.step import Client
from fedsight.core.threads import one_thread
from fedsight.core.types import Order
from fedsight.engines.in_process import InProcessEngine
from fedsight.program.federation import Federation

FEATURES = 12
THREE: dict[str, Any] = {
    "model": {
        "width": 8,
        "bottleneck": FEATURES,
        "groups": [
            {"sites": ["site-01"], "name": "mlp", "bottleneck": FEATURES},
            {"sites": ["site-0[23]"], "blocks": 1, "width": 4},
        ],
    },
    "algorithm": {"name": "fedproto", "lam": 2.0},
    "split": {"name": "dirichlet", "alpha": 0.3, "sites": 4, "min_samples": 4},
    "train": {"epochs": 3, "batch": 200, "lr": 0.1},  # a step has all images of its site
    "rounds": {"rounds": 4, "cohort": 2},
}


def opened(**sections: Any) -> Federation:
    return federations.federation(**{**THREE, **sections})


class Site:
    """A site's network and images, in plain PyTorch."""

    def __init__(self, of: Federation, number: int) -> None:
        data, model = of.client(number), of.member(number).model
        self.batch = of.batch(data, torch.arange(len(data)))
        network = model.build(1, 14, 14, 10, of.program.model_seed)
        (head,) = {name.rpartition(".")[0] for name in network.head}
        self.module, self.head = network.module, network.module.get_submodule(head)

    def features(self) -> Tensor:
        seen: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        self.module(self.batch.x)
        handle.remove()
        return seen[0]

    def train(self, prototypes: dict[int, Tensor], lam: float, lr: float, steps: int) -> None:
        """Gradient descent on equation 7."""
        optimizer = torch.optim.SGD(self.module.parameters(), lr=lr)
        for _ in range(steps):
            z = self.features()
            apart = torch.zeros(())
            for image, label in zip(z, self.batch.y.tolist(), strict=True):
                if label in prototypes:
                    apart = apart + F.mse_loss(image, prototypes[label]) / len(z)
            loss = F.cross_entropy(self.head(z), self.batch.y) + lam * apart
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def prototypes(self) -> dict[int, tuple[Tensor, int]]:
        """Equation 3: the mean features of each class, and of how many images."""
        with torch.no_grad():
            z = self.features()
        of = {label: z[self.batch.y == label] for label in self.batch.y.unique().tolist()}
        return {label: (mine.mean(0), len(mine)) for label, mine in of.items()}


def oracle(
    of: Federation, cohorts: Sequence[Sequence[str]]
) -> tuple[dict[int, Tensor], dict[str, Site]]:
    """Algorithm 1 of the paper."""
    names = [of.partition.name(number) for number in range(4)]
    sites = {name: Site(of, number) for number, name in enumerate(names)}
    common: dict[int, Tensor] = {}
    for cohort in cohorts:
        told = []
        for name in cohort:
            sites[name].train(common, lam=2.0, lr=0.1, steps=3)
            told.append(sites[name].prototypes())
        for label in range(10):
            mine = [one[label] for one in told if label in one]
            if mine:
                images = sum(count for _, count in mine)
                common[label] = sum((c / images * mean for mean, c in mine), torch.zeros(FEATURES))
    return common, sites


def test_it_follows_its_paper_with_two_of_four_unequal_sites_in_a_round(tmp_path: Path) -> None:
    of, diary = opened(), federations.Diary()
    engine = InProcessEngine(of, tmp_path)
    with one_thread():
        vector = federations.learn(of, engine, diary).travelling
        cohorts = [line["sites"] for line in diary.lines]
        common, sites = oracle(of, cohorts)
    engine.close()
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    found = vector.view(10, FEATURES)
    for label, prototype in common.items():
        torch.testing.assert_close(found[label], prototype, atol=5e-5, rtol=0)
    store, trained = MemoryStore(tmp_path), {name for cohort in cohorts for name in cohort}
    assert len(trained) >= 3
    for number in range(4):
        name, member = of.partition.name(number), of.member(number)
        if name not in trained:
            continue
        kept = member.initial.clone()
        kept[member.layout.personal] = store.load(name, 10**9)["personal"]
        state = member.layout.state_dict(kept)
        for key, value in sites[name].module.state_dict().items():
            torch.testing.assert_close(state[key], value, atol=5e-5, rtol=0)


def test_with_lambda_0_each_site_learns_alone() -> None:
    of = opened(algorithm={"name": "fedproto", "lam": 0.0}, rounds={"rounds": 1})
    begun = torch.randn(10 * FEATURES, generator=torch.manual_seed(0))
    known = {"known": torch.ones(10 * FEATURES)}
    for site in range(3):
        kept = Client(of.member(site)).step(Order(1, begun, known), site, {}).memory["personal"]
        alone = of.alone(site)
        sent = Client(alone).step(Order(1, alone.initial), 0, {}).payload["delta"]
        torch.testing.assert_close(kept, alone.initial + sent, atol=1e-6, rtol=0)


def test_nothing_of_a_network_is_in_what_leaves_its_site() -> None:
    """But the sums of its features: whatever the layer after them holds, the bits are the same."""
    of = opened()
    client = Client(of.member(1))
    begun, known = torch.zeros(10 * FEATURES), {"known": torch.zeros(10 * FEATURES)}
    learnt = client.step(Order(1, begun, known), 1, {})
    assert learnt.payload.keys() == {"sums"}
    assert learnt.payload["sums"].shape == (10 * (FEATURES + 1),)
    assert learnt.payload["sums"].dtype == torch.int64
    assert learnt.memory.keys() == {"personal"}
    kept = learnt.memory["personal"].numpy().tobytes()
    sent = learnt.payload["sums"].numpy().tobytes()
    pieces = (kept[at : at + 8] for at in range(0, len(kept), 8))
    assert not any(one in sent for one in pieces if one.strip(b"\0"))


def test_what_leaves_is_of_the_network_after_training_and_of_images_as_they_are() -> None:
    of = opened(train={"epochs": 1, "batch": 8, "lr": 0.1, "augment": ["flip", "shift"]})
    client = Client(of.member(2))
    known = {"known": torch.zeros(10 * FEATURES)}
    reply = client.step(Order(1, torch.zeros(10 * FEATURES), known), 2, {})
    client.load(torch.zeros(10 * FEATURES), reply.memory)
    client.model.eval()
    data = of.client(2)
    with torch.no_grad():
        batch = client.batch(data, torch.arange(len(data)))
        found = client.federation.program.algorithm.statistics(client.network, 10, [batch])
    assert torch.equal(reply.payload["sums"], found["sums"].reshape(-1))
    assert int(found["sums"][:, -1].sum()) == len(data)


def test_sums_that_no_images_have_are_impossible() -> None:
    algorithm = opened().program.algorithm
    sums = torch.zeros(10, FEATURES + 1, dtype=torch.int64)
    sums[3, -1] = 5
    sums[3, 0] = 5 << 24
    assert algorithm.is_possible({"sums": sums}, 5)
    assert not algorithm.is_possible({"sums": sums}, 4)
    sums[3, 1] = -(5 << 24) - 1
    assert not algorithm.is_possible({"sums": sums}, 5)
    sums[3, 1], sums[2, -1] = 0, -1
    assert not algorithm.is_possible({"sums": sums}, 5)


def test_a_class_that_nobody_has_keeps_its_prototype_and_draws_nothing() -> None:
    of = opened()
    algorithm = of.program.algorithm
    state = algorithm.init(torch.zeros(10 * FEATURES))
    assert not state["known"].any()
    z = torch.randn(5, FEATURES, generator=torch.manual_seed(0))

    def at(known: Tensor) -> Any:
        local = Local(torch.ones(10 * FEATURES), {"known": known}, {}, 0.1)
        local.labels = torch.tensor([0, 1, 1, 2, 9])
        return algorithm.penalty(z, lambda vector: z, local)

    assert at(state["known"]) == 0
    known = state["known"].clone()
    known[FEATURES : 2 * FEATURES] = 1
    torch.testing.assert_close(at(known), 2.0 * (z[1:3] - 1).square().sum() / z.numel())


def test_masked_sums_give_the_same_bits() -> None:
    plain = federations.learn(opened(rounds={"rounds": 2}))
    masked = federations.learn(opened(rounds={"rounds": 2}, secure={"name": "secagg"}))
    assert federations.sha(plain.travelling) == federations.sha(masked.travelling)


@pytest.mark.parametrize(
    ("sections", "where", "words"),
    [
        ({"task": {"name": "multilabel"}}, "algorithm.name", "one class"),
        ({"train": {"augment": ["mixup"]}}, "train.augment", "no class"),
        ({"privacy": {"name": "local", "epsilon": 8.0}}, "algorithm.name", "neither clipped"),
        ({"privacy": {"name": "example", "epsilon": 8.0}}, "algorithm.name", "DP-SGD"),
    ],
)
def test_what_does_not_compose_is_refused(sections: dict[str, Any], where: str, words: str) -> None:
    found = federations.program(**{**THREE, **sections}).check()
    assert any(one.where == where and words in one.cause for one in found)
