"""Ditto, APFL and FedPer: what sites have of their own, beside what all learn together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import federations
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedsight.algorithms.base import Local
from fedsight.algorithms.ditto import Ditto
from fedsight.client.memory import MemoryStore
from fedsight.client.step import Client
from fedsight.core.threads import one_thread
from fedsight.core.types import Memory, Metrics, Order
from fedsight.engines.in_process import InProcessEngine, LocalWorker
from fedsight.program import suited
from fedsight.program.facts import Facts
from fedsight.program.federation import Federation
from fedsight.program.program import Speed
from fedsight.program.rules import remarks

UNEQUAL: dict[str, Any] = {
    "split": {"name": "dirichlet", "alpha": 0.3, "sites": 4, "min_samples": 4},
    "train": {"epochs": 1, "batch": 200, "lr": 0.05},  # a step has all images of its site
    "rounds": {"rounds": 4, "cohort": 2},
}


def opened(lam: float = 0.5, own_epochs: int = 3, **sections: Any) -> Federation:
    ditto = {"name": "ditto", "lam": lam, "own_epochs": own_epochs}
    return federations.federation(**{**UNEQUAL, **sections, "algorithm": ditto})


def plain(**sections: Any) -> Federation:
    """FedAvg, or the algorithm in `sections`."""
    return federations.federation(**{**UNEQUAL, **sections})


def trained(of: Federation, folder: Path) -> tuple[Tensor, dict[str, Memory], list[Any]]:
    """The global model, what each site keeps, and the lines of the rounds."""
    engine, diary = InProcessEngine(of, folder), federations.Diary()
    vector = federations.learn(of, engine, diary).vector
    engine.close()
    store, names = MemoryStore(folder), map(of.partition.name, range(len(of.partition)))
    return vector, {name: store.load(name, 10**9) for name in names}, diary.lines


class Site:
    """A site's loss and its gradient, by PyTorch's own autograd on a network of its own."""

    def __init__(self, of: Federation, number: int) -> None:
        data = of.client(number)
        self.batch = of.batch(data, torch.arange(len(data)))
        self.module, self.layout = of.build().module, of.layout

    def grad(self, vector: Tensor) -> Tensor:
        """The gradient [d] at `vector` [d], float32."""
        self.module.load_state_dict(self.layout.state_dict(vector), strict=False)
        loss = F.cross_entropy(self.module(self.batch.x), self.batch.y)
        names = [name for name, _ in self.module.named_parameters()]
        values = torch.autograd.grad(loss, list(self.module.parameters()))
        return self.layout.vector(dict(zip(names, values, strict=True)))


def oracle(of: Federation, cohorts: Sequence[Sequence[str]], lam: float) -> Mapping[str, Tensor]:
    """Algorithm 1 of the paper with full batches: `w`, and each site's v_k that has trained."""
    names = [of.partition.name(number) for number in range(len(of.partition))]
    sites = {name: Site(of, number) for number, name in enumerate(names)}
    w, v, lr = of.initial.clone(), dict[str, Tensor](), of.program.train.lr
    for cohort in cohorts:
        ends = []
        for name in cohort:
            ends.append((w - lr * sites[name].grad(w), len(sites[name].batch.y)))
            own = v.get(name, w)
            for _ in range(3):
                own = own - lr * (sites[name].grad(own) + lam * (own - w))
            v[name] = own
        total = sum(weight for _, weight in ends)
        w = sum((weight / total * end for end, weight in ends), torch.zeros_like(w))
    return {**v, "w": w}


def test_ditto_follows_its_paper_with_two_of_four_unequal_sites_in_a_round(tmp_path: Path) -> None:
    of = opened(lam=0.5)
    with one_thread():
        vector, kept, lines = trained(of, tmp_path)
        expected = oracle(of, [line["sites"] for line in lines], lam=0.5)
    assert len({tuple(line["sites"]) for line in lines}) > 1
    torch.testing.assert_close(vector, expected["w"], atol=2e-6, rtol=0)
    seen = [name for name in kept if name in expected]
    assert len(seen) >= 3
    for name in seen:
        torch.testing.assert_close(kept[name]["personal"], expected[name], atol=5e-6, rtol=0)
        assert (kept[name]["personal"] - vector).abs().max() > 1e-3
    assert all("personal" not in kept[name] for name in kept if name not in expected)


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"norm": "batch"}, "train": {"momentum": 0.9, "batch": 16, "epochs": 2}},
        {"train": {"optimiser": "adamw", "lr": 0.003, "schedule": "cosine"}},
    ],
    ids=["BatchNorm", "AdamW"],
)
def test_the_global_model_of_ditto_is_that_of_fedavg_bit_for_bit(
    sections: dict[str, Any], tmp_path: Path
) -> None:
    given = {**UNEQUAL, **sections}
    ditto, kept, _ = trained(opened(**given), tmp_path)
    assert federations.sha(ditto) == federations.sha(federations.learn(plain(**given)).vector)
    assert any("personal" in one for one in kept.values())


