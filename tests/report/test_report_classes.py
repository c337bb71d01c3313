"""The figures of a classification in the report: averages, classes, and which round was kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsight.language.message import text_in
from fedsight.report import classes
from fedsight.report.page import render
from fedsight.report.read import Run, read

Maker = Callable[..., Path]


def changed(make_run: Maker, matrix: Any = None, **evaluation: Any) -> Run:
    def change(files: dict[str, Any]) -> None:
        files["evaluation.json"] |= evaluation
        if matrix is not None:
            files["evaluation.json"] |= {"confusion": matrix}

    names = tuple("abcdefgh"[: len(matrix)]) if matrix is not None else ("a", "b")
    return read(make_run("run", change=change, classes=names))


def test_a_class_has_the_figures_of_its_row_and_column(make_run: Maker) -> None:
    rows = classes.by_class(changed(make_run, [[8, 2, 0], [1, 5, 4], [0, 0, 0]]))
    assert [row.name for row in rows] == ["b", "a", "c"]  # lowest F1 first, untested last
    worst, best, untested = rows
    assert (worst.tested, worst.precision.value, worst.recall.value) == (10, 5 / 7, 0.5)
    assert worst.f1.value == pytest.approx(2 * (5 / 7) * 0.5 / (5 / 7 + 0.5))
    assert best.precision.value == pytest.approx(8 / 9)
    assert untested.recall.value is None
    assert untested.precision.value == 0  # four answers named it, all of them wrong


def test_of_a_hundred_intervals_of_f1_about_95_hold_the_true_one(make_run: Maker) -> None:
    """Of a class with F1 0.75, over 400 test sets in which images of each class are drawn."""
    chance = np.array([[0.15, 0.05], [0.05, 0.75]])
    true, rng, held = 2 * 0.15 / (0.2 + 0.2), np.random.default_rng(3), []
    for _ in range(400):
        matrix = rng.multinomial(300, chance.ravel()).reshape(2, 2)
        right, tested, answered = matrix[0, 0], matrix[0].sum(), matrix[:, 0].sum()
        bounds = classes._f1(int(right), int(tested), int(answered), sure=True).bounds
        assert bounds is not None
        held.append(bounds[0] <= true <= bounds[1])
    assert 0.92 <= np.mean(held) <= 0.98


@pytest.mark.parametrize("unsure", [{"noised": ["site-01"]}, {"site_test": "whole test part"}])
def test_without_independent_counts_classes_have_no_interval(
    make_run: Maker, unsure: dict[str, Any]
) -> None:
    matrix = [[8, 2], [1, 5]]
    assert all(row.recall.bounds for row in classes.by_class(changed(make_run, matrix)))
    found = classes.by_class(changed(make_run, matrix, **unsure))
    assert all(row.recall.bounds is row.f1.bounds is None for row in found)


def test_counts_that_no_run_writes_draw_no_nonsense(make_run: Maker) -> None:
    run = changed(make_run, [[-5, 10**300], [3, 0]])
    assert all(row.f1.value is None or math.isfinite(row.f1.value) for row in classes.by_class(run))
    assert "nan" not in render([run]).lower().split("<style>")[0]


def test_overall_figures_come_with_their_intervals(make_run: Maker) -> None:
    rows = classes.overall(read(make_run("run")))
    told = [tuple(text_in(t, "en") for t in (row.title, row.value, row.interval)) for row in rows]
    assert told[1] == ("Balanced accuracy", "87.4\u00a0%", "85.9 to 88.8\u00a0%")
    assert told[-1] == ("Brier score", "0.171", "")  # no share, and no interval
    assert not classes.overall(read(make_run("other", without=["evaluation.json"])))


def test_the_page_says_which_round_was_kept_and_why(make_run: Maker) -> None:
    run = read(make_run("run"))
    first, second = (text_in(one, "en") for one in classes.kept(run))
    assert first == (
        "The final model is that of round 16: of all rounds its balanced accuracy on the "
        "validation images, 87.1\u00a0%, is the best. The test images had no say in it."
    )
    assert second == (
        "Training ended early: no round since round 16 had a better balanced accuracy."
    )
    page = render([run])
    assert first in page
    assert "macro F1, together" in page

    def last(files: dict[str, Any]) -> None:
        del files["summary.json"]["kept"]

    assert not classes.kept(read(make_run("last", change=last)))
