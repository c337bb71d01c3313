"""The configs in the guides and explanations are accepted by the program."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from docpages import PAGES, blocks

from fedsight.data.fetch.cache import fetch
from fedsight.deploy.site.owner import parse_owner
from fedsight.program.config import parse

# The sections that a page's excerpts leave out.
REST: dict[str, Any] = {
    "data": {"name": "fashion-mnist-12k"},
    "split": {"name": "iid", "sites": 1000},
}
LABELS: dict[str, Any] = {
    "data": {"name": "boxes", "path": "annotations.json", "sites_in_path": True},
    "split": {"name": "natural"},
    "model": {"name": "small_detector"},
    "task": {"name": "detect"},
}
TESTED = ("docs/how-to/", "docs/explanation/")
CONFIGS = [
    pytest.param(block, id=f"{page}:{number}")
    for page in PAGES
    if page.startswith(TESTED)
    for number, block in enumerate(blocks(page, "toml"), 1)
    if "[project" not in block  # that of a package
]


@pytest.mark.parametrize("block", CONFIGS)
def test_a_config_in_a_guide_is_accepted(block: str, tmp_path: Path) -> None:
    table = tomllib.loads(block)
    if table.keys() & {"contract", "delivery", "monitoring", "hooks", "keep"}:  # a site's file
        table.setdefault("data", {"name": "folder", "path": "images"})
        parse_owner(table, tmp_path)
        return
    if table.keys() == {"data"} and table["data"].keys() == {"labelled"}:
        table = {**LABELS, "data": {**LABELS["data"], **table["data"]}}
    elif "data" not in table:
        sites = max(10, table.get("rounds", {}).get("cohort", 0))
        table = {**REST, "split": {"name": "iid", "sites": sites}, **table}
    program, speed = parse(table, base=tmp_path)
    for name in program.needs():  # weights; a reader fetches them as the page says
        fetch(name, print)
    problems = [*program.check(), *speed.check()]
    # Images and traces are the reader's own; without images, the number of sites is not known. And
    # this machine's processor may lack what the page asks for.
    missing = {"data.path", "data", "participation.file", "speed.precision"}
    missing |= {"public.source.path"}
    assert [problem for problem in problems if problem.where not in missing] == []


def test_the_guides_have_configs() -> None:
    assert len(CONFIGS) >= 15
