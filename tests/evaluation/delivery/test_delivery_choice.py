"""The models that a site can get, and which one it chooses on its held-out images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import federations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsight.client.step import Client
from fedsight.coordinator.loop import run
from fedsight.coordinator.session import Session
from fedsight.engines.in_process import InProcessEngine
from fedsight.evaluation.delivery import choice, tuned
from fedsight.evaluation.delivery.base import Candidate, Delivery, SiteModels, deliveries
from fedsight.evaluation.delivery.choice import HeldOut, choose, offsets, unchosen
from fedsight.evaluation.delivery.corrected import STRENGTHS
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

SPEED = Speed(device="cpu")
SKEWED: dict[str, Any] = {
    "data": {"train": 600, "test": 100},
    "split": {"name": "dirichlet", "sites": 3, "alpha": 0.3},
    "rounds": {"rounds": 1, "validation": 0.3},
}


def models(of: Federation, site: int = 0, shared: Tensor | None = None) -> SiteModels:
    """A site with two networks of other seeds, as its own and as the shared one."""
    client = Client(of.alone(site), SPEED)
    odds = offsets(of, site)
    given = client.initial.clone() if shared is None else shared
    alone = client.initial + 0.01 * torch.randn(len(client.initial), generator=seeded(1))
    ratios = None if odds is None else torch.from_numpy(odds).float()
    return SiteModels(client, SPEED, given, alone, ratios)


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def scores(at: SiteModels, vector: Tensor, held: HeldOut) -> Tensor:
    """Logits [n, classes] of the held-out images."""
    client = at.load(vector)
    client.model.eval()
    with torch.inference_mode():
        batch = client.batch(held.data, torch.arange(len(held.data)))
        return client.model(batch.x).clone()


@pytest.fixture(scope="module")
def skewed() -> Federation:
    """Three sites with other mixes of labels, and validation images."""
    return federations.federation(**SKEWED)


def held_out(of: Federation, site: int = 0) -> HeldOut:
    """The site's validation images, of which there are enough."""
    found = HeldOut.of(of, site)
    assert found is not None
    return found


def test_the_correction_is_bayes_rule_for_another_mix_of_labels(skewed: Federation) -> None:
    # p(y | x) at the site is p(y | x) of the federation times how much likelier y is there.
    at, held = models(skewed), held_out(skewed)
    made = {c.settings["strength"]: c for c in deliveries.get("corrected")().candidates(at)}
    assert sorted(made) == list(STRENGTHS)
    before = torch.softmax(scores(at, at.shared, held).double(), 1)
    after = torch.softmax(scores(at, made[1.0].vector, held).double(), 1)
    sites = [skewed.partition.indices(site) for site in range(3)]
    labels = skewed.dataset.train.labels
    here = np.bincount(labels[sites[0]], minlength=10) + 0.5
    everywhere = np.bincount(labels[np.concatenate(sites)], minlength=10) + 0.5
    ratio = torch.from_numpy((here / here.sum()) / (everywhere / everywhere.sum()))
    expected = before * ratio / (before * ratio).sum(1, keepdim=True)
    assert torch.allclose(after, expected, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-2)


def test_where_privacy_hides_the_others_counts_only_the_sites_own_are_used() -> None:
    private = {"name": "central", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-2}
    rounds = {**SKEWED["rounds"], "weighting": "uniform"}
    of = federations.federation(**{**SKEWED, "rounds": rounds}, privacy=private)
    here = np.bincount(of.dataset.train.labels[of.partition.indices(0)], minlength=10) + 0.5
    found = offsets(of, 0)
    assert found is not None
    assert np.allclose(np.exp(found) / np.exp(found).sum(), here / here.sum())


def test_only_the_heads_biases_are_corrected(skewed: Federation) -> None:
    at = models(skewed)
    for candidate in deliveries.get("corrected")().candidates(at):
        changed = {
            entry.name
            for entry in at.client.layout.entries
            if not torch.equal(entry.view(candidate.vector), entry.view(at.shared))
        }
        assert len(changed) == 1
        assert changed < at.client.network.head


def test_tasks_that_do_not_score_classes_are_not_corrected(skewed: Federation) -> None:
    at = replace(models(skewed), offsets=None)
    assert not list(deliveries.get("corrected")().candidates(at))
    kinds = [c.settings for c in deliveries.get("tuned")().candidates(at)]
    assert kinds == [{"share": 0.5}, {"share": 1.0}]


def test_tuning_lowers_the_loss_on_the_sites_images_and_half_way_is_half_way(
    skewed: Federation,
) -> None:
    at = models(skewed)
    half, whole = [
        c for c in deliveries.get("tuned")().candidates(at) if "strength" not in c.settings
    ]
    assert torch.allclose(half.vector, (at.shared + whole.vector) / 2, atol=1e-6)
    data, task = at.client.federation.client(0), skewed.program.task

    def loss(vector: Tensor) -> float:
        return task.summary(at.load(vector).measure_all(data))["loss"]

    assert loss(whole.vector) < loss(at.shared) - 0.01


