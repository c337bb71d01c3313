"""A report on texts speaks of texts, not of images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from report_pages import Page

from fedsight.core.errors import StoreError
from fedsight.report.page import build

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
    page = Page(build(list(folders)).read_text(encoding="utf-8"))
    said = [given.get(name) for _, given in page.tags for name in ("alt", "title", "aria-label")]
    return f"{' '.join(text for text in said if text)} {page.text}"


@pytest.mark.parametrize(
    ("test", "unit"),
    [
        ("label mix", "client"),
        ("test part", "example"),
        ("own images", "client"),
        ("whole test part", "example"),
    ],
)
def test_a_run_on_texts_speaks_of_texts(make_run, test: str, unit: str) -> None:
    def change(files: dict[str, Any]) -> None:
        of_texts(files)
        files["evaluation.json"]["site_test"] = test
        files["summary.json"]["privacy"] = {**PRIVACY, "unit": unit}

    seen = read(make_run(change=change))
    assert not re.search(r"\b(images?|pictures?|pixels?)\b", seen, re.IGNORECASE)
    for words in (
        "On the shared test texts, 10 sites together reach",
        "10,000 training texts (Letters), held by 10 sites",
        "without sharing texts, and with all texts in one place",
        "Training texts of each class at each site",
        "so these texts make the model look worse than it is",
        "A holder of texts, such as a hospital",
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
    assert "On the shared test texts, 10 sites together reach 88.1 %" in seen
    assert "On the shared test images, 10 sites together reach 88.1 %" in seen


def test_what_no_network_looks_at_is_a_broken_file(make_run) -> None:
    def change(files: dict[str, Any]) -> None:
        files["run.json"]["preprocess"] = {"modality": "smell"}

    with pytest.raises(StoreError, match=r"run\.json is broken: preprocess\.modality"):
        build([make_run(change=change)])
