"""Masks, labels, grades, boxes and faces where images stay at sites: the sums are those of a
simulation, pass the door as one set of figures, and are left out where they would go around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from covered_sites import KINDS, TESTS, Sites, final, program, vector_of
from site_services import FaultyLink, LocalLink
from torch import Tensor

from fedsight.coordinator.store import RunStore
from fedsight.deploy.site.calibration import COUNTED, EXACT, PART_TOO_SMALL, UNNOISED
from fedsight.engines.remote import messages
from fedsight.evaluation.trust.cover_sums import CoverSums, form
from fedsight.evaluation.trust.covering import controlled
from fedsight.evaluation.trust.masked import controlled_masked
from fedsight.evaluation.trust.measure import NOISED, TASK, Trusted
from fedsight.evaluation.trust.remote import ALL_MADE_UP, MADE_UP, NO_SITE, OWN
from fedsight.evaluation.trust.saved import keep
from fedsight.evaluation.trust.saved_risk import kept_risk
from fedsight.governance.ledger import Ledger
from fedsight.inference.trusted import Cover, Trusting
from fedsight.program.program import Program
from fedsight.tasks.covering.base import Covering

MASKED = {"name": "secagg", "dropout": 0.25}
LOCAL = {"name": "local", "noise_multiplier": 1.0}
EVEN = {"rounds": 2, "weighting": "uniform"}


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    made = Sites(tmp_path, monkeypatch)
    yield made
    made.close()


def covering(of: Program) -> Covering:
    found = of.task.covering
    assert found is not None
    return found


def simulated(of: Program, vector: Tensor, tmp_path: Path) -> Trusted:
    return controlled(final(of, vector, tmp_path), covering(of), True)


@pytest.mark.parametrize("kind", KINDS)
def test_sites_add_up_what_a_simulation_counts(sites: Sites, tmp_path: Path, kind: str) -> None:
    of = program(tmp_path, kind)
    federation, engine = sites.join(of, "same1")
    vector = vector_of(federation)
    found, known = sites.measured(federation, engine, vector), simulated(of, vector, tmp_path)
    assert found.facts == known.facts  # bit for bit
    assert known.facts["risk"]["parts"]["answer"]["groups"][0][0] > 10
    mine, theirs = dict(found.summary["sets"]), dict(known.summary["sets"])
    assert mine.pop("sums") == "exact"
    assert mine == theirs
    assert set(mine["by_site"]) == set(TESTS)
    assert mine["coverage"] is not None
    assert found.summary["calibration"]["reason"] == TASK
    kinds = [one.kind for one in Ledger(sites.root / "south").entries() if one.run == "same1"]
    assert kinds == ["declaration", "released", "scores", "released"]


@pytest.mark.parametrize(
    ("kind", "guarantee"), [("segment", "class"), ("multilabel", "class"), ("ordinal", "site")]
)
def test_for_each_class_and_site_too(
    sites: Sites, tmp_path: Path, kind: str, guarantee: str
) -> None:
    of = program(tmp_path, kind, trust={"guarantee": guarantee})
    federation, engine = sites.join(of, "whose1")
    vector = vector_of(federation)
    found, known = sites.measured(federation, engine, vector), simulated(of, vector, tmp_path)
    assert found.facts == known.facts
    assert {**found.summary["sets"], "sums": ""} == {**known.summary["sets"], "sums": ""}


@pytest.mark.parametrize("secure", [{}, MASKED], ids=["exact", "masked"])
@pytest.mark.parametrize("kind", ["segment", "detect"])
def test_no_means_of_a_patients_images_are_summed(
    sites: Sites, tmp_path: Path, kind: str, secure: dict[str, Any]
) -> None:
    """Beside sums over all images they would tell of a patient with another number of images.

    A site says so before it has keys for the sum: without them, no other site waits for its mask.
    """
    of = program(tmp_path, kind, grouped=True, secure=secure)
    federation, engine = sites.join(of, "group1")
    vector = vector_of(federation)
    found = sites.measured(federation, engine, vector)
    known = simulated(program(tmp_path, kind, grouped=True), vector, tmp_path)
    assert known.summary["sets"]["grouped"]
    assert not found.facts
    assert set(found.summary["sets"]["without"]) == set(TESTS)
    assert "data.group" in found.summary["sets"]["without"]["south"]
    entries = Ledger(sites.root / "south").entries()
    assert not [one for one in entries if one.run == "group1" and one.kind == "scores"]


def alone(facts: dict[str, Any]) -> dict[str, Any]:
    """The same, of which nothing is known of a single site."""
    parts = {name: {**one, "sites": {}} for name, one in facts["risk"]["parts"].items()}
    return {**facts, "risk": {**facts["risk"], "parts": parts}}


@pytest.mark.parametrize("kind", KINDS)
def test_masked_sums_are_those_of_a_simulation_without_masks(
    sites: Sites, tmp_path: Path, kind: str
) -> None:
    of = program(tmp_path, kind, secure=MASKED)
    federation, engine = sites.join(of, "masked1")
    vector = vector_of(federation)
    plain = simulated(program(tmp_path, kind), vector, tmp_path)
    assert plain.facts
    masked = sites.measured(federation, engine, vector)
    simulation = controlled_masked(final(of, vector, tmp_path), covering(of))
    for found in (masked, simulation):
        assert found.facts == alone(dict(plain.facts))
        sets = dict(found.summary["sets"])
        assert sets.pop("sums") == "masked"
        assert sets.pop("by_site") == {}
        assert sets == {key: one for key, one in plain.summary["sets"].items() if key in sets}
    kinds = [one.kind for one in Ledger(sites.root / "south").entries() if one.run == "masked1"]
    assert kinds == ["declaration", "released", "scores", "released", "test sum"]


def test_under_masks_no_single_site_has_levels(sites: Sites, tmp_path: Path) -> None:
    of = program(tmp_path, "ordinal", secure=MASKED, trust={"guarantee": "site"})
    federation, engine = sites.join(of, "site1")
    found = sites.measured(federation, engine, vector_of(federation))
    assert found.summary["sets"]["reason"] == NO_SITE
    assert not found.facts


def test_predict_has_what_the_sites_added_up(sites: Sites, tmp_path: Path) -> None:
    of = program(tmp_path, "segment")
    federation, engine = sites.join(of, "kept1")
    found = sites.measured(federation, engine, vector_of(federation))
    store = RunStore(tmp_path / "run")
    store.folder.mkdir()
    model = store.save_model({"weights": federation.initial})
    keep(store, found, model)
    saved = kept_risk(store, covering(of), 3, model)
    assert saved is not None
    trusting = Trusting.at(store, of.task, 3, None, False)
    levels = trusting.limits(Cover(0.6))
    assert isinstance(levels, dict)
    assert covering(of).told(levels)["threshold"] == found.summary["sets"]["threshold"]


def ask(sites: Sites, site: str, vector: Tensor, **fields: Any) -> dict[str, Any]:
    """A question as any coordinator could put it; the answer's header."""
    import json

    seat, mark = sites.places.seats[site], sites.mark()
    data = bytes(messages.pack([vector]))
    piece = {"name": "vector", "mark": mark, "start": 0, "total": len(data)}
    seat.answer("piece", json.dumps(piece), data)
    header = {"round": 2, "attempt": mark, "vector": mark, "temperature": None, "seconds": 30}
    return dict(json.loads(seat.answer("calibrate", json.dumps({**header, **fields}), b"")[0]))


