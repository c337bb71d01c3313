"""The generated reference pages are up to date and complete."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from fedsight.algorithms.base import algorithms
from fedsight.data.base import sources
from fedsight.data.partition import splits
from fedsight.models.base import models
from fedsight.privacy.base import mechanisms
from fedsight.tasks.base import tasks

ROOT = Path(__file__).parents[2]


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_reference", ROOT / "tools/make_reference.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date() -> None:
    module = tool()
    page: Path = module.PAGE
    assert page.read_text(encoding="utf-8") == module.reference(), (
        "regenerate it: .venv/bin/python tools/make_reference.py"
    )


def test_the_compatibility_page_is_up_to_date() -> None:
    module = tool()
    assert module.COMPATIBILITY.read_text(encoding="utf-8") == module.rules.page()


def test_every_registered_part_is_in_the_reference() -> None:
    lines = tool().PAGE.read_text(encoding="utf-8").splitlines()
    for registry in (sources, splits, models, tasks, algorithms, mechanisms):
        for name in registry.names():
            assert f"### {name}" in lines
