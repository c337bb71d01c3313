"""Sums of sites that know patients count each once, as a simulation does, bit for bit; who does not
know is said; and too few patients are too few, however many images they have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from masked_counts import TESTS, Sites, program, vector_of
from patients import PATIENTS, PATTERN, draw_patients
from PIL import Image
from torch import Tensor

from fedsight.client.memory import MemoryStore
from fedsight.deploy.site.calibration import PART_TOO_SMALL
from fedsight.deploy.site.trainer import CalibrateStep
from fedsight.engines.remote.engine import RemoteEngine
from fedsight.evaluation.overall import Final
from fedsight.evaluation.trust.images import TrustImages, divided
from fedsight.evaluation.trust.masked import trusted_masked
from fedsight.evaluation.trust.measure import Trusted, trusted
from fedsight.evaluation.trust.noised import BOUNDS, ENERGY, SCORES, SHAPES
from fedsight.evaluation.trust.of_noise import trusted_noised
from fedsight.evaluation.trust.remote import MADE_UP
from fedsight.evaluation.trust.sums import CountSums, read
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Program, Speed

OPEN = {"name": "none"}
GROUPED = {"group": PATTERN}
LITTLE = {"figures": "noised", "figures_noise": 0.02}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_patients(tmp_path_factory.mktemp("patients"))


@pytest.fixture
def sites(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    made = Sites(images, tmp_path / "sites", monkeypatch)
    for site in TESTS:
        owner(made, site)
    yield made
    made.close()


def owner(sites: Sites, site: str, knows: bool = True, **contract: Any) -> None:
    """What a site's owner wants, who knows or does not know whose images are whose."""
    data = {"name": "folder", "path": str(sites.images / site), **(GROUPED if knows else {})}
    sites.places.write_owner(site, {"data": data, "contract": contract})


def simulated(of: Program, vector: Tensor, folder: Path, masked: bool = False) -> Trusted:
    memory = MemoryStore(folder / "memory")
    final = Final(federate(of), Speed(device="cpu"), vector, memory)
    return trusted_masked(final) if masked else trusted(final, True)


@pytest.mark.parametrize(
    "trust", [{}, {"sets": "aps", "guarantee": "class"}, {"sets": "raps", "guarantee": "site"}]
)
def test_sums_of_sites_count_patients_as_a_simulation_does(
    sites: Sites, images: Path, tmp_path: Path, trust: dict[str, Any]
) -> None:
    of = program(images, OPEN, trust=trust, data=GROUPED)
    federation, engine = sites.join(of, "same1")
    vector = vector_of(federation)
    found, known = sites.measured(federation, engine, vector), simulated(of, vector, tmp_path)
    assert found.facts == known.facts  # bit for bit: temperature, histograms, threshold, bins
    sets, whole = found.summary["sets"], found.facts["sets"]["whole"]
    assert sets["grouped"] is True
    assert "ungrouped" not in sets
    assert sum(count for _, count in whole) == sets["images"]
    assert sets["images"] + sets["tested"] < 0.8 * sum(PATIENTS.values()), "a quarter is fitted to"
    for part in ("calibration", "sets", "ood"):
        mine, theirs = dict(found.summary[part]), dict(known.summary[part])
        assert mine.pop("sums") == "exact"
        assert mine.pop("by_site", {}).keys() == theirs.pop("by_site", {}).keys()
        if trust.get("guarantee") == "site":
            mine, theirs = ({**one, "coverage": 0, "size": 0} for one in (mine, theirs))
        assert mine == theirs


def test_masked_sums_of_patients_are_those_of_a_simulation(
    sites: Sites, images: Path, tmp_path: Path
) -> None:
    of = program(images, data=GROUPED)
    federation, engine = sites.join(of, "same1")
    vector = vector_of(federation)
    bare = simulated(program(images, OPEN, data=GROUPED), vector, tmp_path)
    facts = {**bare.facts, "sets": {**bare.facts["sets"], "sites": {}}}
    for found in (
        sites.measured(federation, engine, vector), simulated(of, vector, tmp_path, masked=True)
    ):  # fmt: skip
        assert found.facts == facts
        assert found.summary["sets"]["grouped"] is True
        assert found.summary["sets"]["coverage"] == bare.summary["sets"]["coverage"]
        assert "missing" not in found.summary["sets"]


def whole_report(sites: Sites, of: Program, folder: Path, run: str) -> tuple[dict[str, Any], str]:
    summary, page = sites.run(of, run, folder)
    return summary["sets"], page


@pytest.mark.parametrize("secure", [OPEN, None])
def test_sites_that_do_not_know_patients_are_named(
    sites: Sites, images: Path, tmp_path: Path, secure: Any
) -> None:
    how = {} if secure is None else {"secure": secure}
    owner(sites, "west", knows=False)
    of = program(images, **how, rounds={"rounds": 1})
    told, page = whole_report(sites, of, tmp_path / "mixed", "mixed1")
    assert told["grouped"] is True
    assert told["ungrouped"] == ["west"]
    assert "do not know which of their images belong together: 1 (west)" in page
    for site in TESTS:
        owner(sites, site, knows=False)
    told, page = whole_report(sites, of, tmp_path / "single", "single1")
    assert not {"grouped", "ungrouped"} & told.keys()
    assert "They count images one by one" in page
    for site in TESTS:
        owner(sites, site)
    told, page = whole_report(sites, of, tmp_path / "known", "known1")
    assert told["grouped"] is True
    assert "one by one" not in page
    assert "do not know which" not in page
    assert "one of each group" in page


