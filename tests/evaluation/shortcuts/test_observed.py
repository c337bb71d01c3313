"""What sites compute: on images of their own that nobody trained on, equal to asking one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import federations
import numpy as np
import pytest
import torch
from torch import Tensor

from fedsight.client.step import Client
from fedsight.coordinator.loop import run
from fedsight.coordinator.session import Session
from fedsight.data.base import Dataset, Part
from fedsight.engines.in_process import InProcessEngine
from fedsight.evaluation.evidence import some
from fedsight.evaluation.overall import Final
from fedsight.evaluation.shortcuts import agreement, measure
from fedsight.evaluation.shortcuts.images import OF_A_CLASS, own_images
from fedsight.evaluation.shortcuts.observer import Observer
from fedsight.evaluation.shortcuts.spots import Spots
from fedsight.evaluation.trust.measure import AWAY, MASKED, NOISED
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Speed

HELD: dict[str, Any] = {"rounds": {"validation": 0.4}, "trust": {"shortcuts": True}}


def loaded(federation: Federation, vector: Tensor | None = None) -> Client:
    client = Client(federation, Speed())
    chosen = federation.initial[federation.layout.travelling] if vector is None else vector
    client.load(chosen, {})
    return client


@pytest.fixture(scope="module")
def trained() -> tuple[Federation, Client]:
    federation = federations.federation(**HELD)
    engine = InProcessEngine(federation)
    try:
        vector = run(Session(federation), engine, lambda _: {}, []).travelling
    finally:
        engine.close()
    return federation, loaded(federation, vector)


def test_looks_are_those_of_one_image_after_another(trained: tuple[Federation, Client]) -> None:
    federation, client = trained
    data, spots = own_images(federation)[1], Spots.of(14, 14)
    found, client.model.training = Observer(client).looks(data), False
    hottest = torch.zeros_like(found.hottest)
    lost = torch.zeros_like(found.lost)
    with torch.inference_mode():
        for at in range(len(data)):
            x, y = client.batch(data, torch.tensor([at])).x, int(data.labels()[at])
            each = torch.cat([x, *(spots.removed(x, torch.tensor([s])) for s in range(36))])
            shares = client.model(each).double().softmax(1)
            drops = shares[:1, y].logit() - shares[1:, y].logit()
            hottest[y, int(drops.argmax()) if drops.max() > 0 else 36] += 1
            if int(shares[0].argmax()) == y:
                lost[y] += shares[1:].argmax(1) != y
    assert torch.equal(found.hottest, hottest)
    assert torch.equal(found.lost, lost)
    parts = [Observer(client).looks(some(data, own)) for own in torch.arange(len(data)).chunk(3)]
    assert torch.equal((parts[0] + parts[1] + parts[2]).hottest, hottest)


def test_pasting_is_counted_on_images_that_are_not_given_the_class(
    trained: tuple[Federation, Client],
) -> None:
    federation, client = trained
    data, spots = own_images(federation)[0], Spots.of(14, 14)
    label, spot = int(data.labels()[0]), 14
    found = Observer(client).pastes(data, [(label, spot)])
    donors = (data.labels() == label).nonzero().flatten()
    others = (data.labels() != label).nonzero().flatten()
    tried = made = 0
    used = set()
    with torch.inference_mode():
        for at, place in enumerate(others.tolist()):
            x = client.batch(data, torch.tensor([place])).x
            other = client.batch(data, donors[at % len(donors)][None]).x
            if int(client.model(x).argmax()) == label:
                continue
            tried += 1
            used.add(at % len(donors))
            made += int(client.model(spots.pasted(x, other, spot)).argmax()) == label
    assert (int(found.tried), int(found.made)) == (tried, made)
    assert int(found.donors) == len(used)
    assert 0 < tried <= len(others)


def test_an_image_that_a_spot_is_taken_from_counts_once_however_few_go_through_together(
    trained: tuple[Federation, Client],
) -> None:
    federation, client = trained
    data = own_images(federation)[0]
    asked = [(int(data.labels()[0]), 14)]
    observer = Observer(client)
    whole = observer.pastes(data, asked)
    observer._together = 7
    assert observer.pastes(data, asked).at(0) == whole.at(0)


def test_spots_beyond_those_that_sites_are_asked_about_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    federation = federations.federation(**HELD)
    every = told(federation)
    assert (every["unasked"], every["classes_unasked"]) == (0, 0)
    monkeypatch.setattr(measure, "ASKED", 3)
    assert told(federation)["classes_unasked"] == every["classes"] - 3


def test_only_a_sites_own_images_are_looked_at_and_none_that_trained() -> None:
    federation = federations.federation(**HELD)
    images = own_images(federation)
    assert [*images] == [0, 1, 2]
    assert federation.aside is not None
    for site, data in images.items():
        assert set(data.indices.tolist()) <= set(federation.aside[site].tolist())
        assert not set(data.indices.tolist()) & set(federation.client(site).indices.tolist())
    owned = own_images(federations.federation(data={"owners": 3}))
    for site, data in owned.items():
        assert {data.part.sites[at] for at in data.indices.tolist()} == {f"site-{site:02d}"}
    assert own_images(federations.federation()) == {}  # all share the test part
    shifted = federations.federation(shift={"kind": "noise", "strength": 0.3})
    assert own_images(shifted) == {}  # all see it, each in its own way


def test_of_each_class_only_so_many_and_of_each_group_one() -> None:
    federation = federations.federation(data={"train": 1600}, **HELD)
    for data in own_images(federation).values():
        assert int(data.labels().bincount().max()) == OF_A_CLASS
    groups = [f"patient {at // 4}" for at in range(1600)]
    train = replace(federation.dataset.train, groups=groups)
    grouped = replace(federation, dataset=replace(federation.dataset, train=train))
    for data in own_images(grouped).values():
        units = [groups[at] for at in data.indices.tolist()]
        assert len(set(units)) == len(units)


def told(federation: Federation) -> dict[str, Any]:
    vector = federation.initial[federation.layout.travelling]
    found: dict[str, Any] = measure.shortcuts(Final(federation, Speed(), vector, None), {})  # type: ignore[arg-type]
    return found["shortcuts"]


def test_a_network_that_has_learnt_nothing_has_no_shortcut() -> None:
    found = told(federations.federation(**HELD))
    assert found["flagged"] == found["everywhere"] == []
    assert found["images"] == sum(one["images"] for one in found["by_site"].values())
    for one in found["by_site"].values():
        assert 0 <= one["border"] <= 1
        assert one["agreement"] is None


def test_it_is_left_out_for_a_reason() -> None:
    def reason(local: bool = True, **sections: Any) -> str | None:
        return measure.why_not(federations.federation(**{**HELD, **sections}), local)

    assert reason() is None
    assert reason(local=False) == AWAY
    assert reason(trust={"shortcuts": False}) == measure.UNASKED
    assert reason(trust={"measured": False}) == measure.OFF
    assert reason(trust={}) == measure.COSTLY  # two rounds
    assert reason(trust={}, rounds={"rounds": 500, "validation": 0.4}) is None
    assert reason(secure={"name": "secagg"}) == MASKED
    noise = {"name": "example", "clip": 1.0, "noise_multiplier": 0.8, "delta": 1e-2}
    assert reason(privacy=noise) == NOISED
    assert reason(algorithm={"name": "fedrep"}) == measure.APART
    assert told(federations.federation(trust={"shortcuts": True}))["reason"] == measure.ONE


def test_a_model_agrees_with_itself_and_not_with_one_that_has_learnt_nothing(
    trained: tuple[Federation, Client],
) -> None:
    federation, client = trained
    before = client.vector.clone()
    same = agreement.compared(federation, 0, client, before)
    assert agreement.mean(same or ()) == pytest.approx(1, abs=2 / agreement.BINS)
    other = agreement.compared(federation, 0, client, federation.initial)
    assert (agreement.mean(other or ()) or 0) < 0.9
    assert torch.equal(client.vector, before)
    with pytest.raises(ValueError, match="not a histogram"):
        agreement.checked([1, 2])
    with pytest.raises(ValueError, match="whole numbers"):
        agreement.checked([0.5] * agreement.BINS)
    assert agreement.mean(agreement.histogram(torch.tensor([-1.0, 1.0]))) == 0
    assert np.sum(agreement.histogram(torch.linspace(-1, 1, 9))) == 9


class Several(federations.Tiny):
    """The same images with two labels: whether the class is among the last, and whether even."""

    def open(self) -> Dataset:
        """With targets [n, 2]."""
        full = super().open()

        def part(of: Part) -> Part:
            targets = np.stack([of.labels >= 5, of.labels % 2 == 0], 1).astype(np.float32)
            return replace(of, targets=torch.from_numpy(targets))

        return replace(full, train=part(full.train), test=part(full.test), classes=("late", "even"))


def test_an_image_counts_for_every_label_that_it_has() -> None:
    program = federations.program(**HELD, task={"name": "multilabel"})
    federation = federate(replace(program, data=Several(train=120, test=60)))
    assert measure.why_not(federation, local=True) is None
    data = own_images(federation)[0]
    has = data.part.targets[data.indices] > 0.5  # type: ignore[index]
    found = Observer(loaded(federation)).looks(data)
    assert torch.equal(found.images, has.sum(0))
    pasted = Observer(loaded(federation)).pastes(data, [(1, 0)])
    assert int(pasted.tried) <= int((~has[:, 1]).sum())


def test_grades_are_looked_at_by_their_probabilities() -> None:
    program = federations.program(**HELD, task={"name": "ordinal"})
    ordered = tuple(map(str, range(10)))

    class Grades(federations.Tiny):
        def open(self) -> Dataset:
            """Classes whose names are numbers."""
            return replace(super().open(), classes=ordered)

    federation = federate(replace(program, data=Grades(train=120, test=60)))
    found = told(federation)
    assert found["images"] > 0
    assert found["flagged"] == []
