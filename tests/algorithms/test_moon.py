"""MOON against its paper's equations, on networks computed a second time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import federations
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedsight.algorithms.base import Local
from fedsight.algorithms.moon import Moon
from fedsight.client.memory import MemoryStore
from fedsight.client.step import Client
from fedsight.core.threads import one_thread
from fedsight.core.types import Order
from fedsight.engines.in_process import InProcessEngine
from fedsight.program.federation import Federation

UNEQUAL: dict[str, Any] = {
    "split": {"name": "dirichlet", "alpha": 0.3, "sites": 4, "min_samples": 4},
    "train": {"epochs": 2, "batch": 200, "lr": 0.1},  # a step has all images of its site
    "rounds": {"rounds": 5, "cohort": 2},
}
MOON = {"name": "moon", "mu": 1.0, "temperature": 0.5}


def opened(**sections: Any) -> Federation:
    return federations.federation(**{**UNEQUAL, "algorithm": MOON, **sections})


class Twin:
    """A second network of the federation, whose features are what its body gives."""

    def __init__(self, of: Federation, site: int) -> None:
        data = of.client(site)
        self.batch = of.batch(data, torch.arange(len(data)))
        self.module, self.layout = of.build().module, of.layout

    def answers(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits."""
        self.module.load_state_dict(self.layout.state_dict(vector), strict=False)
        *body, head = self.module.children()
        z = torch.nn.Sequential(*body)(self.batch.x).flatten(1)
        return z, head(z)

    def step(self, w: Tensor, start: Tensor, previous: Tensor | None, lr: float) -> Tensor:
        """w - lr grad(cross-entropy + mu contrast), equations 3 and 4."""
        fixed = [] if previous is None else [self.answers(v)[0].detach() for v in (start, previous)]
        z, logits = self.answers(w)
        loss = F.cross_entropy(logits, self.batch.y)
        if fixed:
            near, far = (
                (F.cosine_similarity(z, other) / MOON["temperature"]).exp() for other in fixed
            )
            loss = loss + MOON["mu"] * -(near / (near + far)).log().mean()
        names = [name for name, _ in self.module.named_parameters()]
        grads = torch.autograd.grad(loss, list(self.module.parameters()))
        return w - lr * self.layout.vector(dict(zip(names, grads, strict=True)))


def test_moon_follows_its_paper_with_two_of_four_unequal_sites_in_a_round(tmp_path: Path) -> None:
    of, diary = opened(), federations.Diary()
    engine = InProcessEngine(of, tmp_path)
    found = federations.learn(of, engine, diary).vector
    engine.close()
    names = [of.partition.name(number) for number in range(4)]
    twins, previous = {name: Twin(of, n) for n, name in enumerate(names)}, dict[str, Tensor]()
    w, returned = of.initial.clone(), 0
    with one_thread():
        for line in diary.lines:
            ends = []
            for name in line["sites"]:
                returned += name in previous
                end = w
                for _ in range(2):
                    end = twins[name].step(end, w, previous.get(name), 0.1)
                previous[name] = end
                ends.append((end, len(twins[name].batch.y)))
            total = sum(weight for _, weight in ends)
            w = sum((weight / total * end for end, weight in ends), torch.zeros_like(w))
    assert returned >= 4
    torch.testing.assert_close(found, w, atol=1e-5, rtol=0)
    for name, end in previous.items():
        kept = MemoryStore(tmp_path).load(name, 10**9)
        torch.testing.assert_close(kept["previous"], end, atol=1e-5, rtol=0)
    plain = federations.federation(**UNEQUAL)
    assert (found - federations.learn(plain).vector).abs().max() > 1e-3


def test_with_mu_0_and_in_a_sites_first_round_moon_is_fedavg_bit_for_bit() -> None:
    plain = federations.learn(federations.federation(**UNEQUAL)).vector
    none = federations.learn(opened(algorithm={**MOON, "mu": 0.0})).vector
    assert federations.sha(none) == federations.sha(plain)
    first = {"rounds": {"rounds": 1}}
    assert federations.sha(federations.learn(opened(**first)).vector) == federations.sha(
        federations.learn(federations.federation(**{**UNEQUAL, **first})).vector
    )


def test_the_penalty_is_log_2_where_both_models_are_as_near_and_its_limits() -> None:
    made, z = Moon(mu=1.0, temperature=0.5), torch.eye(3)
    features = {1.0: z, 2.0: -z, 3.0: z.roll(1, 0)}

    def of(start: float, previous: float) -> float:
        local = Local(torch.full((4,), start), {}, {"previous": torch.full((4,), previous)}, 0.1)
        return float(made.penalty(z, lambda vector: features[float(vector[0])], local))

    assert of(1.0, 1.0) == pytest.approx(0.693147, abs=1e-5)
    assert of(1.0, 2.0) == pytest.approx(0.018150, abs=1e-5)  # log(1 + e^-4)
    assert of(2.0, 1.0) == pytest.approx(4.018150, abs=1e-5)
    assert of(1.0, 3.0) == pytest.approx(0.126928, abs=1e-5)  # log(1 + e^-2)


def test_the_previous_model_pushes_and_dropout_does_not_change_what_it_is_compared_with() -> None:
    """Features of the two fixed models are computed in evaluation mode, and the mode comes back."""
    of = opened(model={"dropout": 0.5})
    worker, begun = Client(of), of.initial[of.layout.travelling]
    memory = {"previous": begun + 0.1}
    one, same, other = (
        worker.step(Order(1, begun), 0, kept).payload["delta"]
        for kept in (memory, memory, {"previous": begun - 0.1})
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert all(part.training for part in worker.model.modules())


def test_frozen_layers_that_are_kept_change_nothing() -> None:
    """What the frozen first layers make of an image is handed to all three models."""
    only = {"train": {"only": ["last:1", "head"], "batch": 16, "lr": 0.1}}
    of = opened(**only)
    begun = of.initial[of.layout.travelling]
    worker = Client(of)
    assert worker.activations is not None
    reply = worker.step(Order(1, begun), 0, {"previous": begun + 0.05})
    plain = federations.federation(**{**UNEQUAL, **only})
    other = Client(plain).step(Order(1, begun), 0, {})
    assert (reply.payload["delta"] - other.payload["delta"]).abs().max() > 1e-4


def test_check_refuses_networks_whose_features_are_not_the_weights_alone() -> None:
    batch = federations.program(algorithm=MOON, model={"norm": "batch"})
    (problem,) = batch.check_network(batch.model.build(1, 14, 14, 10, 0))
    assert problem.where == "model.norm"
    faces = federations.program(
        algorithm=MOON,
        task={"name": "faces"},
        model={"name": "embedding", "backbone": "small_cnn"},
    )
    (problem,) = faces.check_network(faces.model.build(1, 14, 14, 10, 0))
    assert problem.where == "model.name"
    assert "one linear layer" in problem.cause
