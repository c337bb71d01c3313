"""Whole runs: what summary, folder, report and `predict` say of trust, and why they say nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import done, read, refused, write_config
from safetensors.torch import load_file, save_file

import fedsight
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import DataError, StoreError
from fedsight.evaluation.trust import measure
from fedsight.evaluation.trust.images import images_of_site
from fedsight.evaluation.trust.saved import SavedTrust, kept, place_of
from fedsight.evaluation.trust.scaling import TemperatureScaling
from fedsight.program.federation import federate
from fedsight.report import generalisation
from fedsight.report.read import read as read_run
from fedsight.report.trust import lines

HELD: dict[str, Any] = {"rounds": {"validation": 0.4}}
PARTS = ("calibration", "sets", "ood")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison with held-out images."""
    home = tmp_path_factory.mktemp("trust")
    config = write_config(home, **HELD, trust={"coverage": 0.6, "false_alarm": 0.2})
    done("compare", config, "--workers", "2", "--out", home / "run")
    return home / "run"


def known(run: Path) -> SavedTrust:
    found = kept(RunStore(run), 4, RunStore(run).model)
    assert found is not None
    return found


def test_the_summary_has_the_names_that_scripts_rely_on(run: Path) -> None:
    summary = read(run)
    assert {"ece_before", "ece", "temperature"} <= set(summary["calibration"])
    assert {"coverage", "size", "by_site", "smallest"} <= set(summary["sets"])
    assert {"threshold", "false_alarm"} <= set(summary["ood"])
    assert summary["sets"]["asked"] == 0.6
    assert summary["ood"]["score"] == "distance"
    for site in summary["sets"]["by_site"].values():
        assert 0 <= site["coverage"] <= 1
    low, high = summary["sets"]["expected"]
    assert 0 <= low <= high <= 1


def test_predict_gives_the_sets_that_were_measured(run: Path) -> None:
    """The share of test images that the summary tells is found again image by image."""
    model, summary, known_of = fedsight.load(run), read(run), known(run)
    data = RunStore(run).program()[0].data.open()
    pixels = data.test.images.read(torch.arange(len(data.test)))
    found = model.predict(pixels, coverage=0.6)
    labels = [model.classes[at] for at in data.test.labels.tolist()]
    right = [label in (one.classes or ()) for label, one in zip(labels, found, strict=True)]
    assert sum(right) / len(right) == pytest.approx(summary["sets"]["coverage"], abs=0.03)
    alarms = sum(bool(one.unlike) for one in found) / len(found)
    assert alarms == pytest.approx(summary["ood"]["false_alarm"], abs=0.03)
    scaling = known_of.scaling
    for one in found[:5]:
        given = torch.tensor([*one.table()["probabilities"].values()]).log()
        assert one.calibrated == pytest.approx(float(scaling.shares(given[None]).max()), abs=1e-4)
    wider = model.predict(pixels, coverage=0.8)
    assert all(
        set(one.classes or ()) <= set(other.classes or ())
        for one, other in zip(found, wider, strict=True)
    )


def test_an_image_unlike_the_training_is_marked_and_gets_no_answer(run: Path) -> None:
    model = fedsight.load(run)
    strange = torch.zeros(1, 1, 8, 8)  # all others are noisy
    (one,) = model.predict(strange, coverage=0.6, abstain=True)
    assert one.unlike is True
    assert one.abstained
    assert one.label is None
    assert one.table()["label"] is None
    assert one.table()["abstained"] is True


def test_the_command_prints_sets_or_names_what_is_enough(run: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (8, 8), 128).save(tmp_path / "grey.png")
    asked = ("predict", run, tmp_path / "grey.png", "--coverage", "0.6")
    told = json.loads(done(*asked, "--json").out)
    assert set(told[0]["set"]) <= set(fedsight.load(run).classes)
    assert "set" in done(*asked, "--abstain").out
    error = refused(3, *asked[:-1], "0.999")
    assert "too few" in error
    assert "at least 999" in error
    assert "--coverage" in refused(3, *asked[:-2], "--abstain")
    with pytest.raises(DataError, match="not between 0 and 1"):
        fedsight.load(run).predict(torch.zeros(1, 8, 8), coverage=1.5)


