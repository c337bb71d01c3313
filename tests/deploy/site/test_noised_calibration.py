"""Sets at deployed sites whose owners let figures leave with noise: two histograms of each, charged
as noised figures are, and nothing without noise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from masked_counts import TESTS, Sites, draw, fails_at, program, vector_of
from site_services import FaultyLink, LocalLink
from torch import Tensor

from fedsight.coordinator.store import RunStore
from fedsight.core.types import Sum
from fedsight.deploy.site.answers import AnswerStore
from fedsight.engines.remote.engine import RemoteEngine
from fedsight.evaluation.trust import noised
from fedsight.evaluation.trust.measure import Trusted
from fedsight.evaluation.trust.noised import BOUNDS, SHAPES
from fedsight.evaluation.trust.noised_temperature import SURE
from fedsight.evaluation.trust.of_noise import BY_CLASS, UNFITTED, trusted_noised
from fedsight.evaluation.trust.saved import keep, kept
from fedsight.governance.ledger import Ledger
from fedsight.program.federation import Federation
from fedsight.program.program import Program

OPEN = {"name": "none"}
LITTLE = {"figures": "noised", "figures_noise": 0.05}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("noised"))


@pytest.fixture
def sites(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    made = Sites(images, tmp_path / "sites", monkeypatch)
    for site in TESTS:
        made.owner(site, **LITTLE)
    yield made
    made.close()


def private(images: Path, **trust: Any) -> Program:
    privacy = {"name": "local", "noise_multiplier": 1.0}
    return program(images, OPEN, privacy=privacy, rounds={"weighting": "uniform"}, trust=trust)


def measured(federation: Federation, engine: RemoteEngine, vector: Tensor) -> Trusted:
    groups = engine.site_sums.groups
    return trusted_noised(
        federation, lambda: engine.noised_sums((vector, 2), BOUNDS, SHAPES), groups
    )


def test_sites_send_histograms_with_noise_and_pay_for_them(
    sites: Sites, images: Path, tmp_path: Path
) -> None:
    federation, engine = sites.join(private(images, coverage=0.5), "noised1")
    found = measured(federation, engine, vector_of(federation))
    told = found.summary["calibration"]
    known = abs(told["gap"]) >= SURE * told["noise"]
    assert known == ("temperature" in told) == ("reason" not in told)
    assert known == ("calibrated" in found.facts)
    for part in ("sets", "ood"):
        assert 0 < found.summary[part]["threshold"] < 1
        assert found.summary[part]["sums"] == "noised"
        assert found.summary[part]["images"] == 3 * sum(TESTS.values())
    store = RunStore(tmp_path)
    model = store.save_model({"weights": federation.initial})
    keep(store, found, model)
    saved = kept(store, 3, model)
    assert saved is not None
    assert int(saved.sets.classes.sum()) == 3 * sum(TESTS.values())
    assert saved.scaling == noised.PLAIN
    for site in TESTS:
        (entry,) = (one for one in Ledger(sites.root / site).entries() if one.kind == "scores")
        assert entry.enforced
        assert entry.event is not None
        assert Ledger(sites.root / site).spent("images", 1e-5) > 0


def test_a_temperature_has_no_say_in_the_sets(sites: Sites, images: Path, tmp_path: Path) -> None:
    """So images that choose it may be those that sets are made of."""
    federation, engine = sites.join(private(images, coverage=0.5), "heat1")
    vector = 10 * vector_of(federation)  # which is sure of all, and mostly wrong
    sums, why = engine.noised_sums((vector, 2), BOUNDS, SHAPES)
    found = trusted_noised(federation, lambda: (sums, why), {})
    told = found.summary["calibration"]
    assert told["gap"] > SURE * told["noise"]
    assert told["temperature"] > 1.5
    for one in sums.values():
        one[noised.CONFIDENCE] = Sum(np.zeros((2, 9)), one[noised.CONFIDENCE].count)
    other = trusted_noised(federation, lambda: (sums, why), {})
    assert "calibrated" not in other.facts
    assert {**found.facts, "calibrated": None} == {**other.facts, "calibrated": None}
    store = RunStore(tmp_path)
    model = store.save_model({"weights": federation.initial})
    keep(store, found, model)
    saved = kept(store, 3, model)
    assert saved is not None
    logits = torch.tensor([[3.0, 0.0, 1.0], [0.0, 4.0, 3.9]])
    shares = torch.softmax(logits.double(), 1)
    limits = saved.sets.limits("mixture", 0.5)
    assert torch.equal(saved.inside(limits, logits), saved.sets.inside(limits, shares, logits))
    heat = torch.softmax(logits.double() / told["temperature"], 1)
    assert torch.equal(saved.calibrated(logits), heat)


def test_a_whole_run_keeps_it_and_its_report_says_how_sums_travelled(
    sites: Sites, images: Path, tmp_path: Path
) -> None:
    privacy = {"name": "local", "noise_multiplier": 0.01}
    rounds = {"rounds": 1, "weighting": "uniform"}
    of = program(images, OPEN, privacy=privacy, rounds=rounds, trust={"coverage": 0.3})
    summary, page = sites.run(of, "whole1", tmp_path / "run")
    assert summary["sets"]["sums"] == "noised"
    assert "sums with noise" in page
    assert (UNFITTED.partition("{")[0] in page) != ("divided by a temperature" in page)


def test_each_computation_has_fresh_noise_and_is_charged_again(
    sites: Sites, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites.owner("south", evaluations=2, **LITTLE)
    federation, engine = sites.join(private(images), "fresh1")
    vector = vector_of(federation)
    model = (vector, 2)
    first = engine.noised_sums(model, BOUNDS, SHAPES)[0]["south"]
    ledger = Ledger(sites.root / "south")
    spent = ledger.spent("images", 1e-5)
    again = engine.noised_sums(model, BOUNDS, SHAPES)[0]["south"]  # the same bytes, which are kept
    assert np.array_equal(first["scores"].total, again["scores"].total)
    ledger.refresh()
    assert ledger.spent("images", 1e-5) == spent
    monkeypatch.setattr(AnswerStore, "read", lambda self, kind, digest: None)
    other = engine.noised_sums(model, BOUNDS, SHAPES)[0]["south"]
    assert not np.array_equal(first["scores"].total, other["scores"].total)
    ledger.refresh()
    assert ledger.spent("images", 1e-5) > spent
    assert ledger.evaluations("images") == 2
    why = engine.noised_sums(model, BOUNDS, SHAPES)[1]
    assert "contract.evaluations" in why["south"]
    assert "another model" in engine.noised_sums((vector + 1, 2), BOUNDS, SHAPES)[1]["north"]


def test_epsilon_ends_what_leaves(sites: Sites, images: Path) -> None:
    sites.owner("south", epsilon=1e-3, **LITTLE)
    federation, engine = sites.join(private(images), "epsilon1")
    found = measured(federation, engine, vector_of(federation))
    assert "contract.epsilon" in found.summary["sets"]["without"]["south"]


def test_owners_who_add_no_noise_are_left_out_and_send_nothing(sites: Sites, images: Path) -> None:
    """Nothing exact goes around the noise of the updates."""
    sites.owner("south", figures="exact")
    federation, engine = sites.join(private(images), "exact1")
    vector = vector_of(federation)
    found = measured(federation, engine, vector)
    assert "no noise" in found.summary["sets"]["without"]["south"]
    assert "leave only with noise" in sites.ask("south", vector)["withheld"]


def test_by_class_there_are_none_and_by_site_each_has_its_own(sites: Sites, images: Path) -> None:
    federation, engine = sites.join(private(images, guarantee="class"), "class1")
    found = measured(federation, engine, vector_of(federation))
    assert found.summary["sets"]["reason"] == BY_CLASS
    assert not found.facts
    federation, engine = sites.join(private(images, guarantee="site"), "site1")
    found = measured(federation, engine, vector_of(federation))
    assert set(found.summary["sets"]["by_site"]) == set(TESTS)
    assert set(found.facts["sets"]["sites"]) == set(TESTS)


def test_what_fails_does_not_show(
    sites: Sites, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that protects its images then sends as many images, all in the last bin, so that
    no threshold is too low."""
    for site in TESTS:
        sites.owner(site, require=["local_dp"], min_noise_multiplier=0.5, **LITTLE)
    fails_at(monkeypatch, "north", "count")
    federation, engine = sites.join(private(images), "fails1")
    found, why = engine.noised_sums((vector_of(federation), 2), BOUNDS, SHAPES)
    assert why == {}
    assert found["north"]["scores"].count == 3 * TESTS["north"]
    for name in (noised.SCORES, noised.ENERGY):
        sums = found["north"][name]
        assert abs(float(sums.total[-1]) - 3 * TESTS["north"]) < 2
        assert abs(float(sums.total[:-1].sum())) < 10
    assert abs(float(found["north"][noised.CONFIDENCE].total.sum())) < 10
    assert float(found["south"]["scores"].total.sum()) > 2.5 * TESTS["south"]


@pytest.mark.parametrize("change", ["count", "huge", "noise"])
def test_histograms_that_no_images_have_are_refused_by_name(
    sites: Sites, images: Path, change: str
) -> None:
    def alter(kind: str, header: dict[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        told = json.loads(text)
        if "metrics" not in told or "noise" not in told:
            return text, data
        table = told["metrics"]
        if change == "count":
            table["scores"][1] += 1
        elif change == "huge":
            table["scores"][0][0] = 1e6
        else:
            told["noise"] = -1.0
        return json.dumps(told), data

    link = FaultyLink(LocalLink(sites.places.seats), "west", alter)
    federation, engine = sites.join(private(images), "false1", link=link)
    found = measured(federation, engine, vector_of(federation))
    assert "west" in found.summary["sets"]["without"]
    assert found.summary["sets"]["images"] == 3 * (sum(TESTS.values()) - TESTS["west"])
