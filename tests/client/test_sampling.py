"""The order of an epoch: shuffled, or with every class equally often."""

from __future__ import annotations

import federations
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.client.sampling import balanced, order_of
from fedsight.core.rng import generator
from fedsight.program.train import Train

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(torch.tensor)


@given(labels=LABELS, seed=st.integers(0, 9))
def test_classes_come_equally_often_and_their_images_in_turn(
    labels: torch.Tensor, seed: int
) -> None:
    order = balanced(labels, generator(seed))
    assert len(order) == len(labels)
    counts = torch.bincount(labels[order])[labels.unique()]
    assert int(counts.max() - counts.min()) <= 1
    seen = torch.bincount(order, minlength=len(labels))
    for kind in labels.unique():
        mine = seen[labels == kind]
        assert int(mine.max() - mine.min()) <= 1


def test_balanced_classes_are_a_permutation_and_draws_decide() -> None:
    labels = torch.arange(40) % 4
    assert torch.equal(balanced(labels, generator(0)).sort().values, torch.arange(40))
    assert torch.equal(balanced(labels, generator(0)), balanced(labels, generator(0)))
    assert not torch.equal(balanced(labels, generator(0)), balanced(labels, generator(1)))


def test_shuffled_is_pytorchs_own_permutation() -> None:
    drawn = order_of(Train(), torch.zeros(9))(generator(3))
    assert torch.equal(drawn, torch.randperm(9, generator=generator(3)))


def test_a_class_that_is_rare_at_a_site_is_learnt_sooner_with_it() -> None:
    """On images of which most are of one class."""
    rare = {}
    for sampling in ("shuffled", "balanced"):
        of = federations.federation(
            split={"name": "dirichlet", "alpha": 0.2, "sites": 2},
            data={"train": 400, "test": 200},
            train={"sampling": sampling, "epochs": 3},
            rounds={"rounds": 4},
        )
        diary = federations.Diary()
        federations.learn(of, diary=diary)
        rare[sampling] = diary.lines[-1]["balanced_accuracy"]
    assert rare["balanced"] > rare["shuffled"]
