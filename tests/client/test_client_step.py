"""The client step: batches, dropout, clipping, views and cohorts."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import federations
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.client.step import Client
from fedsight.client.training import batches
from fedsight.coordinator.protection import Protection
from fedsight.core.layout import Kind
from fedsight.core.rng import generator
from fedsight.core.types import Order, Reply
from fedsight.data.splits.virtual import Population
from fedsight.program import program as program_module
from fedsight.program.federation import Federation
from fedsight.program.program import Speed
from fedsight.program.views import View

Make = Callable[..., Federation]


def step(federation: Federation, round: int = 1, client: int = 0, **memory: Tensor) -> Reply:
    worker = Client(federation)
    vector = worker.initial[worker.layout.travelling].clone()
    return worker.step(Order(round, vector), client, memory)


def test_with_partial_work_a_sites_own_model_trains_fewer_epochs_too() -> None:
    """At 8 images a second, 40 images twice an epoch: 10 s for one epoch of both models."""
    algorithm = {"name": "ditto"}
    timing = {"images_per_second": 8.0, "partial": True}
    partly = federations.federation(
        algorithm=algorithm, timing=timing, train={"epochs": 3}, rounds={"deadline": 10.0}
    )
    once = federations.federation(algorithm=algorithm)
    found, expected = step(partly), step(once)
    assert torch.equal(found.memory["personal"], expected.memory["personal"])
    assert torch.equal(found.payload["delta"], expected.payload["delta"])


# -- batches ---------------------------------------------------------------------------------------


@given(st.integers(1, 70), st.integers(1, 3), st.integers(1, 40), st.integers(0, 9))
@example(samples=33, epochs=2, size=16, seed=0)
@example(samples=3, epochs=1, size=1, seed=0)
@example(samples=1, epochs=1, size=8, seed=0)
def test_every_sample_comes_once_an_epoch_and_none_is_left_single(
    samples: int, epochs: int, size: int, seed: int
) -> None:
    made = list(batches(epochs, samples, size, generator(seed)))
    sizes = [len(batch) for batch in made]
    per_epoch = len(made) // epochs
    for epoch in range(epochs):
        mine = made[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(torch.cat(mine).tolist()) == list(range(samples))
    assert max(sizes) <= size + (size > 1)
    if samples > 1 and size > 1:
        assert min(sizes) > 1
    assert per_epoch == -(-samples // size) - (1 < size < samples and samples % size == 1)
    again = list(batches(epochs, samples, size, generator(seed)))
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))


def test_epochs_and_rounds_are_shuffled_differently() -> None:
    first, second = batches(2, 50, 50, generator(0, "round", 1))
    (third,) = batches(1, 50, 50, generator(0, "round", 2))
    assert len({tuple(order.tolist()) for order in (first, second, third)}) == 3


# -- one step --------------------------------------------------------------------------------------


def test_step_repeats_exactly_and_leaves_torchs_own_generator_alone(tiny_federation: Make) -> None:
    federation = tiny_federation(
        model={"dropout": 0.5}, train={"augment": ("flip", "shift", "brightness", "erase")}
    )
    shas = set()
    for seed in (1, 2):
        torch.default_generator.manual_seed(seed)
        before = torch.get_rng_state()
        shas.add(federations.sha(step(federation).payload["delta"]))
        assert torch.equal(torch.get_rng_state(), before)
    assert len(shas) == 1
    assert federations.sha(step(federation, round=2).payload["delta"]) not in shas
    plain = tiny_federation(train={"augment": ("flip", "shift", "brightness", "erase")})
    assert federations.sha(step(plain).payload["delta"]) not in shas  # dropout was there


def test_step_seeds_no_accelerator(tiny_federation: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a client step seeded every device")

    monkeypatch.setattr(torch, "manual_seed", forbidden)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", forbidden)
    step(tiny_federation())


def test_one_client_object_serves_one_site_after_the_other_without_a_trace(
    tiny_federation: Make,
) -> None:
    federation = tiny_federation()
    counting = federations.Counting(norm="batch", dropout=0.2)
    worker = Client(replace(federation, program=replace(federation.program, model=counting)))
    order = Order(1, worker.initial[worker.layout.travelling].clone())
    shas = [
        federations.sha(worker.step(order, client, {}).payload["delta"]) for client in (0, 1, 0)
    ]
    assert shas[0] == shas[2] != shas[1]
    assert torch.equal(order.vector, worker.initial[worker.layout.travelling])


def test_clip_bounds_each_steps_gradient(tiny_federation: Make) -> None:
    clipped = step(tiny_federation(train={"clip": 1e-3, "lr": 0.5, "batch": 40}))
    free = step(tiny_federation(train={"lr": 0.5, "batch": 40}))
    norm = clipped.payload["delta"].norm()
    assert norm == pytest.approx(0.5 * 1e-3, rel=1e-3)
    torch.testing.assert_close(
        clipped.payload["delta"] / norm,
        free.payload["delta"] / free.payload["delta"].norm(),
        rtol=1e-3,
        atol=1e-4,
    )


def test_reply_says_what_was_learnt_and_from_how_much(tiny_federation: Make) -> None:
    federation = tiny_federation(train={"epochs": 3}, algorithm={"name": "fedrep"})
    reply = step(federation)
    assert (reply.site, reply.weight) == ("site-00", 40)
    assert reply.metrics["train_loss"].count == 40 * (3 + 1)  # the head's epoch, then the body's
    assert 1 < reply.metrics["train_loss"].mean < 4
    assert set(reply.memory) == {"personal"}
    uniform = tiny_federation(rounds={"weighting": "uniform"})
    assert step(uniform).weight == 1


def test_body_and_head_learn_in_their_own_phases_only(tiny_federation: Make) -> None:
    federation = tiny_federation(algorithm={"name": "fedrep"}, train={"momentum": 0.9})
    worker = Client(federation)
    layout, initial = worker.layout, worker.initial.clone()
    order = Order(1, initial[layout.travelling].clone())
    phases = type(federation.program.algorithm).phases
    for number, (learns, rests) in enumerate(
        [(layout.personal, layout.travelling), (layout.travelling, layout.personal)]
    ):
        only = replace(federation.program.algorithm.phases(1)[number], length=1)
        try:
            type(federation.program.algorithm).phases = lambda self, epochs, only=only: [only]
            worker.step(order, 0, {})
        finally:
            type(federation.program.algorithm).phases = phases
        assert torch.equal(worker.vector[rests], initial[rests])
        assert not torch.equal(worker.vector[learns], initial[learns])


def test_personal_slice_comes_from_memory_and_never_travels(tiny_federation: Make) -> None:
    federation = tiny_federation(algorithm={"name": "fedrep"})
    layout = federation.layout
    mine = torch.full((layout.length(Kind.PERSONAL),), 0.25)
    fresh, remembered = step(federation), step(federation, personal=mine)
    assert len(fresh.payload["delta"]) == layout.travelling.stop == layout.size - len(mine)
    assert not torch.equal(fresh.memory["personal"], remembered.memory["personal"])
    assert (remembered.memory["personal"] - mine).abs().max() < 0.2


# -- what sites see --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "noise", "invert"])
def test_pooled_data_shows_every_image_as_its_own_site_sees_it(
    tiny_federation: Make, kind: str
) -> None:
    federation = tiny_federation(shift={"kind": kind, "strength": 0.4})
    pooled = federation.all_pooled().client(0)
    everything = torch.arange(len(pooled))
    by_site = [federation.client(site) for site in range(3)]
    apart = torch.cat([data.pixels(torch.arange(len(data))) for data in by_site])
    assert torch.equal(pooled.pixels(everything), apart)
    shuffled = torch.randperm(len(pooled), generator=generator(0))
    assert torch.equal(pooled.pixels(shuffled), apart[shuffled])
    labels = torch.cat([data.targets(torch.arange(len(data))) for data in by_site])
    assert torch.equal(pooled.targets(everything), labels)
    raw = federation.dataset.train.images.read(pooled.indices)
    assert torch.equal(apart[:40], raw[:40])  # the first site sees the world as it is
    assert torch.equal(apart[80:], raw[80:]) == (kind == "none")


def test_test_images_are_seen_as_the_view_says(tiny_federation: Make) -> None:
    federation = tiny_federation(shift={"kind": "invert", "strength": 0.5})
    assert [view.site for view in federation.views] == [0, 1, 2]
    indices = np.arange(5)
    neutral, last = (federation.tested(View(site, indices)) for site in (None, 2))
    positions = torch.arange(5)
    raw = federation.dataset.test.images.read(positions)
    assert torch.equal(neutral.pixels(positions), raw)
    torch.testing.assert_close(last.pixels(positions), torch.full_like(raw, 0.5))


def test_baselines_have_one_client_of_the_right_name_and_size(tiny_federation: Make) -> None:
    federation = tiny_federation(split={"name": "quantity", "sites": 3, "min_samples": 5})
    alone = federation.alone(2)
    assert (alone.population, alone.name(0)) == (1, "site-02")
    assert alone.size(0) == len(alone.client(0)) == federation.size(2)
    assert torch.equal(alone.client(0).indices, federation.client(2).indices)
    assert federation.all_pooled().size(0) == 120
    assert alone.program.algorithm.registered == "fedavg"


# -- cohorts and speed -----------------------------------------------------------------------------


def test_cohort_is_drawn_without_replacement_sorted_and_anew_in_each_round(
    tiny_federation: Make,
) -> None:
    federation = tiny_federation(split={"sites": 30}, rounds={"cohort": 7})
    cohorts = [Protection(federation).cohort(round) for round in range(1, 60)]
    assert cohorts == [Protection(federation).cohort(round) for round in range(1, 60)]
    for cohort in cohorts:
        assert cohort == sorted(set(cohort))
        assert len(cohort) == 7
        assert all(type(client) is int and 0 <= client < 30 for client in cohort)
    assert len({tuple(cohort) for cohort in cohorts}) > 50
    drawn = np.bincount(np.concatenate(cohorts), minlength=30)
    assert drawn.min() > 0
    everyone = tiny_federation(split={"sites": 30})
    assert Protection(everyone).cohort(1) == list(range(30))


def test_drawing_from_a_million_clients_costs_what_the_cohort_costs(
    tiny_federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    indices = Population.indices
    count = lambda self, site: opened.append(site) or indices(self, site)  # noqa: E731
    monkeypatch.setattr(Population, "indices", count)
    population = {"name": "virtual", "sites": 1_000_000, "samples": 10}
    federation = tiny_federation(split=population, rounds={"cohort": 20})
    assert len(opened) < 20  # nobody goes through all of them
    Protection(federation).cohort(1)
    tracemalloc.start()
    try:
        cohort = Protection(federation).cohort(2)
        clients = [federation.client(client) for client in cohort]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(set(cohort)) == len(clients) == 20
    assert peak < 200_000  # bytes; a list of the population alone would take 8,000,000


def test_reduced_precision_is_a_problem_only_where_the_processor_lacks_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(program_module, "_has_bfloat16", lambda: False)
    (problem,) = Speed(precision="bfloat16").check()
    assert problem.where == "speed.precision"
    assert Speed().check() == []
    monkeypatch.setattr(program_module, "_has_bfloat16", lambda: True)
    assert Speed(precision="bfloat16").check() == []
