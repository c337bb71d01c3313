"""FedDF: the averaged model learns what the models of a round's sites think of public images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import federations
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.client.step import Client
from fedsight.core.threads import one_thread
from fedsight.core.types import Order
from fedsight.program.federation import Federation

PUBLIC = 30
STEPS = 4
BASE: dict[str, Any] = {
    "algorithm": {"name": "feddf", "distil": STEPS, "server_lr": 0.002},
    "public": {"images": PUBLIC},
    "split": {"name": "dirichlet", "alpha": 0.3, "sites": 4, "min_samples": 10},
    "train": {"epochs": 2, "batch": 200, "lr": 0.1},  # a step has all images there are
    "rounds": {"rounds": 2, "cohort": 2},
}


def opened(**sections: Any) -> Federation:
    return federations.federation(**{**BASE, **sections})


def trained(of: Federation, state: dict[str, Tensor], number: int) -> nn.Module:
    """A site's model after its local steps."""
    data = of.client(number)
    batch = of.batch(data, torch.arange(len(data)))
    module = of.model.build(1, 14, 14, 10, of.program.model_seed).module
    module.load_state_dict(state)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(module(batch.x), batch.y).backward()
        optimizer.step()
    return module


def oracle(of: Federation, cohorts: Sequence[Sequence[str]]) -> Tensor:
    """Algorithm 1 of the paper, with the mean of logits as teacher; the logits of public images."""
    places = torch.from_numpy(of.program.public.drawn(of.dataset.train))
    public = of.dataset.preprocess.normalise(of.dataset.train.images.read(places))
    names = [of.partition.name(number) for number in range(4)]
    server = of.model.build(1, 14, 14, 10, of.program.model_seed).module
    for cohort in cohorts:
        numbers = [names.index(name) for name in cohort]
        models = [trained(of, server.state_dict(), number) for number in numbers]
        weights = torch.tensor([of.size(number) for number in numbers], dtype=torch.float64)
        weights /= weights.sum()
        mean = {
            key: sum((w * m.state_dict()[key] for w, m in zip(weights, models, strict=True)), 0 * v)
            for key, v in server.state_dict().items()
        }
        server.load_state_dict(mean)
        with torch.no_grad():
            teacher = torch.stack([model(public) for model in models]).mean(0).softmax(1)
        optimizer = torch.optim.Adam(server.parameters(), lr=0.002)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in range(STEPS):
            optimizer.zero_grad()
            student = server(public).softmax(1)
            (teacher * (teacher / student).log()).sum(1).mean().backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        scores: Tensor = server(public)
    return scores


def test_it_follows_its_paper_with_two_of_four_unequal_sites_in_a_round() -> None:
    of, diary = opened(), federations.Diary()
    with one_thread():
        vector = federations.learn(of, None, diary).travelling
        cohorts = [line["sites"] for line in diary.lines]
        expected = oracle(of, cohorts)
        before = oracle(of, cohorts[:1])
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    assert len({of.size(site) for site in range(4)}) > 1
    client = Client(of)
    client.load(vector, {})
    client.model.eval()
    with torch.no_grad():
        found = client.model(client.batch(of.public, torch.arange(PUBLIC)).x)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert (found - before).abs().max() > 0.1  # what is compared moves further than that


def test_without_distillation_it_is_fedavg_bit_for_bit() -> None:
    own = opened(algorithm={"name": "feddf", "distil": 0})
    plain = opened(algorithm={"name": "fedavg"})  # which `check` refuses with [public]
    same = federations.sha(federations.learn(plain).vector)
    assert federations.sha(federations.learn(own).vector) == same
    assert federations.sha(federations.learn(opened()).vector) != same


def test_besides_the_update_a_site_sends_its_scores_of_public_images() -> None:
    """The bits of its update are those of FedAvg."""
    of, plain = opened(), opened(algorithm={"name": "fedavg"})
    order = Order(1, of.initial)
    learnt, without = (Client(one).step(order, 1, {}) for one in (of, plain))
    assert learnt.payload.keys() == {"delta", "scores", "sites"}
    assert torch.equal(learnt.payload["delta"], without.payload["delta"])
    assert not learnt.memory
    client = Client(of)
    client.load(of.initial + learnt.payload["delta"], {})
    client.model.eval()
    with torch.no_grad():
        seen = client.model(client.batch(of.public, torch.arange(PUBLIC)).x)
    apart = learnt.payload["scores"].view(PUBLIC, 10) / 65536 - seen
    assert apart.abs().max() < 1e-4


def test_masked_scores_and_updates_give_the_bits_of_rounded_ones() -> None:
    masked, rounded = (
        federations.learn(opened(secure={"name": name}, rounds={"rounds": 2}))
        for name in ("secagg", "quantised")
    )
    assert federations.sha(masked.travelling) == federations.sha(rounded.travelling)


@pytest.mark.parametrize(
    ("sections", "where", "words"),
    [
        ({"public": {}}, "public", "public images"),
        (
            {"model": {"width": 8, "groups": [{"sites": ["*"], "width": 4}]}},
            "algorithm.name",
            "each value",
        ),
        ({"privacy": {"name": "central", "epsilon": 8.0}}, "privacy.name", "neither clipped"),
        ({"aggregation": {"name": "median"}}, "aggregation.name", "sums of integers"),
    ],
)
def test_what_does_not_compose_is_refused(sections: dict[str, Any], where: str, words: str) -> None:
    found = federations.program(**{**BASE, **sections}).check()
    assert any(one.where == where and words in one.cause and one.cure for one in found), found


def test_noised_steps_compose() -> None:
    sections = {"privacy": {"name": "example", "noise_multiplier": 1.0}}
    assert federations.program(**{**BASE, **sections}).check() == []
