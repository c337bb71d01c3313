"""The model that one site got: its sets hold for the site's images, and rest on none that chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import federations
import numpy as np
import pytest
import torch
from torch import Tensor

from fedsight.client.step import Client
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import DataError
from fedsight.data.partition import Groups
from fedsight.evaluation.figures import Evaluator
from fedsight.evaluation.overall import FAILED
from fedsight.evaluation.trust import images as chosen
from fedsight.evaluation.trust import of_site
from fedsight.evaluation.trust.covering import UNSEEN
from fedsight.evaluation.trust.images import TrustImages, images_of_site
from fedsight.evaluation.trust.measure import INFINITE, OFF, Trusted
from fedsight.evaluation.trust.of_site import room, trusted_at
from fedsight.evaluation.trust.saved import keep, kept, place_of
from fedsight.evaluation.trust.scaling import SCALINGS, plain
from fedsight.evaluation.trust.sets import Sets
from fedsight.models.features import linear_head
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

RARE = 3  # a class that is rare in the test part and frequent at the first site


@cache
def skewed(tests: int = 600) -> Federation:
    """Two sites with one test part: three quarters of the first one's images are of RARE."""
    made = federations.federation(data={"train": 400, "test": tests}, split={"sites": 2})
    labels = made.dataset.train.labels
    of, others = np.flatnonzero(labels == RARE), np.flatnonzero(labels != RARE)
    partition = Groups(
        [np.sort([*of, *others[: len(of) // 3]]), others[len(of) // 3 :]], ["a", "b"]
    )
    return replace(made, partition=partition).viewed()


def seeded(federation: Federation, seed: int) -> Federation:
    """The same sites, with other draws."""
    return federation.under(replace(federation.program, seed=seed))


def client_with(federation: Federation, bias: float) -> Client:
    """A client of the first site, whose model holds RARE for less likely than it is."""
    client = Client(federation.alone(0), Speed(device="cpu"))
    layout, vector = client.layout, federation.initial.clone()
    state = layout.state_dict(vector)
    (name,) = [n for n, v in client.network.module.named_parameters()
               if v is linear_head(client.network).bias]  # fmt: skip
    state[name] = state[name].clone()
    state[name][RARE] += bias
    client.load(layout.vector(state)[layout.travelling], {})
    return client


def parts_of(images: TrustImages) -> list[set[int]]:
    parts = images.fitted, images.cover, images.tested
    return [{place for data in one for place in data.indices.tolist()} for one in parts]


def test_three_parts_of_the_sites_test_images_share_none() -> None:
    federation = federations.federation(data={"owners": 3})
    for site in range(3):
        images = images_of_site(federation, site)
        assert images is not None
        parts = parts_of(images)
        mine = set(federation.views[site].indices.tolist())
        assert [len(one) for one in parts] == [5, 5, 10]
        assert set().union(*parts) == mine
    alone = replace(federation, views=federation.views[:1])
    assert images_of_site(alone, 2) is None


def test_of_a_common_test_part_images_are_drawn_in_the_sites_mix() -> None:
    federation = skewed()
    labels, mix = federation.dataset.test.labels, Evaluator(federation).mix(0)
    assert mix is not None
    shares = np.zeros(len(mix))
    for seed in range(20):
        images = images_of_site(seeded(federation, seed), 0)
        assert images is not None
        used = set().union(*parts_of(images))
        shares += np.bincount(labels[sorted(used)], minlength=len(mix)) / len(used) / 20
    assert shares == pytest.approx(mix, abs=0.05)
    assert mix[RARE] > 0.7


def cover(seed: int) -> tuple[float, float]:
    """The coverage that the summary says, and that among all test images in the site's mix."""
    federation = seeded(skewed(), seed)
    client = client_with(federation, -3.0)
    found = trusted_at(federation, 0, client)
    return found.summary["sets"]["coverage"], _in_the_mix(federation, client, found)


def _in_the_mix(federation: Federation, client: Client, found: Trusted) -> float:
    known = _kept(found)
    test, mix = federation.dataset.test, Evaluator(federation).mix(0)
    assert mix is not None
    data = federation.tested(federation.views[0])
    with torch.no_grad():
        logits: Tensor = client.model(federation.batch(data, torch.arange(len(data))).x).float()
    limits = known.sets.limits("site", 0.9, "a")
    inside = known.sets.inside(limits, known.calibrated(logits), logits)
    right = inside[torch.arange(len(data)), torch.from_numpy(test.labels)].numpy()
    return float(sum(mix[k] * right[test.labels == k].mean() for k in range(len(mix)) if mix[k]))


def _kept(found: Trusted) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder))
        model = store.save_model({"weights": torch.zeros(1)})
        keep(store, found, model)
        known = kept(store, 10, model)
    assert known is not None
    return known


def test_sets_cover_the_sites_own_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    told, held = np.mean([cover(seed) for seed in range(12)], axis=0)
    assert held >= 0.88  # 0.9 on average over runs; of twelve it varies by about 0.01
    assert told == pytest.approx(held, abs=0.06)
    # Sets of the common mix of classes leave this site's frequent class out.
    monkeypatch.setattr(chosen, "_in_mix", lambda _, indices, mix, site: indices)
    assert np.mean([cover(seed)[1] for seed in range(3)]) < 0.5


def test_too_few_images_say_how_many_are_enough(tmp_path: Path) -> None:
    federation = federations.federation(data={"owners": 3})
    found = trusted_at(federation, 1, Client(federation.alone(1), Speed(device="cpu")))
    assert found.summary["sets"]["smallest"] == 9
    assert "5 held-out inputs are too few" in found.summary["sets"]["reason"]
    assert "at least 36 test images" in found.summary["sets"]["cure"]
    assert "5 held-out inputs are too few: it needs 19" in found.summary["ood"]["reason"]
    none = trusted_at(replace(federation, views=()), 1, client_with(skewed(), 0.0))
    assert none.summary["sets"]["reason"] == "0 held-out inputs are too few: it needs 9"
    assert not none.facts


@pytest.mark.parametrize(
    ("sections", "reason"),
    [({"trust": {"measured": False}}, OFF), ({"task": {"name": "multilabel"}}, UNSEEN)],
)
def test_what_is_left_out_has_its_reason(sections: Mapping[str, Any], reason: str) -> None:
    federation = skewed()
    program = federations.program(**sections)
    found = trusted_at(replace(federation, program=program), 0, client_with(federation, 0.0))
    assert {part["reason"] for part in found.summary.values()} == {reason}


@pytest.mark.parametrize("unlike", ["distance", "energy"])
def test_a_model_that_overflows_on_an_image_says_nothing_of_it(unlike: str) -> None:
    federation = federations.federation(data={"owners": 3}, trust={"unlike": unlike})
    client = client_with(federation, float("inf"))
    found = trusted_at(federation, 0, client)
    assert {part["reason"] for part in found.summary.values()} == {INFINITE}
    assert not found.facts


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("a bug"), FAILED),
        (DataError("'a.png' is gone", "restore it"), "'a.png' is gone"),
    ],
)
def test_what_fails_is_said_and_costs_no_model(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fails(data: Any, classes: int, seed: int) -> Any:
        raise error

    monkeypatch.setattr(of_site, "learnt_at", fails)
    federation = skewed()
    found = trusted_at(federation, 0, client_with(federation, 0.0))
    assert {part["reason"] for part in found.summary.values()} == {reason}
    assert not found.facts


@pytest.mark.parametrize("kind", ["temperature", "vector", "isotonic"])
def test_files_take_no_more_room_than_is_set_aside(tmp_path: Path, kind: str) -> None:
    federation = federations.federation(
        data={"train": 400, "test": 2000}, split={"sites": 2}, trust={"scaling": kind}
    )
    client = client_with(federation, 0.0)
    found = trusted_at(federation, 0, client)
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(chosen.MOST, 10, generator=generator)  # the most images there can be
    labels = torch.randint(0, 10, (chosen.MOST,), generator=generator)
    scaling = SCALINGS[kind].fitted(logits, labels)
    counts = Sets.counted("lac", scaling.shares(logits), labels, logits)
    sets = {**Sets("lac", counts, {"a": counts.sum(0)}).plain(), "guarantee": "site"}
    store = RunStore(place_of(tmp_path, "a"))
    store.folder.mkdir(parents=True)
    model = RunStore(tmp_path).save_model({"weights": torch.zeros(1)})
    whole = {**found.facts, "scaling": plain(scaling), "sets": sets}
    keep(store, replace(found, facts=whole), model)
    taken = sum(path.stat().st_size for path in store.folder.iterdir())
    assert taken <= room(federation.program, client.network, 10)
    assert len([*store.folder.iterdir()]) == 2
