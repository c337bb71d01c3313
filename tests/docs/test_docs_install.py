"""The versions and extras that the installation page names are those that are declared and run."""

from __future__ import annotations

import re
import tomllib

import pytest
from docpages import ROOT, text
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from fedsight.core.extras import EXTRAS

PAGE = "docs/how-to/install.md"
PROJECT = tomllib.loads(text("pyproject.toml"))["project"]
GROUPS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
DIRECT = [
    Requirement(line) for group in GROUPS if group not in ("all", "dev") for line in GROUPS[group]
]


def pins(name: str) -> dict[str, Version]:
    """The versions in a file of constraints."""
    lines = [line for line in text(name).splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def rows(heading: str) -> dict[str, list[str]]:
    """The rows of the table whose first line begins so, by their first cell."""
    lines = text(PAGE).splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(heading)) + 2
    table = {}
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        table[first.strip("`")] = rest
    return table


@pytest.mark.parametrize("one", DIRECT, ids=str)
def test_the_oldest_versions_that_are_accepted_are_those_that_are_run(one: Requirement) -> None:
    name = canonicalize_name(one.name)
    lows = [part for part in one.specifier if part.operator in (">=", "==")]
    assert [Version(part.version.removesuffix(".*")) for part in lows] == [
        pins("constraints-lowest.txt")[name]
    ]
    assert one.specifier.contains(pins("constraints.txt")[name])


def test_the_page_names_the_versions_of_both_ends() -> None:
    ends = [pins(name) for name in ("constraints-lowest.txt", "constraints.txt")]
    for name, cells in rows("| | oldest").items():
        if name != "Python":
            package = {"PyTorch": "torch", "timm (extra)": "timm"}.get(name, name)
            assert cells == [str(end[canonicalize_name(package)]) for end in ends]
    for package in ("torch", "torchvision"):  # what was not run is not accepted
        (accepted,) = [one.specifier for one in DIRECT if one.name == package]
        newest = ends[1][package]
        assert not accepted.contains(f"{newest.major}.{newest.minor + 1}.0")


def test_python_is_declared_as_it_is_documented() -> None:
    oldest, newest = rows("| | oldest")["Python"]
    found = [re.search(r":: (3\.\d+)$", line) for line in PROJECT["classifiers"]]
    classified = [match[1] for match in found if match]
    assert (classified[0], classified[-1]) == (oldest, newest)
    assert PROJECT["requires-python"] == f">={oldest}"
    tried = set(rows("| Python | PyTorch"))
    assert set(classified) <= tried


def test_every_extra_is_described() -> None:
    assert {"", "all", "dev", *EXTRAS} == set(GROUPS)
    assert set(rows("| extra")) == set(EXTRAS)
    every = Requirement(GROUPS["all"][0])
    assert every.name == "fedsight"
    assert every.extras == set(EXTRAS)


def test_make_installs_every_extra_at_either_end() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for constraints in ("constraints.txt", "constraints-lowest.txt"):
        assert f"-c {constraints} -e '.[all,dev]'" in makefile
