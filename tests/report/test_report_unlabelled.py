"""The report says which classes a site does not label."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import report_pages

from fedsight.core.errors import FedSightError
from fedsight.language.message import text_in
from fedsight.report.read import read
from fedsight.report.sites import LISTED, unlabelled


def labelling(folder: Path, sites: dict[int, list[int]]) -> Path:
    """The run with sites that do not label some classes."""
    facts = json.loads((folder / "run.json").read_text())
    for site, classes in sites.items():
        facts["sites"][site]["unlabelled"] = classes
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


def test_the_page_names_sites_and_classes_in_both_languages(make_run: Callable[..., Path]) -> None:
    folder = make_run("one")
    assert unlabelled(read(folder)) == ""
    said = "left out of its training and of its figure: {}"
    names = json.loads((folder / "run.json").read_text())
    site, classes = names["sites"][2]["name"], names["classes"]
    labelling(folder, {2: [0, 3]})
    listed = f"{site} ({classes[0]}, {classes[3]})"
    assert said.format(listed) in report_pages.page(folder).text
    assert listed in report_pages.page(folder, language="zh").text


def test_of_many_sites_the_first_are_named(make_run: Callable[..., Path]) -> None:
    folder = make_run("many")
    facts = json.loads((folder / "run.json").read_text())
    facts["sites"] = [{"name": f"s{n}", "unlabelled": [1]} for n in range(LISTED + 2)]
    (folder / "run.json").write_text(json.dumps(facts))
    found = text_in(unlabelled(read(folder)), "en")
    assert f"s{LISTED - 1} (" in found
    assert f"s{LISTED} (" not in found
    assert "; ..." in found


def test_a_class_that_there_is_not_makes_the_file_unusable(make_run: Callable[..., Path]) -> None:
    with pytest.raises(FedSightError):
        read(labelling(make_run("odd"), {0: [99]}))
