"""Every link, anchor and file that the documents name exists, and every page is reachable."""

from __future__ import annotations

import posixpath
import re

import pytest
from docpages import PAGES, ROOT, anchors, links, text

OUTSIDE = ("http://", "https://")
SOURCES = ("src", "tests", "tools", "benchmarks", "deploy")
ROOMS = "|".join(path.name for path in (ROOT / "src/fedsight").iterdir() if path.is_dir())
NAMED = re.compile(rf"(?<![\w./])((?:src/fedsight/)?(?:{ROOMS})/[\w/]+\.py)\b")


def local(page: str) -> list[tuple[str, str]]:
    """The links of a page that stay in the repository, as (path, anchor)."""
    found = []
    for target in links(page):
        if not target.startswith(OUTSIDE):
            path, _, anchor = target.partition("#")
            folder = posixpath.dirname(page)
            where = posixpath.normpath(posixpath.join(folder, path)) if path else page
            found.append((where, anchor))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_lead_somewhere(page: str) -> None:
    for path, anchor in local(page):
        assert (ROOT / path).exists(), path
        assert not anchor or anchor in anchors(path), f"{path}#{anchor}"


def test_every_page_is_reachable_from_the_index() -> None:
    seen: set[str] = set()
    left = ["docs/index.md"]
    while left:
        page = left.pop()
        if page not in seen:
            seen.add(page)
            left += [path for path, _ in local(page) if path.endswith(".md")]
    assert {page for page in PAGES if page.startswith("docs/")} <= seen


def test_the_index_is_reachable_from_both_readmes() -> None:
    for page in ("README.md", "README.zh-CN.md"):
        assert "docs/index.md" in {path for path, _ in local(page)}


def test_pages_that_the_sources_name_exist() -> None:
    files = [ROOT / "Makefile"]
    for folder in SOURCES:
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")]
    files += [ROOT / "deploy/Containerfile"]
    named = {
        page
        for path in files
        for page in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8"))
    }
    assert "docs/reference/reference.md" in named
    assert {page for page in named if not (ROOT / page).exists()} == set()


@pytest.mark.parametrize("page", PAGES)
def test_modules_that_a_page_names_exist(page: str) -> None:
    for name in NAMED.findall(text(page)):
        if page == "CONTRIBUTING.md" and name.endswith("fedcm.py"):
            continue  # the example that the reader is to write
        assert (ROOT / "src/fedsight" / name.removeprefix("src/fedsight/")).is_file(), name


def test_module_names_are_recognised() -> None:
    assert NAMED.findall("`deploy/site/service.py`, `src/fedsight/core/rng.py`.") == [
        "deploy/site/service.py",
        "src/fedsight/core/rng.py",
    ]


@pytest.mark.parametrize("page", PAGES)
def test_tests_tools_and_benchmarks_that_a_page_names_exist(page: str) -> None:
    for name in re.findall(r"`(?:python )?((?:tests|tools|benchmarks)/[\w/-]+\.\w+)", text(page)):
        if name != "tests/identities/test_fedcm.py":  # which the reader is to write
            assert (ROOT / name).is_file(), name