@pytest.mark.parametrize(
    ("sections", "contract", "reason"),
    [
        ({}, {"figures": "none"}, "only exact figures may leave without"),
        ({}, {"figures": "masked"}, "only inside a masked sum, and the program has none"),
        ({}, {"figures": "noised"}, EXACT),
        ({}, {"counts": False}, COUNTED),
        ({}, {"test_images": 21}, PART_TOO_SMALL),
        ({"privacy": LOCAL, "rounds": EVEN}, {"figures": "exact"}, UNNOISED),
        ({"privacy": LOCAL, "rounds": EVEN, "secure": MASKED}, {}, NOISED),
        ({"algorithm": {"name": "fedper"}}, {}, OWN),
        ({"trust": {"measured": False}}, {}, "trust.measured is false"),
    ],
)
def test_nothing_exact_goes_around_masks_noise_or_the_contract(
    sites: Sites,
    tmp_path: Path,
    sections: dict[str, Any],
    contract: dict[str, Any],
    reason: str,
) -> None:
    """Also of a site that is asked although its coordinator should not."""
    for site in TESTS:
        sites.owner(site, **contract)
    federation, engine = sites.join(program(tmp_path, "segment", **sections), "around1")
    vector = federation.initial[federation.layout.travelling].clone()
    assert reason in ask(sites, "south", vector)["withheld"]
    found = sites.measured(federation, engine, vector)
    assert found.summary["sets"]["reason"]
    assert not found.facts


