"""The same number of local steps at every site (`train.steps`), whatever its number of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import federations
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.client.company import Company
from fedsight.client.pace import Pace
from fedsight.client.sampling import order_of
from fedsight.client.step import Client
from fedsight.client.training import GradientSteps, batches, unending
from fedsight.core.rng import generator
from fedsight.core.types import Order, Reply
from fedsight.privacy.mechanisms.example import Example, steps
from fedsight.program.federation import Federation
from fedsight.program.program import Program
from fedsight.program.train import Train
from fedsight.program.virtual_time import VirtualTime
from fedsight.program.workload import passes_of

UNEQUAL = {"name": "quantity", "sites": 4, "min_samples": 5}
STEPS, BATCH, LR = 5, 20, 0.05


def replies(of: Federation, **shared: Tensor) -> Iterator[tuple[int, Reply]]:
    """The number of images and the reply of each site in the first round."""
    client, order = Client(of), Order(1, of.initial[of.layout.travelling], shared)
    for site in range(of.population):
        yield of.size(site), client.step(order, site, {})


# -- batches ---------------------------------------------------------------------------------------


@given(st.integers(0, 9), st.integers(1, 40), st.integers(1, 50), st.integers(0, 9))
def test_every_batch_is_full_and_no_image_comes_more_often_than_once_more(
    count: int, samples: int, size: int, seed: int
) -> None:
    made = list(unending(count, samples, size, generator(seed)))
    assert [len(batch) for batch in made] == [size] * count
    seen = torch.bincount(torch.cat([*made, torch.empty(0, dtype=torch.int64)]), minlength=samples)
    assert int(seen.max() - seen.min()) <= 1


@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 3), st.integers(0, 9))
def test_batches_of_whole_passes_are_those_of_epochs(
    parts: int, size: int, epochs: int, seed: int
) -> None:
    samples = parts * size
    made = unending(epochs * parts, samples, size, generator(seed))
    for one, other in zip(made, batches(epochs, samples, size, generator(seed)), strict=True):
        assert torch.equal(one, other)


def test_a_site_without_images_takes_no_step() -> None:
    assert not list(unending(3, 0, 4, generator(0)))


def test_independent_draws_do_not_depend_on_how_often_an_image_is_there() -> None:
    """PyTorch's whole numbers below n are drawn ones modulo n, so the images that a site draws are
    the same if it has all of them twice, and so is what it learns from them."""
    train = Train(sampling="independent")
    drawn = [
        torch.cat(list(unending(40, n, 7, generator(3), order_of(train, torch.zeros(n))))) % 9
        for n in (9, 18, 27)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    counts = torch.bincount(drawn[0], minlength=9)
    assert int(counts.max() - counts.min()) > 1, "nor on which images were drawn before"


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"norm": "batch", "dropout": 0.3}, "train": {"augment": ["flip", "shift"]}},
        {"train": {"schedule": "cosine", "schedule_by": "step", "sampling": "balanced"}},
        {"algorithm": {"name": "scaffold"}},
        {"algorithm": {"name": "apfl"}},
        {"algorithm": {"name": "moon"}, "train": {"optimiser": "adamw", "lr": 0.01}},
    ],
    ids=str,
)
def test_the_steps_of_whole_epochs_are_these_epochs_bit_for_bit(sections: dict[str, Any]) -> None:
    shas = set()
    for length in ({"epochs": 2}, {"steps": 10}):  # of 40 images each
        train = {**sections.get("train", {}), **length, "batch": 8}
        of = federations.federation(**{**sections, "train": train})
        shas.add(federations.sha(federations.learn(of).vector))
    assert len(shas) == 1


@pytest.mark.parametrize(
    ("name", "own", "fixed"),
    [
        ("fedrep", {"head_epochs": 2}, {"head_steps": 10}),
        ("ditto", {"own_epochs": 2}, {"own_steps": 10}),
    ],
)
def test_phases_of_their_own_length_are_counted_in_steps_too(
    name: str, own: dict[str, Any], fixed: dict[str, Any]
) -> None:
    shas = set()
    for length, given_own in (({"epochs": 1}, own), ({"steps": 5}, fixed)):
        of = federations.federation(
            algorithm={"name": name, **given_own}, train={**length, "batch": 8}
        )
        _, reply = next(replies(of))
        kept = reply.memory["personal"]
        shas.add((federations.sha(reply.payload["delta"]), federations.sha(kept)))
    assert len(shas) == 1


@pytest.mark.parametrize("sampling", ["shuffled", "balanced", "independent"])
def test_sites_of_any_size_take_as_many_steps_and_see_as_many_images(sampling: str) -> None:
    train = {"steps": STEPS, "batch": BATCH, "lr": LR, "sampling": sampling}
    of = federations.federation(split=UNEQUAL, train=train, algorithm={"name": "fednova"})
    found = list(replies(of))
    sizes = {size for size, _ in found}
    assert len(sizes) == 4
    assert min(sizes) < BATCH < max(sizes)
    for size, reply in found:
        assert float(reply.payload["length"]) == pytest.approx(STEPS * LR)
        assert reply.metrics["train_loss"].count == STEPS * BATCH
        training = GradientSteps(torch.no_grad)
        assert Pace.of(of.program, 1, training, size).steps == STEPS


def test_fednova_and_fedavg_are_one_where_all_sites_take_as_many_steps() -> None:
    """tau_i is the same for all, so normalising by it changes nothing (Wang et al. 2020)."""
    found = {}
    for name in ("fedavg", "fednova"):
        for length in ({"steps": STEPS}, {"epochs": 2}):
            of = federations.federation(
                split=UNEQUAL, train={**length, "batch": 8}, algorithm={"name": name}
            )
            found[name, *length] = federations.learn(of).vector
    torch.testing.assert_close(
        found["fednova", "steps"], found["fedavg", "steps"], atol=1e-6, rtol=0
    )
    assert (found["fednova", "epochs"] - found["fedavg", "epochs"]).abs().max() > 1e-4


def test_scaffolds_controls_are_means_over_as_many_steps_at_every_site() -> None:
    """Option II in the first round: c_i+ = (x - y) / (K lr), with the same K everywhere."""
    train = {"steps": STEPS, "batch": BATCH, "lr": LR}
    of = federations.federation(split=UNEQUAL, train=train, algorithm={"name": "scaffold"})
    for _, reply in replies(of, control=torch.zeros(of.layout.shared.stop)):
        expected = -reply.payload["delta"] / (STEPS * LR)
        torch.testing.assert_close(reply.payload["control"], expected)


def test_sites_trained_side_by_side_take_the_steps_of_one_after_the_other() -> None:
    of = federations.federation(train={"steps": 7, "batch": 16, "sampling": "independent"})
    client, order = Company(of), Order(1, of.initial[of.layout.travelling], {})
    together = client.together(order, [0, 1, 2])
    assert together is not None
    for number, reply in enumerate(together):
        alone = client.step(order, number, {})
        assert isinstance(reply, Reply)
        known = alone.payload["delta"]
        assert (reply.payload["delta"] - known).norm() <= 1e-4 * known.norm()
        assert reply.metrics["train_loss"].count == 7 * 16


# -- what is computed from the number of steps -----------------------------------------------------


def test_dp_sgd_takes_and_accounts_the_stated_steps_whatever_the_number_of_images() -> None:
    mechanism = Example(epsilon=8.0, delta=1e-3, noise_multiplier=1.5)
    of = federations.federation(
        split=UNEQUAL,
        train={"steps": STEPS, "batch": BATCH, "lr": LR},
        privacy=mechanism.table(),
        algorithm={"name": "fednova"},
    )
    for size, reply in replies(of):
        assert float(reply.payload["length"]) == pytest.approx(STEPS * LR)
        plan = replace(of.plan, sizes=(size,))
        assert steps(plan, size) == STEPS
        ((_, times),) = mechanism.events(plan, 3, 1.5)
        assert times == 3 * STEPS
    assert (of.plan.passes, of.plan.steps) == (1, STEPS)


def test_with_one_pass_of_steps_dp_sgd_costs_what_an_epoch_costs() -> None:
    spent = set()
    for length in ({"epochs": 2}, {"steps": 10}):  # of 40 images
        mechanism = Example(epsilon=8.0, delta=1e-3, noise_multiplier=1.5)
        of = federations.federation(train={**length, "batch": 8}, privacy=mechanism.table())
        spent.add(mechanism.spent(of.plan, 2))
    assert len(spent) == 1


def test_virtual_time_is_that_of_the_steps_and_a_slow_site_takes_fewer() -> None:
    groups = [{"sites": ["site-01"], "images_per_second": 4.0}]
    groups += [{"sites": ["site-02"], "images_per_second": 0.5}]
    of = federations.federation(
        timing={"images_per_second": 100.0, "partial": True, "groups": groups},
        train={"steps": 25, "batch": 8},
        rounds={"deadline": 30.0},
    )
    time = VirtualTime(of)
    done = [time.lessened(1, of.name(client), of.size(client)).train.steps for client in range(3)]
    assert done == [25, 15, 1]
    assert [time.seconds(1, client) for client in range(3)] == [2.0, 30.0, 16.0]


def test_passes_are_counted_by_the_images_seen() -> None:
    of: Program = federations.program(train={"steps": 6, "batch": 10})
    assert passes_of(of, 40) == 1.5
    assert passes_of(of, 4) == 15
    private = federations.program(
        train={"steps": 6, "batch": 10}, privacy={"name": "example", "epsilon": 1.0}
    )
    assert passes_of(private, 4) == 6, "a step of DP-SGD sees no image twice"


# -- what does not go together ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "where", "cause"),
    [
        ({"train": {"steps": 3, "epochs": 2}}, "train.steps", "train.epochs says"),
        (
            {"train": {"steps": 3}, "algorithm": {"name": "fedrep"}},
            "algorithm.head_steps",
            "the head needs its own",
        ),
        (
            {"train": {"steps": 3}, "algorithm": {"name": "fedrep", "head_epochs": 2}},
            "algorithm.head_epochs",
            "counted in steps",
        ),
        ({"algorithm": {"name": "ditto", "own_steps": 2}}, "algorithm.own_steps", "in epochs"),
        (
            {
                "train": {"sampling": "independent"},
                "privacy": {"name": "example", "epsilon": 3.0},
            },
            "train.sampling",
            "draws the images of a step by itself",
        ),
        (
            {"train": {"steps": 3}, "algorithm": {"name": "ridge"}, "rounds": {"rounds": 1}},
            "train.steps",
            "without effect",
        ),
    ],
)
def test_settings_that_do_not_go_together(sections: dict[str, Any], where: str, cause: str) -> None:
    (problem,) = federations.program(**sections).check()
    assert problem.where == where
    assert cause in problem.cause


def test_one_stated_epoch_and_none_stated_are_the_same_training() -> None:
    assert Train() == Train(epochs=1)
    assert Train().table() == Train(epochs=1).table()
    assert Train(steps=3).epochs is None
    both = Train(steps=3, epochs=1)
    assert [problem.where for problem in both.check()] == ["train.steps"]
