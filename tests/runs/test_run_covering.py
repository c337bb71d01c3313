"""Whole runs of tasks whose answers are made large enough: what summary, report and `predict` say.
The images are composed shapes in noise, and no real ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import done, read, refused, write_config
from PIL import Image
from test_run_segment import CLASSES, SIDE, write

import fedsight
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import DataError, StoreError
from fedsight.evaluation.figures import Evaluator
from fedsight.evaluation.trust.saved_risk import kept_risk
from fedsight.program.federation import federate
from fedsight.tasks.covering.masks import Masks

SEGMENT: dict[str, Any] = {
    "data": {"name": "masks", "path": "list.csv", "classes": CLASSES, "size": SIDE, "channels": 1},
    "split": {"name": "natural"},
    "task": {"name": "segment"},
    "model": {"name": "unet", "width": 4, "levels": 2},
    "train": {"epochs": 2, "batch": 6, "lr": 0.3},
    "rounds": {"rounds": 2, "validation": 0.3},
    "trust": {"coverage": 0.8},
}


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that segments, with images beside it."""
    home = tmp_path_factory.mktemp("masks")
    write(home, 160)
    config = write_config(home, "masks", **SEGMENT)
    done("run", config, "--workers", "1", "--out", home / "run")
    return home / "run"


def test_the_summary_tells_how_much_masks_hold(masks: Path) -> None:
    sets = read(masks)["sets"]
    assert sets["covers"] == "masks"
    assert (sets["asked"], sets["smallest"]) == (0.8, 4)
    assert sets["images"] == 36  # 30 % of 120, none fitted to
    assert sets["tested"] == 40
    assert 0 < sets["threshold"] < 1
    assert 0.7 < sets["coverage"] <= 1
    assert set(sets["by_site"]) <= {"a", "b"}
    for part in ("calibration", "ood"):
        assert "one class by its score" in read(masks)[part]["reason"]


def test_predict_marks_the_masks_that_were_measured(masks: Path) -> None:
    model, sets = fedsight.load(masks), read(masks)["sets"]
    held, marked = [], []
    for number in range(3, 160, 4):
        (one,) = model.predict(masks.parent / f"{number}.png", coverage=0.8)
        assert one.answer is not None
        assert one.answer.mask is not None
        truth = torch.from_numpy(np.array(Image.open(masks.parent / f"{number}_mask.png"))).long()
        right = one.answer.mask.gather(0, truth[None])[0][truth > 0]
        held.append(float(right.double().mean()))
        marked.append(float(one.answer.mask.any(0).double().mean()))
        assert tuple(one.answer.details["marked"]) == one.classes
    assert np.mean(held) == pytest.approx(sets["coverage"], abs=1e-4)
    assert np.mean(marked) == pytest.approx(sets["size"], abs=1e-4)


def test_more_coverage_marks_more(masks: Path) -> None:
    model, image = fedsight.load(masks), masks.parent / "3.png"
    found = [model.predict(image, coverage=share)[0].answer for share in (0.5, 0.8, 0.95)]
    low, middle, high = (one.mask for one in found if one is not None and one.mask is not None)
    assert bool((low <= middle).all())
    assert bool((middle <= high).all())
    assert int(high.sum()) > int(low.sum())


def test_the_command_prints_writes_and_draws_masks(masks: Path, tmp_path: Path) -> None:
    asked = ("predict", masks, masks.parent / "3.png", "--coverage", "0.8")
    (told,) = json.loads(done(*asked, "--json").out)
    assert set(told["set"]) == set(told["marked"]) <= set(CLASSES[1:])
    shares = {name: f"{share:.1%}" for name, share in told["marked"].items()}
    table = done(*asked, "--csv", tmp_path / "found.csv", "--draw", tmp_path / "drawn").out
    assert all(share in table for share in shares.values())
    rows = [*csv.DictReader((tmp_path / "found.csv").read_text().splitlines())]
    assert json.loads(rows[0]["set"]) == told["set"]
    done("predict", masks, masks.parent / "3.png", "--draw", tmp_path / "plain")
    drawn, plain = (Image.open(tmp_path / name / "3.png") for name in ("drawn", "plain"))
    assert np.any(np.array(drawn.convert("RGB")) != np.array(plain.convert("RGB")))
    error = refused(3, *asked[:-1], "0.999")
    assert "at least 999 of them" in error
    assert "--abstain" in refused(3, *asked, "--abstain")


