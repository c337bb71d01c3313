"""Seeds of their own: split, model and training each follow theirs, and else the program's."""

from __future__ import annotations

from typing import Any

import federations
import numpy as np
import pytest
import torch

from fedsight.coordinator.protection import Protection
from fedsight.engines.in_process import InProcessEngine
from fedsight.program.federation import Federation

NOISE = {"kind": "noise", "strength": 0.3}


def opened(seed: int, **sections: Any) -> Federation:
    return federations.federation(seed=seed, shift=NOISE, **sections)


def shares(federation: Federation) -> list[list[int]]:
    return [
        federation.partition.indices(site).tolist() for site in range(len(federation.partition))
    ]


def seen(federation: Federation) -> torch.Tensor:
    """The first training images as the last site sees them, noise included."""
    return federation.client(2).pixels(torch.arange(4))


def trained(federation: Federation) -> torch.Tensor:
    return federations.learn(federation).vector


def test_without_seeds_of_their_own_all_follow_the_programs() -> None:
    program = federations.program(seed=5)
    assert (program.split_seed, program.model_seed, program.train_seed) == (5, 5, 5)
    said = federations.program(seed=1, split={"seed": 5}, model={"seed": 5}, train={"seed": 5})
    assert (said.split_seed, said.model_seed, said.train_seed) == (5, 5, 5)
    one, other = opened(5), opened(1, split={"seed": 5}, model={"seed": 5}, train={"seed": 5})
    assert shares(one) == shares(other)
    assert torch.equal(one.initial, other.initial)
    assert torch.equal(trained(one), trained(other))


def test_a_seed_of_the_split_holds_images_and_noise_and_lets_the_model_vary() -> None:
    one, other = opened(0, split={"seed": 9}), opened(1, split={"seed": 9})
    assert shares(one) == shares(other) == shares(opened(9))
    assert torch.equal(seen(one), seen(other))
    assert not torch.equal(one.initial, other.initial)
    moved = opened(0, split={"seed": 8})
    assert shares(moved) != shares(one)
    assert torch.equal(moved.initial, one.initial)


def test_a_seed_of_the_split_holds_the_images_that_are_set_aside() -> None:
    one, other, free = (
        opened(seed, split={"seed": 9} if own else {}, rounds={"validation": 0.2})
        for seed, own in ((0, True), (1, True), (1, False))
    )
    assert one.aside is not None
    assert other.aside is not None
    assert all(np.array_equal(a, b) for a, b in zip(one.aside, other.aside, strict=True))
    assert free.aside is not None
    assert not all(np.array_equal(a, b) for a, b in zip(one.aside, free.aside, strict=True))


def test_a_seed_of_the_model_holds_its_initial_weights() -> None:
    one, other = opened(0, model={"seed": 9}), opened(1, model={"seed": 9})
    assert torch.equal(one.initial, other.initial)
    assert torch.equal(one.initial, opened(9).initial)
    assert shares(one) != shares(other)


@pytest.mark.parametrize("held", ["train", "nothing"])
def test_a_seed_of_training_holds_the_order_of_images(held: str) -> None:
    """With split and model held too, nothing is left that could differ."""
    own: dict[str, Any] = {"split": {"seed": 9}, "model": {"seed": 9}}
    if held == "train":
        own["train"] = {"seed": 9, "augment": ["shift"]}
    one, other = (trained(opened(seed, **own)) for seed in (0, 1))
    assert torch.equal(one, other) == (held == "train")


def test_a_seed_of_training_holds_the_cohorts() -> None:
    def cohorts(seed: int, **own: Any) -> list[list[int]]:
        federation = opened(seed, rounds={"cohort": 2, "rounds": 20}, **own)
        return [Protection(federation).cohort(round) for round in range(1, 21)]

    assert cohorts(0, train={"seed": 9}) == cohorts(1, train={"seed": 9}) == cohorts(9)
    assert cohorts(0) != cohorts(1)


def test_a_seed_that_is_not_set_leaves_the_fingerprint_as_it_was() -> None:
    """Noise of simulations follows from the fingerprint."""
    program = federations.program()
    assert program.fingerprint == (
        "e22a6ecba8eaee17848a8c47e3c883db9380f1ecf8774fbd4434eb6418dcc0f1"
    )
    assert federations.program(split={"seed": 0}).fingerprint != program.fingerprint
    assert federations.program(model={"seed": 0}).fingerprint != program.fingerprint
    assert federations.program(train={"seed": 0}).fingerprint != program.fingerprint


def test_pooled_training_with_a_seed_of_its_own_does_not_depend_on_the_split() -> None:
    def pooled(seed: int, **own: Any) -> torch.Tensor:
        federation = federations.federation(seed=seed, **own).all_pooled()
        engine = InProcessEngine(federation)
        try:
            return federations.learn(federation, engine).vector
        finally:
            engine.close()

    own = {"model": {"seed": 9}, "train": {"seed": 9}}
    assert torch.equal(pooled(0, **own), pooled(1, **own))
    # The order of the images is the sites' otherwise, and so the split's.
    assert not torch.equal(pooled(9, split={"seed": 0}), pooled(9, split={"seed": 1}))


@pytest.mark.parametrize(
    ("sections", "follows"),
    [
        ({}, True),
        ({"model": {"seed": 0}, "train": {"seed": 0}}, True),
        ({"split": {"seed": 0}, "model": {"seed": 0}}, True),
        ({"split": {"seed": 0}, "model": {"seed": 0}, "train": {"seed": 0}}, False),
        ({"split": {"name": "natural"}, "model": {"seed": 0}, "train": {"seed": 0}}, False),
        (
            {
                "split": {"name": "natural"},
                "rounds": {"validation": 0.1},
                "model": {"seed": 0},
                "train": {"seed": 0},
            },
            True,
        ),
        (
            {
                "split": {"name": "natural"},
                "shift": NOISE,
                "model": {"seed": 0},
                "train": {"seed": 0},
            },
            True,
        ),
    ],
)
def test_a_program_knows_whether_anything_follows_its_seed(
    sections: dict[str, Any], follows: bool
) -> None:
    assert federations.program(**sections).follows_seed == follows