def test_a_site_that_got_another_model_has_sets_of_that_one(run: Path) -> None:
    """Those that the comparison tells are found again image by image."""
    store, given = RunStore(run), read(run)["delivered_by_site"]
    federation = federate(store.program()[0])
    told = json.loads((run / "comparison.json").read_text())["delivered"]
    assert len(given) == len(told) > 1
    for number, (site, kind) in enumerate(sorted(given.items())):
        theirs, sets = fedsight.load(run).for_site(site), told[site]["trust"]["sets"]
        images = images_of_site(federation, number)
        assert images is not None
        (tested,) = images.tested
        pixels = federation.dataset.test.images.read(tested.indices)
        found = theirs.predict(pixels, coverage=0.6)
        labels = [theirs.classes[at] for at in tested.labels().tolist()]
        right = [label in (one.classes or ()) for label, one in zip(labels, found, strict=True)]
        assert len(right) == sets["tested"]
        if kind != "shared":  # its sets are those of all sites' images
            assert sum(right) / len(right) == pytest.approx(sets["coverage"])
        place = place_of(store.delivered, site)
        assert place.is_dir()
        with pytest.raises(DataError, match="too few") as error:
            theirs.predict(pixels, coverage=0.999)
        wanted = "at least 3996 test images" if kind != "shared" else "at least 999"
        assert wanted in error.value.cure
    page = (run / "report.html").read_text()
    assert "The model that a site got" in page


@pytest.mark.parametrize(
    "sections",
    [
        {"secure": {"name": "secagg"}},
        {
            "privacy": {"name": "central", "noise_multiplier": 1.0},
            "rounds": {"weighting": "uniform", "validation": 0.4},
        },
    ],
)
def test_what_stays_at_a_site_is_measured_whatever_protects_what_travels(
    tmp_path: Path, sections: dict[str, Any]
) -> None:
    config = write_config(tmp_path, **{**HELD, **sections}, trust={"coverage": 0.6})
    done("compare", config, "--workers", "2", "--out", tmp_path / "run")
    told = json.loads((tmp_path / "run" / "comparison.json").read_text())["delivered"]
    assert all(one["trust"]["sets"]["coverage"] is not None for one in told.values())
    model = fedsight.load(tmp_path / "run")
    (one,) = model.for_site(next(iter(told))).predict(torch.zeros(1, 8, 8), coverage=0.6)
    assert one.classes is not None
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The model that a site got" in page
    if "privacy" in sections:
        with pytest.raises(DataError, match="no prediction sets"):
            model.predict(torch.zeros(1, 8, 8), coverage=0.6)
        assert "The common model’s answers" not in page
        return
    (common,) = model.predict(torch.zeros(1, 8, 8), coverage=0.6)
    assert common.classes is not None
    sets = read(tmp_path / "run")["sets"]
    assert (sets["sums"], sets["by_site"], sets["by"]) == ("masked", {}, "held-out inputs")
    assert "sums that the sites sent masked" in page