def test_the_report_tells_it(masks: Path) -> None:
    page = (masks / "report.html").read_text()
    assert "How far to trust an answer" in page
    assert "Masks: made to hold at least" in page
    assert "of all sites together" in page
    assert "Share that is held" in page
    assert "Confidence off by" not in page


def test_a_broken_file_is_named(masks: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(masks, tmp_path / "run")
    path, store = tmp_path / "run" / "trust.json", RunStore(tmp_path / "run")
    facts = json.loads(path.read_text())
    for broken in ({"covers": "boxes"}, {"parts": {}}, {"guarantee": ["x"]}, {"grouped": 1}):
        path.write_text(json.dumps({**facts, "risk": {**facts["risk"], **broken}}))
        with pytest.raises(StoreError, match=r"trust\.json is broken"):
            kept_risk(store, Masks(), 3, store.model)
    for apart in ("false", 0, None):
        path.write_text(json.dumps({**facts, "apart": apart}))
        with pytest.raises(StoreError, match="not true or false"):
            kept_risk(store, Masks(), 3, store.model)
    (tmp_path / "run" / "model.safetensors").write_bytes(b"another")
    path.write_text(json.dumps(facts))
    with pytest.raises(StoreError, match="belongs to another model"):
        kept_risk(store, Masks(), 3, store.model)


def test_images_that_chose_the_round_are_not_used_again(masks: Path, tmp_path: Path) -> None:
    rounds = {"rounds": 2, "validation": 0.3, "keep": "best"}
    table = {**SEGMENT, "data": {**SEGMENT["data"], "path": str(masks.parent / "list.csv")}}
    config = write_config(tmp_path, "masks", **{**table, "rounds": rounds})
    done("run", config, "--workers", "1", "--out", tmp_path / "run")
    sets = read(tmp_path / "run")["sets"]
    assert sets["by"] == "a half of the test inputs"
    assert (sets["images"], sets["tested"]) == (20, 20)


@pytest.mark.parametrize("guarantee", ["site", "class"])
def test_masks_have_a_guarantee_for_each_site_or_class(
    guarantee: str, masks: Path, tmp_path: Path
) -> None:
    table = {**SEGMENT, "data": {**SEGMENT["data"], "path": str(masks.parent / "list.csv")}}
    trust = {"coverage": 0.8, "guarantee": guarantee}
    config = write_config(tmp_path, "masks", **{**table, "trust": trust})
    done("run", config, "--workers", "1", "--out", tmp_path / "run")
    sets = read(tmp_path / "run")["sets"]
    assert 0.6 < sets["coverage"] <= 1
    over = {"site": "over the sites", "class": "over the classes"}[guarantee]
    assert f"on average {over}" in (tmp_path / "run" / "report.html").read_text()
    model, image = fedsight.load(tmp_path / "run"), masks.parent / "3.png"
    if guarantee == "class":
        assert set(sets["by_class"]) == set(CLASSES)
        assert sets["by_class"]["background"] is None
        assert sets["always"] == []  # the background is never marked
        assert "threshold" not in sets
        assert model.predict(image, coverage=0.8)[0].classes is not None
    else:
        with pytest.raises(DataError, match="is named"):
            model.predict(image, coverage=0.8)
        asked = ("predict", tmp_path / "run", image, "--coverage", "0.8", "--site", "a")
        done(*asked)
        with pytest.raises(StoreError, match="no model for site 'x'"):
            fedsight.load(tmp_path / "run").for_site("x").predict(image)


def test_a_site_has_masks_of_the_model_that_it_got(masks: Path, tmp_path: Path) -> None:
    """Its held-out images chose the model, so half of its test images make the levels."""
    table = {**SEGMENT, "data": {**SEGMENT["data"], "path": str(masks.parent / "list.csv")}}
    table["rounds"] = {"rounds": 2, "validation": 0.5}
    trust = {"coverage": 0.8, "guarantee": "site"}
    config = write_config(tmp_path, "masks", **{**table, "trust": trust})
    run = tmp_path / "run"
    done("compare", config, "--workers", "1", "--out", run)
    told = read(run, "comparison.json")["delivered"]["b"]["trust"]["sets"]
    assert (told["covers"], told["guarantee"]) == ("masks", "site")
    assert (told["images"], told["tested"]) == (20, 20)  # of its 40
    asked = ("predict", run, masks.parent / "7.png", "--site", "b", "--coverage")
    (answer,) = json.loads(done(*asked, "0.8", "--json").out)
    assert set(answer["set"]) == set(answer["marked"])
    error = refused(3, *asked, "0.999")
    assert "at least 1998 test images that show a foreground" in error
    page = (run / "report.html").read_text()
    assert "The model that a site got" in page
    assert "Share that is held" in page


def test_images_of_a_patient_count_once(masks: Path, tmp_path: Path) -> None:
    """Six images of each patient: 36 that are held out are of 6 patients."""
    lines = (masks.parent / "list.csv").read_text().splitlines()
    numbers: dict[tuple[str, str], int] = {}
    rows = [f"{lines[0]},patient"]
    for line in lines[1:]:
        *_, site, part = line.split(",")
        number = numbers[site, part] = numbers.get((site, part), -1) + 1
        rows.append(f"{line},{site}{part}{number // 6}")
    listed = masks.parent / "patients.csv"
    listed.write_text("\n".join(rows) + "\n")
    data = {**SEGMENT["data"], "path": str(listed), "group": "patient"}
    config = write_config(tmp_path, "masks", **{**SEGMENT, "data": data})
    done("run", config, "--workers", "1", "--out", tmp_path / "run")
    sets = read(tmp_path / "run")["sets"]
    assert sets["grouped"]
    assert sets["tested"] == 7  # of 40 images
    assert 4 <= sets["images"] <= 8
    assert "Of a group, such as a patient" in (tmp_path / "run" / "report.html").read_text()
    error = refused(3, "predict", tmp_path / "run", masks.parent / "3.png", "--coverage", "0.99")
    assert "of at least 99 groups" in error


def test_grades_come_as_intervals(tmp_path: Path) -> None:
    held = {"rounds": {"validation": 0.4}, "task": {"name": "ordinal"}}
    config = write_config(tmp_path, **held, trust={"coverage": 0.7})
    done("run", config, "--workers", "1", "--out", tmp_path / "run")
    run, sets = tmp_path / "run", read(tmp_path / "run")["sets"]
    assert sets["covers"] == "grades"
    assert 0.4 < sets["coverage"] <= 1
    model = fedsight.load(run)
    data = RunStore(run).program()[0].data.open()
    pixels = data.test.images.read(torch.arange(len(data.test)))
    found = model.predict(pixels, coverage=0.7, abstain=True)
    held = [
        model.classes[label] in (one.classes or ())
        for label, one in zip(data.test.labels.tolist(), found, strict=True)
    ]
    assert np.mean(held) == pytest.approx(sets["coverage"], abs=1e-4)
    assert any(one.abstained for one in found)
    evaluator = Evaluator(federate(RunStore(run).program()[0]))
    names = evaluator.federation.partition.name
    assert sets["by_site"]
    right, labels = np.array(held), data.test.labels
    each = np.array([right[labels == label].mean() for label in range(len(model.classes))])
    for site in evaluator.sites:  # in its own mix, as sets of classification are
        mix = evaluator.mix(site)
        assert mix is not None
        told = sets["by_site"][names(site)]["coverage"]
        assert told == pytest.approx(float(mix @ each), abs=1e-4)
    assert "Intervals: made to hold" in (run / "report.html").read_text()


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has hardly learnt to detect, with an image beside it."""
    home = tmp_path_factory.mktemp("boxes")
    sections: dict[str, Any] = {
        "data": {"name": "scenes", "sites": 2, "train": 24, "test": 6},
        "split": {"name": "natural"},
        "model": {"name": "small_detector", "width": 4},
        "task": {"name": "detect"},
        "train": {"epochs": 2, "batch": 4, "lr": 0.03, "clip": 2},
        "rounds": {"rounds": 2, "validation": 0.5},
        "trust": {"coverage": 0.05},
    }
    config = write_config(home, "boxes", **sections)
    done("run", config, "--workers", "1", "--out", home / "run")
    data = RunStore(home / "run").program()[0].data.open()
    pixels = (data.test.images.read(torch.arange(1))[0, 0] * 255).to(torch.uint8).numpy()
    Image.fromarray(pixels).save(home / "scene.png")
    return home / "run"


def test_boxes_have_margins_and_classes(boxes: Path, tmp_path: Path) -> None:
    sets = read(boxes)["sets"]
    assert (sets["covers"], sets["images"]) == ("objects", 12)  # half of them for the margins
    assert 0 <= sets["margin"] <= 1
    assert sets["coverage"] is not None
    page = (boxes / "report.html").read_text()
    assert "Boxes: those with a score of at least" in page
    assert "Margins: each side" in page
    asked = ("predict", boxes, boxes.parent / "scene.png", "--coverage", "0.05")
    (told,) = json.loads(done(*asked, "--json", "--csv", tmp_path / "found.csv").out)
    assert told["boxes"]
    for one in told["boxes"]:
        assert one["label"] in one["set"]
        assert one["score"] >= sets["threshold"] * (1 - 1e-6)
        inner, outer = one["box"], one["outer"]
        assert outer[0] <= inner[0] < inner[2] <= outer[2]
        assert outer[1] <= inner[1] < inner[3] <= outer[3]
    rows = [*csv.DictReader((tmp_path / "found.csv").read_text().splitlines())]
    assert [float(row["outer_left"]) for row in rows] == [one["outer"][0] for one in told["boxes"]]
    assert json.loads(rows[0]["set"]) == told["boxes"][0]["set"]
    done(*asked[:3], "--csv", tmp_path / "plain.csv")
    assert "outer_left" not in (tmp_path / "plain.csv").read_text()
    assert "which boxes are shown" in refused(3, *asked, "--confidence", "0.5")
    assert "even the largest answers" in refused(3, *asked[:-1], "0.9")
    assert "at least 1998 of them" in refused(3, *asked[:-1], "0.999")


def test_labels_come_as_sets(tmp_path: Path) -> None:
    """A bright half of an image is a label, and an image may show both or none."""
    rng = np.random.default_rng(0)
    lines = ["path,label,split"]
    for number in range(160):
        has = rng.random(2) < 0.6
        pixels = rng.integers(0, 160, (8, 8))
        pixels[:4] += 60 * has[0]
        pixels[4:] += 60 * has[1]
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        labels = "|".join(name for name, there in zip(("up", "down"), has, strict=True) if there)
        lines.append(f"{number}.png,{labels},{'test' if number % 4 == 3 else 'train'}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    sections: dict[str, Any] = {
        "data": {
            "name": "manifest", "path": "list.csv", "label_separator": "|", "size": 8,
            "channels": 1,
        },
        "split": {"name": "iid", "sites": 2},
        "task": {"name": "multilabel"},
        "rounds": {"rounds": 3, "validation": 0.4},
        "trust": {"coverage": 0.8},
    }  # fmt: skip
    config = write_config(tmp_path, "labels", **sections)
    done("run", config, "--workers", "1", "--out", tmp_path / "run")
    sets = read(tmp_path / "run")["sets"]
    assert sets["covers"] == "labels"
    assert 0.6 < sets["coverage"] <= 1
    assert 0 < sets["size"] <= 2
    assert sets["by_site"] == {}
    assert sets["reason_by_site"] == "sites have no test inputs of their own to show it on"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "as the table shows" not in page
    assert "Single sites are left out: sites have no test inputs of their own" in page
    assert "of the labels on average" in (tmp_path / "run" / "report.html").read_text()
    asked = ("predict", tmp_path / "run", tmp_path / "3.png", "--coverage", "0.8", "--json")
    assert set(json.loads(done(*asked).out)[0]["set"]) <= {"up", "down"}