def test_with_lambda_0_the_own_model_is_that_of_the_site_alone(tmp_path: Path) -> None:
    """Plain gradient descent on its images, whatever the others do."""
    rounds = {"train": {"batch": 200, "lr": 0.05, "epochs": 3}, "rounds": {"rounds": 3}}
    of = opened(lam=0.0, **rounds)
    _, kept, _ = trained(of, tmp_path)
    name, site = of.partition.name(1), Site(of, 1)
    with one_thread():
        alone = of.initial.clone()
        for _ in range(3 * 3):
            alone = alone - 0.05 * site.grad(alone)
    torch.testing.assert_close(kept[name]["personal"], alone, atol=1e-5, rtol=0)


def test_apfl_follows_its_paper_with_two_of_four_unequal_sites_in_a_round(tmp_path: Path) -> None:
    """Algorithm 1 with full batches and four local steps: v_k follows the mixture's gradient."""
    steps = {"train": {"epochs": 4, "batch": 200, "lr": 0.05}}
    of = plain(**steps, algorithm={"name": "apfl", "alpha": 0.3})
    with one_thread():
        found, kept, lines = trained(of, tmp_path)
        names = [of.partition.name(number) for number in range(4)]
        sites = {name: Site(of, number) for number, name in enumerate(names)}
        w, v, mixed = of.initial.clone(), dict[str, Tensor](), dict[str, Tensor]()
        for line in lines:
            ends = []
            for name in line["sites"]:
                grad, end, own = sites[name].grad, w, v.get(name, w)
                for _ in range(4):
                    step = 0.3 * grad(0.3 * own + 0.7 * end)
                    end, own = end - 0.05 * grad(end), own - 0.05 * step
                v[name], mixed[name] = own, 0.3 * own + 0.7 * end
                ends.append((end, len(sites[name].batch.y)))
            total = sum(weight for _, weight in ends)
            w = sum((weight / total * end for end, weight in ends), torch.zeros_like(w))
    torch.testing.assert_close(found, w, atol=2e-6, rtol=0)
    assert len(v) >= 3
    for name, own in v.items():
        torch.testing.assert_close(kept[name]["own"], own, atol=5e-6, rtol=0)
        torch.testing.assert_close(kept[name]["personal"], mixed[name], atol=5e-6, rtol=0)
    assert federations.sha(found) == federations.sha(federations.learn(plain(**steps)).vector)


def test_apfl_with_alpha_1_uses_the_model_of_the_site_alone(tmp_path: Path) -> None:
    rounds = {"train": {"batch": 200, "lr": 0.05, "epochs": 3}, "rounds": {"rounds": 3}}
    of = plain(**rounds, algorithm={"name": "apfl", "alpha": 1.0})
    _, kept, _ = trained(of, tmp_path)
    site, alone = Site(of, 1), of.initial.clone()
    with one_thread():
        for _ in range(3 * 3):
            alone = alone - 0.05 * site.grad(alone)
    found = kept[of.partition.name(1)]
    assert torch.equal(found["personal"], found["own"])
    torch.testing.assert_close(found["own"], alone, atol=1e-5, rtol=0)


def test_apfl_refuses_a_buffer_that_it_cannot_mix() -> None:
    of = federations.federation(algorithm={"name": "apfl"})
    module = of.network.module
    module.register_buffer("average", torch.zeros(3))
    problem = suited.problems(of.program, of.network)[0]
    assert "buffer 'average'" in problem.cause
    ditto = federations.program(algorithm={"name": "ditto"})
    assert suited.problems(ditto, of.network) == []


