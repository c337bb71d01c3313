"""Equalities that the papers promise, checked through the real round loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import federations
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedsight.algorithms.base import Algorithm
from fedsight.client.step import Client
from fedsight.coordinator.loop import Trained, run
from fedsight.coordinator.session import Session
from fedsight.core.errors import ConfigError
from fedsight.core.layout import Layout
from fedsight.core.rng import generator
from fedsight.core.threads import one_thread
from fedsight.core.types import Order
from fedsight.engines.base import collect
from fedsight.engines.in_process import InProcessEngine
from fedsight.program.federation import Federation

Make = Callable[..., Federation]
TWO_EPOCHS = {"epochs": 2, "momentum": 0.9, "weight_decay": 0.01, "lr": 0.05}


def trained(make: Make, **sections: object) -> Trained:
    return federations.learn(make(**sections))


def start(federation: Federation) -> Tensor:
    return federation.initial


def all_images(federation: Federation) -> tuple[Tensor, Tensor]:
    part = federation.dataset.train
    x = federation.dataset.preprocess.normalise(part.images.read(torch.arange(len(part))))
    return x, torch.from_numpy(part.labels)


def test_one_site_with_all_data_equals_plain_sgd_written_by_hand(tiny_federation: Make) -> None:
    federation = tiny_federation(split={"sites": 1}, train={**TWO_EPOCHS, "batch": 32})
    model = federation.build().module  # plain: neither bound to a vector nor channels-last
    x, y = all_images(federation)
    site = federation.name(0)
    indices = torch.from_numpy(federation.partition.indices(0))
    with one_thread():
        for round in (1, 2):
            draws = generator(federation.program.seed, "round", round, "site", site, "batches")
            velocity = [torch.zeros_like(p) for p in model.parameters()]  # anew in each round
            for _ in range(2):
                order = torch.randperm(len(indices), generator=draws)
                for positions in order.split(32):
                    batch = indices[positions]
                    model.zero_grad()
                    F.cross_entropy(model(x[batch]), y[batch]).backward()
                    with torch.no_grad():
                        for p, v in zip(model.parameters(), velocity, strict=True):
                            v.mul_(0.9).add_(p.grad + 0.01 * p)
                            p.sub_(0.05 * v)
    result = federations.learn(federation)
    by_hand = Layout.of(model).read(model)
    assert (by_hand - start(federation)).abs().max() > 0.05
    torch.testing.assert_close(result.vector, by_hand, rtol=0, atol=1e-6)


def test_one_full_batch_step_on_iid_parts_equals_one_pooled_gradient_step(
    tiny_federation: Make,
) -> None:
    federation = tiny_federation(split={"sites": 4}, train={"batch": 30}, rounds={"rounds": 1})
    model = federation.build().module
    x, y = all_images(federation)
    F.cross_entropy(model(x), y).backward()
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(0.05 * p.grad)
    result = federations.learn(federation)
    torch.testing.assert_close(result.vector, Layout.of(model).read(model), rtol=0, atol=5e-7)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fedprox", {"mu": 0.0}),
        ("fedopt", {"server": "sgd", "server_lr": 1.0}),
        ("fedavg", {"server_lr": 1.0}),
        ("fedavgm", {"momentum": 0.0, "server_lr": 1.0}),
    ],
)
def test_algorithm_at_its_neutral_setting_equals_fedavg_bit_for_bit(
    tiny_federation: Make, name: str, settings: dict[str, float]
) -> None:
    plain = trained(tiny_federation, train=TWO_EPOCHS)
    other = trained(tiny_federation, train=TWO_EPOCHS, algorithm={"name": name, **settings})
    assert federations.sha(other.vector) == federations.sha(plain.vector)
    assert federations.same_sums(other.sums, plain.sums)


def test_fedavg_with_server_rate_one_equals_the_base_rule_bit_for_bit(
    tiny_federation: Make,
) -> None:
    federation = tiny_federation()
    base = replace(federation, program=replace(federation.program, algorithm=Algorithm()))
    assert federations.sha(federations.learn(base).vector) == federations.sha(
        federations.learn(federation).vector
    )


def test_fedprox_with_a_pull_stays_nearer_to_the_global_model(tiny_federation: Make) -> None:
    moved = []
    for mu in (0.0, 5.0):
        federation = tiny_federation(
            algorithm={"name": "fedprox", "mu": mu}, train={"epochs": 3}, rounds={"rounds": 1}
        )
        moved.append(float((federations.learn(federation).vector - start(federation)).norm()))
    assert moved[1] < 0.8 * moved[0]


def test_scaffold_without_controls_yet_equals_fedavg_in_the_first_round(
    tiny_federation: Make,
) -> None:
    one_round = {"rounds": {"rounds": 1}, "train": {"epochs": 2}}
    plain = trained(tiny_federation, **one_round)
    scaffold = trained(tiny_federation, algorithm={"name": "scaffold"}, **one_round)
    assert federations.sha(scaffold.vector) == federations.sha(plain.vector)


def test_scaffold_with_one_full_batch_step_a_round_is_pooled_gradient_descent(
    tiny_federation: Make,
) -> None:
    """The corrections cancel in the mean, so two rounds are two steps on all data."""
    sections = {"split": {"sites": 4}, "train": {"batch": 30}}
    scaffold = trained(tiny_federation, algorithm={"name": "scaffold"}, **sections)
    plain = trained(tiny_federation, **sections)
    torch.testing.assert_close(scaffold.vector, plain.vector, rtol=0, atol=1e-6)
    control = scaffold.checkpoint.state["control"]
    federation = tiny_federation(**sections)
    model, layout = federation.network.module, federation.layout
    before = federations.learn(tiny_federation(**sections, rounds={"rounds": 1})).vector.clone()
    layout.bind(model, before)
    x, y = all_images(federation)
    F.cross_entropy(model(x), y).backward()
    gradient = torch.zeros(layout.size)
    for entry in layout.entries:
        entry.view(gradient).copy_(dict(model.named_parameters())[entry.name].grad)
    # after the second round c is the mean of the sites' gradients where that round began
    torch.testing.assert_close(control, gradient, rtol=1e-3, atol=1e-5)


def test_fedbn_without_norms_is_refused(tiny_federation: Make) -> None:
    with pytest.raises(ConfigError, match="fedbn keeps a slice of the model at the site") as caught:
        trained(tiny_federation, algorithm={"name": "fedbn"}, model={"name": "mlp"})
    assert caught.value.problems[0].cure


def test_sites_of_equal_size_weigh_alike_by_either_rule(tiny_federation: Make) -> None:
    rules = ({"weighting": "samples"}, {"weighting": "uniform"}, {"weighting": "capped", "cap": 7})
    shas = {federations.sha(trained(tiny_federation, rounds=rule).vector) for rule in rules}
    assert len(shas) == 1


def test_sites_of_unequal_size_weigh_by_their_samples_up_to_a_cap(tiny_federation: Make) -> None:
    unequal = {"split": {"name": "quantity", "sites": 3, "alpha": 0.5, "min_samples": 5}}
    weighted = [
        tiny_federation(**unequal, rounds={"rounds": 1, **rule})
        for rule in (
            {"weighting": "samples"},
            {"weighting": "uniform"},
            {"weighting": "capped", "cap": 30},
        )
    ]
    sizes = [weighted[0].size(site) for site in range(3)]
    capped = [min(size, 30) for size in sizes]
    assert len({str(sizes), str(capped), "[30, 30, 30]"}) == 3
    for federation, weights in zip(weighted, (sizes, [1, 1, 1], capped), strict=True):
        client = Client(federation)
        with one_thread():
            deltas = torch.stack(
                [
                    client.step(Order(1, start(federation)), site, {}).payload["delta"].double()
                    for site in range(3)
                ]
            )
        mean = (torch.tensor(weights).double()[:, None] * deltas).sum(0) / sum(weights)
        result = federations.learn(federation).vector
        torch.testing.assert_close(
            result.double(), start(federation).double() + mean, rtol=0, atol=5e-7
        )


def test_batchnorm_statistics_after_a_round_are_the_pooled_moments(tiny_federation: Make) -> None:
    federation = tiny_federation(
        model={"norm": "batch"},
        split={"name": "quantity", "sites": 3, "min_samples": 8},
        train={"lr": 0.2},
        rounds={"rounds": 1},
    )
    client = Client(federation)
    layout, vector = client.layout, start(federation)
    entries = {entry.name: entry for entry in layout.entries}
    sites = []
    with one_thread():
        for site in range(3):
            client.step(Order(1, vector), site, {})
            sites.append(layout.state_dict(client.vector))
    share = torch.tensor([federation.size(site) for site in range(3)]).double()
    share /= share.sum()
    result = layout.state_dict(federations.learn(federation).vector)
    for norm in ("norm0", "norm1"):
        means = torch.stack([site[f"{norm}.running_mean"] for site in sites]).double()
        variances = torch.stack([site[f"{norm}.running_var"] for site in sites]).double()
        mean = (share[:, None] * means).sum(0)
        variance = (share[:, None] * (variances + (means - mean).square())).sum(0)
        torch.testing.assert_close(result[f"{norm}.running_mean"].double(), mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            result[f"{norm}.running_var"].double(), variance, rtol=0, atol=2e-6
        )
        assert (variance - (share[:, None] * variances).sum(0)).abs().max() > 1e-5
    assert entries["norm0.running_var"].stop <= layout.travelling.stop


def test_order_of_the_cohort_does_not_matter(tiny_federation: Make) -> None:
    federation = tiny_federation(split={"sites": 5})
    vector = start(federation)
    outcomes = []
    for cohort in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1]):
        engine = InProcessEngine(federation)
        outcomes.append(collect(engine, Order(1, vector), cohort))
        engine.close()
    one, other = (outcome.total.sums["delta"] for outcome in outcomes)
    assert torch.equal(one.total, other.total)
    assert (one.weight, one.count) == (other.weight, other.count) == (120, 5)


def test_the_only_site_taken_alone_equals_the_federation_of_one(tiny_federation: Make) -> None:
    federation = tiny_federation(split={"sites": 1})
    alone, pooled = federation.alone(0), federation.all_pooled()
    whole = federations.sha(federations.learn(federation).vector)
    assert federations.sha(federations.learn(alone).vector) == whole
    assert (pooled.population, pooled.size(0), pooled.name(0)) == (1, 120, "pooled")
    assert (
        federations.sha(federations.learn(pooled).vector) != whole
    )  # other batches: its name is another


def test_loop_goes_on_from_any_checkpoint_to_the_same_end(tiny_federation: Make) -> None:
    federation = tiny_federation(algorithm={"name": "fedyogi"}, rounds={"rounds": 3, "cohort": 2})
    diary = federations.Diary()
    whole = federations.learn(federation, diary=diary)
    for checkpoint in diary.checkpoints:
        engine = InProcessEngine(federation)
        again = run(Session(federation), engine, federations.overall(federation), start=checkpoint)
        engine.close()
        assert federations.sha(again.vector) == federations.sha(whole.vector)
        assert federations.same_sums(again.sums, whole.sums)
