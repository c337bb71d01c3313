"""The table of layouts names tests that exist, for each of its rows."""

from __future__ import annotations

import re

from docpages import ROOT, text

PAGE = "docs/reference/layouts.md"


def test_every_row_names_tests_that_exist() -> None:
    lines = [line for line in text(PAGE).splitlines() if line.startswith("| ")]
    rows = [line for line in lines if not line.startswith("| layout or format")]
    assert len(rows) > 30
    named = [re.findall(r"`(test_\w+)`", row.split("|")[-2]) for row in rows]
    assert all(named)
    defined = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.M)
    }
    assert (
        set(re.findall(r"`(test_\w+)`", text(PAGE)))
        - {"test_path", "test_part", "test_fraction", "test_"}
        <= defined
    )