def test_who_would_not_answer_is_left_out_by_name(sites: Sites, tmp_path: Path) -> None:
    for secure, contract in (({"name": "none"}, {"test_images": 9}), (MASKED, {"figures": "none"})):
        sites.owner("west", **contract)  # a quarter of its 32 images is 8
        name = f"few{secure['name']}"
        federation, engine = sites.join(program(tmp_path, "ordinal", secure=secure), name)
        sets = sites.measured(federation, engine, vector_of(federation)).summary["sets"]
        assert sets["coverage"] is not None
        assert {site: why.split(":")[0] for site, why in sets["without"].items()} == {
            "west": f"contract.{next(iter(contract))}"
        }
        assert "missing" not in sets


def test_it_is_one_of_the_owners_sets_of_figures_and_of_one_model(
    sites: Sites, tmp_path: Path
) -> None:
    sites.owner("south", evaluations=1)
    federation, _ = sites.join(program(tmp_path, "ordinal"), "once1")
    vector = vector_of(federation)
    for heat in (None, 1.0, 2.0):  # there is no temperature to choose
        assert "bytes" in ask(sites, "south", vector, temperature=heat)
    assert Ledger(sites.root / "south").evaluations("images") == 1
    assert "another model of this run" in ask(sites, "south", vector + 1)["withheld"]
    federation, _ = sites.join(program(tmp_path, "ordinal", seed=2), "once2")
    assert "contract.evaluations" in ask(sites, "south", vector_of(federation))["withheld"]


@pytest.mark.parametrize("change", ["images", "units", "fall", "more", "sizes", "sized"])
def test_sums_that_no_images_have_are_left_out_by_name(
    sites: Sites, tmp_path: Path, change: str
) -> None:
    """A malicious site would otherwise move the levels of all."""
    of = program(tmp_path, "segment")
    due = 8 * form(covering(of), 3).size

    def alter(asked: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        if asked != "fetch" or len(body) != due:
            return text, body
        numbers = torch.frombuffer(bytearray(body), dtype=torch.int64).clone()
        sums = CoverSums.read(numbers, covering(of), 3)
        _falsify(sums, change)
        return text, sums.flat.numpy().tobytes()

    link = FaultyLink(LocalLink(sites.places.seats), "west", alter)
    federation, engine = sites.join(of, "false1", link)
    engine._sizers.default_factory = _large
    sets = sites.measured(federation, engine, vector_of(federation)).summary["sets"]
    assert sets["without"] == {"west": MADE_UP}
    assert set(sets["by_site"]) == set(TESTS) - {"west"}


def _falsify(sums: CoverSums, change: str) -> None:
    tally = sums.held["answer"]
    if change == "images":
        sums.images.add_(100)
    elif change == "units":
        tally.units[0] += 40
    elif change == "fall":
        tally.losses[0, -1] -= 1
        tally.losses[0, -2] += 1
    elif change == "more":
        tally.losses[1] += 1 << 40
    elif change == "sizes":
        sums.tested["answer"].sizes[0] += 1 << 40
    else:
        object.__setattr__(tally, "sized", 1 << 20)
        tally.sized = 1 << 20


def _large() -> messages.Sizers:
    """Pieces that are as large as they may be."""
    made = messages.Sizers()
    made.down.size = made.up.size = messages.PIECE
    return made


def test_a_masked_sum_that_no_images_have_is_left_out_in_nobodys_name(
    sites: Sites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = CoverSums.of

    def lying(*given: Any) -> CoverSums:
        with torch.inference_mode():
            found = honest(*given)
            found.held["answer"].units[1] += 1 << 5
        return found

    monkeypatch.setattr(CoverSums, "of", lying)
    federation, engine = sites.join(program(tmp_path, "ordinal", secure=MASKED), "lie1")
    found = sites.measured(federation, engine, vector_of(federation))
    assert found.summary["sets"]["reason"] == ALL_MADE_UP
    assert not found.facts