def test_apfl_refuses_steps_and_statistics_that_its_second_model_does_not_have() -> None:
    apfl = {"name": "apfl"}
    assert federations.program(algorithm=apfl).check() == []
    odd = {"momentum": 0.9, "schedule": "cosine", "schedule_by": "step"}
    found = federations.program(algorithm=apfl, train=odd).check()
    assert [problem.where for problem in found] == ["train.momentum", "train.schedule_by"]
    batch = federations.program(algorithm=apfl, model={"norm": "batch"})
    (problem,) = batch.check_network(batch.model.build(1, 14, 14, 10, 0))
    assert problem.where == "model.norm"


@pytest.mark.parametrize("blocks", [0, 1])
def test_fedper_follows_its_paper_with_two_of_four_unequal_sites_in_a_round(
    blocks: int, tmp_path: Path
) -> None:
    """Algorithms 1 and 2: the base is averaged, the personal layers are the site's last ones."""
    steps = {"train": {"epochs": 2, "batch": 200, "lr": 0.1}}
    of = plain(**steps, algorithm={"name": "fedper", "blocks": blocks})
    body, own = of.layout.shared, of.layout.personal
    with one_thread():
        found, kept, lines = trained(of, tmp_path)
        names = [of.partition.name(number) for number in range(4)]
        sites = {name: Site(of, number) for number, name in enumerate(names)}
        w, heads = of.initial.clone(), dict[str, Tensor]()
        for line in lines:
            ends = []
            for name in line["sites"]:
                end = w.clone()
                end[own] = heads.get(name, of.initial[own])
                for _ in range(2):
                    end = end - 0.1 * sites[name].grad(end)
                heads[name] = end[own].clone()
                ends.append((end, len(sites[name].batch.y)))
            total = sum(weight for _, weight in ends)
            w = sum((weight / total * end for end, weight in ends), torch.zeros_like(w))
    torch.testing.assert_close(found[body], w[body], atol=5e-6, rtol=0)
    for name, head in heads.items():
        torch.testing.assert_close(kept[name]["personal"], head, atol=5e-6, rtol=0)


def test_what_a_site_remembers_that_could_not_train_is_the_model_it_was_sent() -> None:
    for name in ("ditto", "apfl"):
        of = plain(algorithm={"name": name})
        begun = of.initial[of.layout.travelling] + 0.5
        kept = Client(of).blank(Order(1, begun), 0, {}).memory
        assert kept.keys() == Client(of).step(Order(1, begun), 0, {}).memory.keys()
        assert all(torch.equal(one, begun) for one in kept.values())


def test_a_large_lambda_holds_the_own_model_at_the_global_one() -> None:
    """At the stationary point lambda (v - w) = -grad F_k(v)."""
    made, w = Ditto(lam=50.0), torch.tensor([1.0, -2.0, 0.5])
    wanted, v = torch.tensor([3.0, 3.0, 3.0]), torch.zeros(3)
    for _ in range(400):
        v = v - 0.01 * made.correct_own(v - wanted, v, Local(w, {}, {}, 0.01))
    torch.testing.assert_close(v, (wanted + 50 * w) / 51)


def test_nothing_of_the_own_model_is_in_what_leaves_the_site(tmp_path: Path) -> None:
    """Whatever the own model is, the reply's payload has the bits of FedAvg's."""
    of, other = opened(), plain()
    begun = of.initial[of.layout.travelling]
    sent = Client(other).step(Order(1, begun), 0, {})
    for memory in ({}, {"personal": torch.randn(len(begun), generator=torch.manual_seed(0))}):
        reply = Client(of).step(Order(1, begun), 0, memory)
        assert reply.payload.keys() == sent.payload.keys() == {"delta"}
        assert federations.sha(reply.payload["delta"]) == federations.sha(sent.payload["delta"])
        assert reply.metrics["train_loss"] == sent.metrics["train_loss"]
        assert reply.weight == sent.weight
        assert reply.memory.keys() == {"personal"}


def measured(worker: LocalWorker, vector: Tensor, view: int) -> Metrics:
    return worker.measure(vector, 4, (view, 0))