def test_what_a_site_declares_binds_its_sums(
    sites: Sites, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that has declared no groups, or fewer, and sums over groups, has made them up."""
    of = program(images, OPEN)
    vector = vector_of(federate(of))
    for known in ({}, dict.fromkeys(TESTS, 10)):
        federation, engine = sites.join(of, f"lie{len(known)}")
        monkeypatch.setattr(engine.site_sums, "groups", known)
        found = sites.measured(federation, engine, vector).summary["sets"]
        assert set(found["without"].values()) == {MADE_UP}


def test_few_patients_are_too_few_however_many_images_they_have(sites: Sites, images: Path) -> None:
    """A quarter of the 40 patients of east are about 10, who have more than twice as many images;
    of the others about 22 have several."""
    of = program(images, OPEN)
    sites.join(of, "few")
    trainer: Any = sites.places.seats["east"]._trainer
    inside = trainer._commands._trainer
    least, parts = inside.opened.smallest_part, divided(inside.federation)
    assert 6 <= least <= 12 < min(map(len, parts))
    vector = vector_of(federate(of))
    for more, reason in ((0, ""), (1, PART_TOO_SMALL)):
        owner(sites, "east", test_images=least + more)
        federation, engine = sites.join(of, f"few{more}")
        found = sites.measured(federation, engine, vector).summary["sets"]
        assert found.get("without", {}).get("east", "") == reason


def counted(sites: Sites, site: str, of: Program, run: str, vector: Tensor) -> CountSums:
    """The exact sums that a site's trainer finds."""
    sites.join(of, run)
    trainer = sites.places.seats[site]._trainer
    assert trainer is not None
    found = trainer.ask(CalibrateStep(2, vector, 1.0, 1), "counting")
    assert isinstance(found, Tensor)
    return read(CountSums, found, 3)


def test_sums_are_over_one_image_of_each_patient(sites: Sites, images: Path) -> None:
    of = program(images, OPEN)
    vector = vector_of(federate(of))
    sums = counted(sites, "north", of, "one1", vector)
    assert 34 <= sums.groups <= 38, "48 patients, of whom a quarter are fitted to"
    assert int(sums.images.sum()) > 2 * sums.groups
    assert int(sums.reliable_tested[0, :, 0].sum()) == int(sums.tested.sum())
    owner(sites, "north", knows=False)
    single = counted(sites, "north", of, "one2", vector)
    assert single.groups == int(single.images.sum())


def noised(
    sites: Sites, images: Path, run: str, **contract: Any
) -> tuple[Federation, RemoteEngine, Tensor]:
    """A run whose updates have noise; owners add some to their sums."""
    for site in TESTS:
        owner(sites, site, **{**LITTLE, **contract})
    privacy = {"name": "local", "noise_multiplier": 1.0}
    of = program(images, OPEN, privacy=privacy, rounds={"weighting": "uniform"})
    federation, engine = sites.join(of, run)
    return federation, engine, vector_of(federation)


def test_with_noise_a_patient_adds_one_to_one_number(sites: Sites, images: Path) -> None:
    federation, engine, vector = noised(sites, images, "noised1")
    found, why = engine.noised_sums((vector, 2), BOUNDS, SHAPES)
    assert why == {}
    for site, count in PATIENTS.items():
        for name in (SCORES, ENERGY):
            assert found[site][name].count == count
            assert float(np.sum(found[site][name].total)) == pytest.approx(count, abs=2)
    told = trusted_noised(federation, lambda: (found, why), engine.site_sums.groups)
    for part in ("sets", "ood", "calibration"):
        assert told.summary[part]["grouped"] is True
        assert told.summary[part]["images"] == sum(PATIENTS.values())


def test_with_noise_another_patient_changes_one_number_of_each(
    sites: Sites, images: Path, tmp_path: Path
) -> None:
    """Also one with forty images instead of one, and whichever of a patient's images is drawn."""
    of = program(images, OPEN)
    vector = vector_of(federate(of))
    step = CalibrateStep(2, vector, 1.0, 1, noised=True)

    def histograms(extra: int, run: str) -> list[Tensor]:
        root = draw_patients(tmp_path / run, {"east": 12})
        for path in root.glob("east/test/*/*_[1-9].png"):
            path.unlink()  # all others have one image, so that nothing is drawn of theirs
        for number in range(extra):
            shade = np.full((8, 8), 3 * number, np.uint8)
            Image.fromarray(shade).save(root / "east/test/ant" / f"east-test-0_{number + 9}.png")
        data = {"name": "folder", "path": str(root / "east"), **GROUPED}
        sites.places.write_owner("east", {"data": data})
        sites.join(of, run)
        trainer = sites.places.seats["east"]._trainer
        assert trainer is not None
        sums = trainer.ask(step, "counting")
        return [torch.as_tensor(sums[name].total) for name in (SCORES, ENERGY)]

    before = histograms(0, "patient0")
    for again in range(4):  # another image may be drawn
        for one, other in zip(before, histograms(40, f"patient{again + 1}"), strict=True):
            assert float(one.sum()) == float(other.sum()) == 12
            assert float((one - other).abs().sum()) <= 2, "one count, from one number to another"


def test_parts_of_patients_are_whole(sites: Sites, images: Path) -> None:
    federation = federate(program(images, OPEN, data=GROUPED))
    parts = divided(federation)
    names = [{federation.dataset.test.unit(at) for at in one.indices.tolist()} for one in parts]
    assert not names[0] & names[1]
    assert not (names[0] | names[1]) & names[2]
    whole = TrustImages([parts[0]], [parts[1]], [parts[2]], "")
    once = whole.by_group(federation)
    assert once.grouped
    for before, after in ((parts[1], once.cover[0]), (parts[2], once.tested[0])):
        units = [federation.dataset.test.unit(at) for at in after.indices.tolist()]
        assert len(units) == len(set(units))
        assert len(units) == len(
            {federation.dataset.test.unit(at) for at in before.indices.tolist()}
        )
