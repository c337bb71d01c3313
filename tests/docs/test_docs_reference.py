"""The generated reference pages are up to date and complete."""

from __future__ import annotations

import compatibility
import make_reference

from fedsight.program.parts import KINDS


def test_the_reference_is_up_to_date() -> None:
    page = make_reference.PAGE.read_text(encoding="utf-8")
    assert page == make_reference.reference(), (
        "regenerate it: .venv/bin/python tools/make_reference.py"
    )


def test_the_compatibility_page_is_up_to_date() -> None:
    assert make_reference.COMPATIBILITY.read_text(encoding="utf-8") == compatibility.page()


def test_every_registered_part_is_in_the_reference() -> None:
    lines = make_reference.PAGE.read_text(encoding="utf-8").splitlines()
    for _, registry, _ in KINDS:
        for name in make_reference.shipped(registry):
            assert f"### {name}" in lines