def test_a_sites_own_model_is_the_one_that_is_measured(tmp_path: Path) -> None:
    of = opened()
    vector, kept, lines = trained(of, tmp_path)
    worker = LocalWorker(of, tmp_path, Speed(device="cpu", workers=1))
    assert [view.site for view in of.views] == [0, 1, 2, 3]
    seen = {name for line in lines for name in line["sites"]}
    for number, view in enumerate(of.views):
        name = of.partition.name(view.site or 0)
        found = measured(worker, vector, number)
        if name not in seen:
            assert found == {}
            continue
        own = Client(of)
        own.vector.copy_(kept[name]["personal"])
        assert federations.same_sums([found], [own.measure(of.tested(view), 0)])
        own.vector.copy_(vector)
        assert not federations.same_sums([found], [own.measure(of.tested(view), 0)])


def test_statistics_of_batchnorm_are_part_of_the_own_model(tmp_path: Path) -> None:
    of = opened(model={"norm": "batch"}, train={"batch": 16, "epochs": 1, "lr": 0.05})
    vector, kept, _ = trained(of, tmp_path)
    for one in kept.values():
        if "personal" in one:
            assert one["personal"].shape == vector.shape
            assert (one["personal"] - vector)[of.layout.buffer].abs().max() > 1e-3


def test_a_schedule_by_step_ends_for_both_models_at_the_end_of_the_round(tmp_path: Path) -> None:
    """With three times as many own steps as shared ones, the rates are the same at both ends."""
    step = {"train": {"schedule": "cosine", "schedule_by": "step", "batch": 200, "lr": 0.05}}
    assert federations.sha(trained(opened(**step), tmp_path / "one")[0]) == federations.sha(
        federations.learn(plain(**step)).vector
    )
    sole = {**step, "rounds": {"rounds": 1}}
    _, kept, _ = trained(opened(lam=0.0, **sole), tmp_path / "sole")
    longer = plain(**{**sole, "train": {**step["train"], "epochs": 3}})
    reply = Client(longer).step(Order(1, longer.initial), 2, {})
    own = kept[longer.partition.name(2)]["personal"]
    torch.testing.assert_close(own - longer.initial, reply.payload["delta"], atol=1e-6, rtol=0)


def test_example_dp_noises_the_own_model_too_and_counts_its_steps(tmp_path: Path) -> None:
    private = {"privacy": {"name": "example", "noise_multiplier": 1.0, "clip": 1.0}}
    of = opened(**private)
    assert of.plan.passes == 1 + 3
    _, kept, _ = trained(of, tmp_path / "noised")
    _, bare, _ = trained(opened(), tmp_path / "bare")
    for name, one in kept.items():
        if "personal" in one:
            assert (one["personal"] - bare[name]["personal"]).norm() > 0.1


def test_check_refuses_what_a_whole_own_model_does_not_go_with() -> None:
    faces = {"task": {"name": "faces"}, "model": {"name": "embedding", "backbone": "small_cnn"}}
    program = federations.program(algorithm={"name": "ditto"}, **faces)
    network = program.model.build(1, 14, 14, 10, 0)
    (problem,) = program.check_network(network)
    assert problem.where == "algorithm.name"
    assert "faces" in problem.cause
    best = federations.program(
        algorithm={"name": "ditto"}, rounds={"keep": "best", "validation": 0.2}
    )
    (problem,) = best.check_network(best.model.build(1, 14, 14, 10, 0))
    assert problem.where == "rounds.keep"
    whole = federations.program(algorithm={"name": "fedper", "blocks": 2})
    (problem,) = whole.check_network(whole.model.build(1, 14, 14, 10, 0))
    assert "nothing travels" in problem.cause
    closing = federations.program(algorithm={"name": "ditto"}, finish={"name": "ridge"})
    (problem,) = closing.check_network(closing.model.build(1, 14, 14, 10, 0))
    assert problem.where == "finish.name"


@pytest.mark.parametrize("name", ["ditto", "apfl"])
def test_an_own_model_is_stated_as_what_epsilon_does_not_cover(name: str) -> None:
    made = federations.program(
        algorithm={"name": name},
        privacy={"name": "local", "noise_multiplier": 1.0},
        rounds={"weighting": "uniform"},
    )
    assert made.check() == []
    assert Facts.of(made).personal
    assert Facts.of(made).remembers
    assert any("the whole model, that stays at its site" in one for one in remarks(made))


def test_a_baseline_trains_as_many_epochs_as_one_of_the_two_models() -> None:
    assert Ditto().longest(2) == 2
    assert Ditto(own_epochs=5).longest(2) == 5
    assert federations.program(algorithm={"name": "ditto"}).baseline().train.epochs == 1
