"""Whole runs on real garments: a mark planted at one site is named with its spot, and without it
nothing is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsight
from fedsight.data.sources.samples import FashionMnist12k
from fedsight.language.message import text_in
from fedsight.report import shortcuts
from fedsight.report.page import render
from fedsight.report.read import read

SITES, EACH, BAG = 4, 350, 8
MARK = (slice(1, 5), slice(23, 27))  # rows and columns: the upper right corner
TRAINING: dict[str, Any] = {
    "model": {"name": "small_cnn", "width": 8},
    "train": {"epochs": 2, "batch": 32, "lr": 0.05, "momentum": 0.9},
    "rounds": {"rounds": 3, "validation": 0.3},
    "trust": {"shortcuts": True},
    "speed": {"workers": 1},
}


def garments(marked: int | None) -> fedsight.Source:
    """Sites with equally many garments; all bags of one site have a white mark in a corner."""
    full = FashionMnist12k().open()
    sites = {}
    for site in range(SITES):
        own = slice(site * EACH, (site + 1) * EACH)
        pixels, labels = full.train.images.pixels[own].clone(), full.train.labels[own]
        if site == marked:
            bags = torch.from_numpy(labels == BAG)
            some = pixels[bags]
            some[:, :, MARK[0], MARK[1]] = 255
            pixels[bags] = some
        sites[f"clinic-{site}"] = list(zip(pixels, labels.tolist(), strict=True))
    test = list(zip(full.test.images.pixels[:200], full.test.labels[:200].tolist(), strict=True))
    return fedsight.sites(sites, test=test, classes=full.classes, mean=[0.286], std=[0.353])


def parted(classes: dict[str, list[int]], marked: str = "") -> fedsight.Source:
    """Sites that have only some classes, of each about as many garments; all of `marked` have a
    white mark in a corner."""
    full = FashionMnist12k().open()
    sites = {}
    for number, (site, own) in enumerate(classes.items()):
        mine = torch.from_numpy(np.isin(full.train.labels, own)).nonzero().flatten()
        places = mine[number :: len(classes)][:EACH]
        pixels, labels = full.train.images.pixels[places].clone(), full.train.labels[places.numpy()]
        if site == marked:
            pixels[:, :, MARK[0], MARK[1]] = 255
        sites[site] = list(zip(pixels, labels.tolist(), strict=True))
    test = list(zip(full.test.images.pixels[:200], full.test.labels[:200].tolist(), strict=True))
    return fedsight.sites(sites, test=test, classes=full.classes, mean=[0.286], std=[0.353])


def said(folder: Path) -> tuple[str, str]:
    """The report's warnings, and its lines."""
    known = read(folder)
    found = (shortcuts.warnings(known), shortcuts.lines(known))
    first, second = (" ".join(text_in(line, "en") for line in told) for told in found)
    return first, second


def test_a_site_that_has_only_the_class_with_the_mark_is_warned_of(tmp_path: Path) -> None:
    """The textbook's case: one hospital has positives only, and all its images have a mark. There
    is nothing to paste the spot on."""
    every = [0, 1, 2, BAG]
    classes = {"clinic-0": every, "clinic-1": [BAG], "clinic-2": every}
    folder = tmp_path / "run"
    run = fedsight.run(data=parted(classes, "clinic-1"), out=folder, **TRAINING)
    (one,) = run.summary["shortcuts"]["flagged"]
    assert (one["site"], one["label"], one["verdict"]) == ("clinic-1", "Bag", "untested")
    assert one["pasted"]["tried"] == 0 < one["pasted_elsewhere"]["tried"]
    warned, told = said(folder)
    assert "site clinic-1" in warned
    assert "could not be tested" in warned
    assert "need not be a shortcut" not in told
    assert "Pasted on 0" not in told
    assert "No site stands out" not in told