def test_every_learning_rate_is_a_third_while_tuning(
    skewed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [{"params": ["head"], "lr": 0.3}]
    of = federations.federation(
        **SKEWED, train={"lr": 0.06, "schedule": "cosine", "groups": groups}
    )
    seen: list[Any] = []
    real = tuned.Client.step
    monkeypatch.setattr(
        tuned.Client,
        "step",
        lambda self, *given: (seen.append(self.federation), real(self, *given))[1],
    )
    at = models(of)
    list(deliveries.get("tuned")().candidates(at))
    used = seen[0].program.train
    assert used.lr == pytest.approx(0.02)
    assert used.groups[0].lr == pytest.approx(0.1)
    assert (used.epochs, used.schedule) == (2, "constant")
    assert seen[0].network is at.client.federation.network, "built once in a process"


def test_tuning_moves_running_statistics_too() -> None:
    of = federations.federation(**SKEWED, model={"name": "small_cnn", "width": 4, "norm": "batch"})
    at = models(of)
    whole = [c for c in deliveries.get("tuned")().candidates(at) if c.settings == {"share": 1.0}]
    for entry in at.client.layout.entries:
        if entry.name.endswith("running_var"):
            assert bool((entry.view(whole[0].vector) > 0).all())
            assert not torch.equal(entry.view(whole[0].vector), entry.view(at.shared))


def test_algorithms_that_take_no_steps_are_not_tuned() -> None:
    of = federations.federation(**SKEWED, algorithm={"name": "ncm"})
    assert not list(deliveries.get("tuned")().candidates(models(of)))


@pytest.fixture(scope="module")
def learnt(skewed: Federation) -> Tensor:
    """What the three sites have trained together in a few rounds."""
    rounds = skewed.program.rounds.model_copy(update={"rounds": 4})
    longer = skewed.under(replace(skewed.program, rounds=rounds))
    engine = InProcessEngine(longer)
    try:
        return run(Session(longer), engine, lambda sums: {}).vector
    finally:
        engine.close()


@settings(deadline=None, max_examples=10)
@given(power=st.integers(-2, 2))
def test_how_sure_a_model_is_does_not_decide(
    skewed: Federation, learnt: Tensor, power: int
) -> None:
    at, held = models(skewed, shared=learnt), held_out(skewed)
    surer = at.shared.clone()
    for entry in at.client.layout.entries:
        if entry.name in at.client.network.head:
            entry.view(surer).mul_(2.0**power)
    usual, scaled = (held.loss(at.load(vector)) for vector in (at.shared, surer))
    assert scaled == pytest.approx(usual, abs=2e-3)


class Fixed(Delivery):
    """Candidates of a test."""

    nearest: ClassVar[int] = 0
    made: ClassVar[list[Candidate]] = []

    def candidates(self, at: SiteModels) -> Iterable[Candidate]:
        """Those."""
        return self.made


class Losses:
    """Held-out images on which losses are given, by the first value of a vector."""

    images = 50

    def __init__(self, by_value: dict[float, float]) -> None:
        self.by_value = by_value

    def loss(self, client: Client) -> float:
        """The one given."""
        return self.by_value[round(float(client.vector[0]), 3)]

    def figure(self, client: Client) -> float:
        """None is known."""
        return float("nan")


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Delivery]]:
    """A registry of a test's own."""
    found: dict[str, type[Delivery]] = {}
    monkeypatch.setattr(choice.deliveries, "names", lambda: sorted(found))
    monkeypatch.setattr(choice.deliveries, "get", found.__getitem__)
    return found


def vectors(at: SiteModels, *values: float) -> list[Tensor]:
    """Vectors that differ in their first value."""
    made = []
    for value in values:
        made.append(at.shared.clone())
        made[-1][0] = value
    return made


def kind(name: str, nearest: int, *made: Tensor) -> type[Delivery]:
    """A kind with these candidates."""
    every = [Candidate(name, vector) for vector in made]
    return type(name, (Fixed,), {"nearest": nearest, "made": every})


def test_the_lowest_loss_is_taken_and_each_kind_shows_its_best(
    skewed: Federation, kinds: dict[str, type[Delivery]]
) -> None:
    at = models(skewed)
    one, two, three = vectors(at, 1.0, 2.0, 3.0)
    kinds |= {"near": kind("near", 0, one, two), "far": kind("far", 1, three)}
    found = choose(at, Losses({1.0: 0.5, 2.0: 0.3, 3.0: 0.4}))  # type: ignore[arg-type]
    assert (found.taken.kind, found.losses) == ("near", {"near": 0.3, "far": 0.4})
    assert torch.equal(found.taken.vector, two)


def test_of_equal_models_the_nearest_to_the_shared_one_is_taken(
    skewed: Federation, kinds: dict[str, type[Delivery]]
) -> None:
    at = models(skewed)
    one, two = vectors(at, 1.0, 2.0)
    kinds |= {"a far one": kind("a far one", 3, one), "near": kind("near", 0, two)}
    unknown = {1.0: np.inf, 2.0: np.inf}
    for losses in ({1.0: 0.5, 2.0: 0.5}, unknown):
        assert choose(at, Losses(losses)).taken.kind == "near"  # type: ignore[arg-type]
    plain = choose(at, Losses(unknown)).plain()  # type: ignore[arg-type]
    assert plain["by_kind"]["near"] == {"loss": None, "figure": None}


def test_where_nothing_can_be_chosen_or_corrected_it_is_the_shared_model(
    skewed: Federation,
) -> None:
    at = models(skewed)
    assert unchosen(at).taken.settings == {"strength": 0.5}
    plain = unchosen(replace(at, offsets=None))
    assert plain.taken.kind == "shared"
    assert torch.equal(plain.taken.vector, at.shared)
    assert plain.plain()["held_out"] == 0


def test_too_few_images_are_nothing_to_choose_by(monkeypatch: pytest.MonkeyPatch) -> None:
    few = federations.federation(
        data={"train": 120}, rounds={"validation": 0.3}, split={"name": "iid", "sites": 3}
    )
    assert len(few.aside[0]) == 12 if few.aside else False
    assert HeldOut.of(few, 0) is None
    monkeypatch.setattr(choice, "LEAST", 12)
    assert HeldOut.of(few, 0) is not None
    assert HeldOut.of(federations.federation(), 0) is None, "nothing is held out"
