"""Absurd numbers in a run's files are shown as they are, in their place, or refused by name."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_pages import Page

from fedsight.core.errors import StoreError
from fedsight.report.page import build

ABSURD = (1e100, -1e100, 1e308, math.nan, math.inf, -math.inf, None, 0, -1, 10**400, 1e-300)
FILES = ("run.json", "history.jsonl", "summary.json", "evaluation.json", "comparison.json")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all numbers and nulls in a JSON value."""
    if isinstance(value, dict):
        return [found for key, one in value.items() for found in leaves(one, (*path, key))]
    if isinstance(value, list):
        return [found for at, one in enumerate(value) for found in leaves(one, (*path, at))]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return [path] if number or value is None else []


def put(value: Any, path: tuple[Any, ...], leaf: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = leaf


@pytest.fixture
def small(make_run) -> tuple[Path, dict[str, Any]]:
    kept: dict[str, Any] = {}

    def change(files: dict[str, Any]) -> None:
        files["evaluation.json"]["samples"] = files["evaluation.json"]["samples"][:2]
        files["evaluation.json"]["samples"][0] |= {
            "overlap": 0.5,
            "marks": [{"box": [1.0, 2.0, 3.0, 4.0], "label": "a", "kind": "found", "score": 0.5}],
        }
        files["evaluation.json"]["tables"] = [
            {"title": "By class", "columns": ["class", "AP"], "rows": [["car", 0.25]]}
        ]
        files["evaluation.json"]["curves"] = [
            {"title": "ROC", "x": "x", "y": "y", "lines": {"a": [[0.0, 0.0], [1.0, 1.0]]}}
        ]
        files["summary.json"] |= {
            "score_error": 0.01,
            "privacy": {"epsilon": 1.0, "delta": 1e-5, "target": 1.0, "noise_multiplier": 1.0,
                        "rounds": 3, "rounds_planned": 9, "stopped": True},
        }  # fmt: skip
        kept.update(files)

    return make_run(sites=3, classes=("a", "b"), rounds=3, change=change), kept


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_number_may_be_absurd(small, data) -> None:
    folder, files = small
    changed = copy.deepcopy({name: files[name] for name in FILES})
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(FILES))
        path = data.draw(st.sampled_from(leaves(changed[name])))
        put(changed[name], path, data.draw(st.sampled_from(ABSURD)))
    for name, content in changed.items():
        text = json.dumps(content)
        if name == "history.jsonl":
            text = "".join(json.dumps(line) + "\n" for line in content)
        (folder / name).write_text(text)
    with contextlib.suppress(StoreError):
        seen = Page(build([folder]).read_text())
        visible = seen.text.replace("9d" * 32, "")
        assert not re.search(r"\d[\d,.]{25,}", visible)  # no number is longer than its place
        assert "nan" not in visible.replace("Finance", "").split()
        for _, given in seen.tags:
            drawn = " ".join(
                value or "" for key, value in given.items()
                if key in ("points", "x", "y", "x1", "y1", "width", "height", "style", "viewBox")
            )  # fmt: skip
            assert not re.search(r"nan|inf|e\+", drawn), given


def test_a_refused_number_is_named_with_its_file(small) -> None:
    folder, files = small
    line = files["history.jsonl"][0] | {"round": None}
    (folder / "history.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(StoreError, match=r"history\.jsonl, line 1, is broken: round"):
        build([folder])


def test_a_loss_that_exploded_does_not_flatten_the_curve(make_run) -> None:
    def change(files: dict[str, Any]) -> None:
        files["history.jsonl"][4]["loss"] = 1e100

    seen = Page(build([make_run(change=change)]).read_text())
    assert "1 value is so far off the others that it is not drawn." in seen.text


def test_what_is_null_was_not_measured(make_run) -> None:
    def change(files: dict[str, Any]) -> None:
        files["run.json"]["sites"][0]["samples"] = None
        files["comparison.json"]["pooled"] = None
        files["summary.json"]["seconds"] = None
        files["evaluation.json"]["tables"] = None

    seen = Page(build([make_run(change=change)]).read_text()).text
    assert "pooled" not in seen.split("Glossary")[0].replace("images pooled", "")
    assert re.search(r"site-01 Training images–", seen)
