"""The table of faults is what `benchmarks/faults.py` has seen, and all of it in time."""

from __future__ import annotations

import json
import re

from docpages import ROOT, text

RESULT = ROOT / "benchmarks" / "results" / "faults.json"
WITHIN = 10.0  # seconds


def seen() -> list[tuple[str, str, float]]:
    """Where each line was seen, what it was, and after how many seconds."""
    faults = json.loads(RESULT.read_text(encoding="utf-8"))["faults"]
    return [
        (told["place"], told["line"], told["seconds"])
        for one in faults.values()
        for told in one["seen"].values()
    ]


def rows() -> list[tuple[str, str, float]]:
    """The same as the page has it."""
    found = []
    for line in text("docs/how-to/faults.md").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        told = re.fullmatch(r"`(fedsight [\w ]+)`: (.*)", cells[3]) if len(cells) == 6 else None
        if told:
            words = re.sub(r"\\(.)", r"\1", told[2])
            found.append((told[1], words, float(cells[4].removesuffix(" s"))))
    return found


def test_the_page_has_what_was_seen_and_no_more() -> None:
    measured = sorted(seen())
    assert [row[:2] for row in sorted(rows())] == [one[:2] for one in measured]
    for (_, _, told), (_, line, seconds) in zip(sorted(rows()), measured, strict=True):
        assert seconds <= told < seconds + 1.2, line
        assert seconds <= WITHIN, line


def test_nothing_false_was_said() -> None:
    content = json.loads(RESULT.read_text(encoding="utf-8"))
    assert [one["false"] for one in content["faults"].values() if one["false"]] == []