def test_the_report_says_for_whom_sets_hold(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "How far to trust an answer" in page
    assert "of all sites together" in page
    assert "Right answers over confidence" in page


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"trust": {"measured": False}}, "trust.measured is false"),
        (
            {
                "privacy": {"name": "central", "noise_multiplier": 1.0},
                "rounds": {"weighting": "uniform"},
            },
            "noise protects",
        ),
    ],
)
def test_what_is_left_out_has_a_reason(
    sections: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """Nothing exact goes around masks or noise."""
    done("run", write_config(tmp_path, **sections), "--workers", "1", "--out", tmp_path / "run")
    summary = read(tmp_path / "run")
    for part in PARTS:
        assert reason in summary[part]["reason"]
        assert set(summary[part]) == {"reason"}
    assert not (tmp_path / "run" / "trust.json").exists()
    assert not (tmp_path / "run" / "unlike.safetensors").exists()
    assert "were not measured" in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(DataError, match="no prediction sets"):
        fedsight.load(tmp_path / "run").predict(torch.zeros(1, 8, 8), coverage=0.9)


def test_each_site_has_its_own_sets_where_it_has_its_own_model(tmp_path: Path) -> None:
    """fedrep: every site answers with its own head, and features are not compared."""
    config = write_config(
        tmp_path,
        rounds={"validation": 0.4},
        algorithm={"name": "fedrep"},
        trust={"guarantee": "site", "coverage": 0.5},
    )
    done("run", config, "--workers", "1", "--out", tmp_path / "run")
    summary = read(tmp_path / "run")
    assert summary["ood"]["score"] == "energy"
    site = next(iter(summary["sets"]["by_site"]))
    mine = fedsight.load(tmp_path / "run").for_site(site)
    (one,) = mine.predict(torch.zeros(1, 8, 8), coverage=0.5)
    assert one.classes is not None
    assert summary["sets"]["guarantee"] == "site"


def test_sets_of_different_networks_are_those_of_a_site(tmp_path: Path) -> None:
    """Of `[[model.groups]]` the common model is no site's, and nothing was measured of it."""
    network = {"width": 8, "groups": [{"sites": ["site-01"], "width": 4}]}
    config = write_config(tmp_path, **HELD, model=network)
    done("run", config, "--workers", "1", "--out", tmp_path / "run")
    model, image = fedsight.load(tmp_path / "run"), torch.zeros(1, 8, 8)
    with pytest.raises(DataError, match="each site has a model of its own") as error:
        model.predict(image, coverage=0.5)
    assert "name a site with --site" in error.value.cure
    (plain,) = model.predict(image)
    assert plain.calibrated is None
    assert plain.unlike is None
    (one,) = model.for_site("site-01").predict(image, coverage=0.5)
    assert one.classes is not None


def test_what_few_images_cannot_tell_is_left_as_it_is_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About ten images for the temperature; and energies that are all at the end of the scale."""
    monkeypatch.setattr(measure, "energy", lambda logits: torch.ones(len(logits)))
    config = write_config(
        tmp_path,
        rounds={"validation": 0.1},
        trust={"unlike": "energy", "coverage": 0.6, "false_alarm": 0.2},
    )
    done("run", config, "--workers", "1", "--out", tmp_path / "run")
    summary = read(tmp_path / "run")
    assert summary["calibration"]["fitted"] < 20
    assert summary["calibration"]["temperature"] == 1
    assert known(tmp_path / "run").scaling == TemperatureScaling(1.0)
    assert summary["calibration"]["ece"] == summary["calibration"]["ece_before"]
    assert "too few: it needs 20" in summary["calibration"]["reason"]
    assert "as the scale goes" in summary["ood"]["reason"]
    assert known(tmp_path / "run").limit is None
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Scores are not scaled as asked" in page
    assert "as the scale goes" in page


def test_the_report_rounds_no_share_up_to_all(run: Path) -> None:
    found = read_run(run)
    assert found.summary is not None
    assert found.summary.sets is not None
    for guarantee, wanted in (
        ("mixture", "By chance this share varies"),
        ("site", "over the sites"),
    ):
        sets = found.summary.sets.model_copy(update={"asked": 0.995, "guarantee": guarantee})
        changed = replace(found, summary=found.summary.model_copy(update={"sets": sets}))
        told = " ".join(map(str, lines(changed)))
        assert "99.5" in told
        assert wanted in told


def test_broken_files_are_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    path, store = tmp_path / "run" / "trust.json", RunStore(tmp_path / "run")
    facts = json.loads(path.read_text())
    sets = facts["sets"]
    for broken in (
        {"scaling": {"kind": "temperature", "temperature": -1}},
        {"scaling": {"kind": "vector", "factors": [-1.0] * 4, "offsets": [0.0] * 4}},
        {"scaling": {"kind": "isotonic", "temperature": 1.0, "steps": [[[0, 2.0]]] * 4}},
        {"scaling": {"kind": ["x"]}},
        {"scaling": {"kind": "temperature", "temperature": 10**400}},
        {"head": []},
        {"ood": None},
        {"ood": {**facts["ood"], "threshold": float("nan")}},  # no image would be unlike
        {"sets": {**sets, "classes": [[]] * 100_000}},
        {"sets": {**sets, "sites": {str(name): [] for name in range(300)}}},
        {"sets": {**sets, "classes": [[[0, 1 << 70]]] * 4}},
        {"sets": {**sets, "classes": [[[5000, 1]]] * 4}},
    ):
        path.write_text(json.dumps({**facts, **broken}))
        with pytest.raises(StoreError, match=r"trust\.json is broken"):
            kept(store, 4, store.model)
    path.write_text(json.dumps(facts))
    beside = tmp_path / "run" / "unlike.safetensors"
    for torn in (b"torn", b"torn twice"):
        beside.write_bytes(torn)
        sha256 = hashlib.sha256(b"torn twice").hexdigest()
        path.write_text(json.dumps({**facts, "tensors": sha256}))
        with pytest.raises(StoreError, match=r"unlike\.safetensors is broken"):
            kept(store, 4, store.model)
    tensors = load_file(run / "unlike.safetensors")
    nothing = {name: torch.full_like(value, torch.nan) for name, value in tensors.items()}
    save_file(nothing, beside)
    sha256 = hashlib.sha256(beside.read_bytes()).hexdigest()
    path.write_text(json.dumps({**facts, "tensors": sha256}))
    with pytest.raises(StoreError, match="not finite"):
        kept(store, 4, store.model)
    shutil.copy(run / "unlike.safetensors", tmp_path / "run" / "unlike.safetensors")
    path.write_text(json.dumps({**facts, "head": "nowhere"}))
    with pytest.raises(StoreError, match="not of its network"):
        fedsight.load(tmp_path / "run").predict(torch.zeros(1, 8, 8))
    assert load_file(run / "unlike.safetensors").keys() == {"mixing", "whitening", "means"}


def test_what_was_measured_of_another_model_is_refused(run: Path, tmp_path: Path) -> None:
    """Its sets would promise what they do not hold, and nothing would show it."""
    shutil.copytree(run, tmp_path / "run")
    model = tmp_path / "run" / "model.safetensors"
    tensors = load_file(model)
    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first] + 1}, model)
    with pytest.raises(StoreError, match="belongs to another model") as refused_by:
        fedsight.load(tmp_path / "run").predict(torch.zeros(1, 8, 8))
    assert "remove" in refused_by.value.cure
    (tmp_path / "run" / "trust.json").unlink()
    assert fedsight.load(tmp_path / "run").predict(torch.zeros(1, 8, 8))


def test_over_fitting_and_corruptions_of_all_models_are_told(tmp_path: Path) -> None:
    config = write_config(tmp_path, **HELD, trust={"robustness": True})
    done("compare", config, "--workers", "2", "--out", tmp_path / "run")
    summary, comparison = (
        read(tmp_path / "run"),
        json.loads((tmp_path / "run" / "comparison.json").read_text()),
    )
    gaps, stress = summary["overfitting"], summary["robustness"]
    for arm in ("federated", "pooled"):
        assert gaps[arm]["gap"] == pytest.approx(gaps[arm]["train"] - gaps[arm]["test"])
        low, high = gaps[arm]["interval"]
        assert low <= gaps[arm]["gap"] <= high
        every = [one for each in stress[arm]["by_kind"].values() for one in each]
        assert len(every) == 30
        assert stress[arm]["corrupted"] == pytest.approx(sum(every) / 30)
    assert gaps["federated"]["test"] == pytest.approx(summary["score"])
    assert gaps["pooled"]["test"] == pytest.approx(comparison["pooled"]["score"])
    for told in (gaps, stress):
        both = [(one["federated"], one["alone"]) for one in told["by_site"].values()]
        assert len(both) == summary["sites"]
        for at, key in enumerate(("federated", "alone")):
            assert told["sites"][key] == pytest.approx(sum(one[at] for one in both) / len(both))
    assert not any("exam" in one for one in comparison["alone"].values())
    text = " ".join(str(line) for line in generalisation.lines(read_run(tmp_path / "run")))
    assert "Over-fitting" in text
    assert "Corrupted" in text


def test_a_run_without_baselines_tells_its_own_gap_alone(run: Path, tmp_path: Path) -> None:
    done("run", write_config(tmp_path, **HELD), "--workers", "1", "--out", tmp_path / "run")
    summary = read(tmp_path / "run")
    assert summary["overfitting"]["federated"]["gap"] is not None
    assert summary["overfitting"]["pooled"] is None
    assert "sites" not in summary["overfitting"]
    assert "trust.robustness is false" in summary["robustness"]["reason"]


def test_scores_can_be_scaled_class_by_class(tmp_path: Path) -> None:
    held: dict[str, Any] = {"rounds": {"validation": 0.5}}
    config = write_config(tmp_path, **held, trust={"scaling": "vector"})
    done("run", config, "--workers", "1", "--out", tmp_path / "run")
    told = read(tmp_path / "run")["calibration"]
    assert told["scaling"] == "vector"
    assert "temperature" not in told
    assert known(tmp_path / "run").scaling.kind == "vector"
    assert "scaled class by class" in " ".join(map(str, lines(read_run(tmp_path / "run"))))
