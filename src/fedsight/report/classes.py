"""Figures of a classification: over all classes, and of each class, the worst first."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsight.core.intervals import wilson
from fedsight.language.message import Text, message
from fedsight.report.nouns import nouns
from fedsight.report.read import Run
from fedsight.report.words import Words, count, number, percent, range_of

TITLES = {
    "accuracy": message("Accuracy"),
    "balanced_accuracy": message("Balanced accuracy"),
    "macro_f1": message("Macro F1"),
    "auc": message("AUC of each class against all others"),
    "top_5": message("Top-5 accuracy"),
    "kappa": message("Quadratic weighted kappa"),
    "mae": message("Grades off, mean"),
    "brier": message("Brier score"),
}
IN_SENTENCES = {
    "accuracy": message("accuracy"),
    "balanced_accuracy": message("balanced accuracy"),
    "macro_f1": message("macro F1"),
    "auc": message("AUC"),
    "top_5": message("top-5 accuracy"),
    "kappa": message("quadratic weighted kappa"),
    "loss": message("loss"),
}
PLAIN = frozenset({"kappa", "mae", "brier", "loss"})  # no shares
Bounds = tuple[float, float] | None


def value_words(name: str, value: float | None) -> Words:
    """A figure by its name: a share in percent, others as numbers."""
    return number(value) if name in PLAIN else percent(value)


@dataclass(frozen=True)
class OverallRow:
    """A figure over all classes, in words, and its interval."""

    title: Words
    value: Words
    interval: Words


def overall(run: Run) -> list[OverallRow]:
    """The figures of a task with a confusion matrix, as far as they were measured."""
    found = run.evaluation
    if found is None or not found.confusion:
        return []
    rows = []
    for name, title in TITLES.items():
        one = found.figures.get(name)
        if one is None or one.value is None:
            continue
        interval: Words = ""
        if one.low is not None and one.high is not None and name not in PLAIN:
            interval = range_of(one.low, one.high)
        rows.append(OverallRow(title, value_words(name, one.value), interval))
    return rows


@dataclass(frozen=True)
class Share:
    """A share and its 95 % interval; None where nothing was predicted or tested."""

    value: float | None
    bounds: Bounds = None


@dataclass(frozen=True)
class ClassRow:
    """Precision, recall and F1 of a class, and how many of its samples were tested."""

    name: str
    tested: int
    precision: Share
    recall: Share
    f1: Share


def by_class(run: Run) -> list[ClassRow]:
    """A row for each class, from the confusion matrix: the lowest F1 first, untested ones last.

    Intervals are left out where sites added noise, or where each tested its own model on the same
    samples.
    """
    found = run.evaluation
    if found is None:
        return []
    classes, matrix = found.classes, found.confusion
    sure = not found.noised and found.site_test != "whole test part"
    rows = []
    for at, row in enumerate(matrix):
        right, tested = row[at], sum(row)
        answered = sum(other[at] for other in matrix)
        precision, recall = _share(right, answered, sure), _share(right, tested, sure)
        rows.append(
            ClassRow(classes[at], tested, precision, recall, _f1(right, tested, answered, sure))
        )
    return sorted(rows, key=_worst_first)


def _worst_first(row: ClassRow) -> float:
    value = row.f1.value
    return math.inf if value is None or row.tested <= 0 else value


def _share(part: int, whole: int, sure: bool) -> Share:
    if whole <= 0:
        return Share(None)
    value = part / whole
    return Share(value, _known(wilson(value, float(whole))) if sure else None)


def _f1(right: int, tested: int, answered: int, sure: bool) -> Share:
    """F1 is 2 J / (1 + J) of the share J of right answers among all samples that are of the class
    or taken for it (Jaccard), and so is its interval of Wilson's for J."""
    either, both = tested + answered - right, tested + answered
    if both <= 0:
        return Share(None)
    jaccard = _share(right, either, sure)
    bounds = jaccard.bounds
    return Share(
        2 * right / both,
        None
        if bounds is None
        else (2 * bounds[0] / (1 + bounds[0]), 2 * bounds[1] / (1 + bounds[1])),
    )


def _known(bounds: tuple[float, float]) -> Bounds:
    return None if math.isnan(bounds[0]) else bounds


def kept(run: Run) -> list[Text]:
    """Which round's model is the final one and why, where rounds were compared."""
    found = None if run.summary is None else run.summary.kept
    if found is None or found.best is None:
        return []
    told: list[Text] = []
    figure = IN_SENTENCES.get(found.by) or TITLES.get(found.by) or found.by
    if found.keep == "best":
        told.append(
            message(
                "The final model is that of round {round}: of all rounds its {figure} on the "
                "validation {images}, {value}, is the best. The test {images} had no say in it.",
                round=count(found.round), figure=figure, images=nouns(run.modality).many,
                value=value_words(found.by, found.value),
            )
        )  # fmt: skip
    if found.stopped:
        told.append(
            message(
                "Training ended early: no round since round {best} had a better {figure}.",
                best=count(found.best), figure=figure,
            )
        )  # fmt: skip
    return told