def test_where_nothing_could_be_compared_no_all_clear_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    source = parted({"clinic-0": [0, 1, 2], "clinic-1": [7, BAG]})
    run = fedsight.run(data=source, out=folder, **{**TRAINING, "rounds": {"validation": 0.3}})
    told = run.summary["shortcuts"]
    assert (told["pairs"], told["compared"], told["flagged"]) == (5, 0, [])
    _, lines = said(folder)
    assert "Nothing could be compared: in none of 5 cases" in lines
    assert "No site stands out" not in lines


def test_what_was_left_out_is_counted_and_said(planted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(planted, tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    told = summary["shortcuts"]
    told |= {"flagged": [], "compared": 12, "pairs": 40}
    told |= {"unasked": 3, "classes": 30, "classes_unasked": 10}
    (folder / "summary.json").write_text(json.dumps(summary))
    _, lines = said(folder)
    assert "Of 40 cases in which a site has a class, 12 could be compared" in lines
    assert "3 more spots stand out" in lines
    assert "For 10 of 30 classes it was not tried" in lines
    assert "No site stands out" not in lines


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison in which one site's bags have a mark."""
    folder = tmp_path_factory.mktemp("shortcuts") / "run"
    fedsight.compare(data=garments(2), out=folder, **TRAINING)
    return folder


def test_the_summary_names_the_site_the_class_and_the_spot(planted: Path) -> None:
    told = fedsight.load(planted).summary["shortcuts"]
    (one,) = told["flagged"]
    assert (one["site"], one["label"], one["verdict"]) == ("clinic-2", "Bag", "shortcut")
    left, top, right, bottom = (28 * side for side in one["box"])
    assert left <= MARK[1].start
    assert right >= MARK[1].stop
    assert top <= MARK[0].start
    assert bottom >= MARK[0].stop
    assert one["share"] > 0.5 > 0.2 > one["elsewhere"]["share"]
    assert one["p"] <= told["false_alarm"]
    assert one["pasted"]["raised"] > 0.8 * one["pasted"]["tried"]
    assert told["everywhere"] == []


def test_after_a_comparison_it_says_how_far_the_sites_own_models_agree(planted: Path) -> None:
    told = fedsight.load(planted).summary["shortcuts"]
    assert {*told["by_site"]} == {f"clinic-{site}" for site in range(SITES)}
    for one in told["by_site"].values():
        assert -1 <= one["agreement"] <= 1
    comparison = (planted / "comparison.json").read_text()
    assert "alike" not in comparison


def test_the_report_names_them_in_both_languages_and_shows_no_image(planted: Path) -> None:
    known = read(planted)
    said = [*shortcuts.warnings(known), *shortcuts.lines(known)]
    for language in ("en", "zh"):
        text = " ".join(text_in(line, language) for line in said)
        assert "clinic-2" in text
        assert "Bag" in text
    assert any("shortcut" in str(line) for line in said)
    page = render([known])
    assert "Does it look at the same thing" in page
    section = page[page.index('-spots">', page.index("<section")) :]
    section = section[: section.index("</section>")]
    assert "<svg" in section
    assert "data:image" not in section


def test_without_a_mark_nothing_is_named(tmp_path: Path) -> None:
    run = fedsight.run(data=garments(None), out=tmp_path / "run", **TRAINING)
    told = run.summary["shortcuts"]
    assert told["flagged"] == told["everywhere"] == []
    known = read(tmp_path / "run")
    assert shortcuts.warnings(known) == []
    text = " ".join(map(str, shortcuts.lines(known)))
    assert told["compared"] == told["pairs"] == 10 * SITES
    assert "All 40 cases in which a site has a class could be compared" in text
    assert "No site stands out in these" in text


def test_a_report_says_why_what_was_asked_for_was_not_measured(tmp_path: Path) -> None:
    settings = {**TRAINING, "rounds": {"rounds": 1}}  # nothing is held out
    run = fedsight.run(data=garments(2), out=tmp_path / "run", **settings)
    assert "held-out" in run.summary["shortcuts"]["reason"]
    known = read(tmp_path / "run")
    assert not shortcuts.measured(known)
    assert "held-out" in str(shortcuts.left_out(known))
