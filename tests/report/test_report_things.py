"""A report on texts speaks of texts, not of images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fedsight.core.errors import StoreError
from fedsight.report.page import build
from fedsight.report.sites import SITE_TEST

PRIVACY = {
    **{"epsilon": 1.0, "delta": 1e-5, "target": 1.0, "unit": "client"},
    **{"rounds": 3, "rounds_planned": 9, "stopped": True},
}


def of_texts(files: dict[str, Any]) -> None:
    """Everything that a report can speak of, learned from texts."""
    files["run.json"]["preprocess"] = {"channels": 1, "modality": "text"}
    files["run.json"]["data"] |= {"title": "Letters", "skipped": ["a.csv, line 3"]}
    files["summary.json"]["privacy"] = PRIVACY
    for sample in files["evaluation.json"]["samples"]:
        sample |= {"image": None, "text": "dear sir"}


def read(*folders: Path) -> str:
    """All that a browser shows or reads aloud."""
    page = build(list(folders)).read_text(encoding="utf-8")
    body = re.sub(r"<style.*?</style>", "", page[page.index("<body>") :], flags=re.DOTALL)
    said = " ".join(re.findall(r' (?:alt|title|aria-label)="([^"]*)"', body))
    return re.sub(r"\s+", " ", said + re.sub(r"<[^>]*>", " ", body))


@pytest.mark.parametrize(
    ("test", "unit"), list(zip(SITE_TEST, ("client", "example", "client", "example"), strict=True))
)
def test_a_run_on_texts_speaks_of_texts(make_run, test: str, unit: str) -> None:
    def change(files: dict[str, Any]) -> None:
        of_texts(files)
        files["evaluation.json"]["site_test"] = test
        files["summary.json"]["privacy"] = {**PRIVACY, "unit": unit}

    seen = read(make_run(change=change))
    assert not re.search(r"\b(images?|pictures?|pixels?)\b", seen, re.IGNORECASE)
    for words in (
        "without sharing their texts",
        "pooling all texts reaches",
        "10,000 training texts (Letters), held by ten sites",
        "on 2,000 test texts",
        "without sharing texts, and all texts in one place",
        "Training texts of each class at each site",
        "so these texts make the model look worse than it is",
        "Skipped texts: 1",
        "looks at a text and names its class",
        "a client with all its texts" if unit == "client" else "a single text",
    ):
        assert words in seen, words


def test_a_run_that_does_not_say_learned_from_images(make_run) -> None:
    def change(files: dict[str, Any]) -> None:
        files["run.json"]["preprocess"] = {"channels": 1, "modality": "image"}

    old, new = read(make_run("old")), read(make_run("new", change=change))
    assert old == new
    assert "10,000 training images" in old
    assert not re.search(r"\btexts?\b", old, re.IGNORECASE)


def test_runs_of_both_kinds_side_by_side_name_both(make_run) -> None:
    seen = read(make_run("images"), make_run("texts", name="letters", change=of_texts))
    assert "A holder of images or texts" in seen
    assert "Loss on test images or texts after each round" in seen
    assert "letters : Ten sites reached 88.1 % without sharing their texts" in seen
    assert "fashion : Ten sites reached 88.1 % without sharing their images" in seen


def test_what_no_network_looks_at_is_a_broken_file(make_run) -> None:
    def change(files: dict[str, Any]) -> None:
        files["run.json"]["preprocess"] = {"modality": "smell"}

    with pytest.raises(StoreError, match=r"run\.json is broken: preprocess\.modality"):
        build([make_run(change=change)])
