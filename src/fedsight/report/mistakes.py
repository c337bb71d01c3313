"""Test samples with wrong answers, by what was taken for what; found, missed and false boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fedsight.language.message import Text, listed, message
from fedsight.report import view
from fedsight.report.phrases import answer_name
from fedsight.report.read import Run
from fedsight.report.records import MarkRecord, SampleRecord
from fedsight.report.words import Words, count, percent

FEW = 4  # pairs of truth and answer up to which samples are grouped by them without counts
NAMED = 4  # boxes of a kind that a caption names


@dataclass(frozen=True)
class MistakeGroup:
    """Samples with the same mistake, and what it is; empty if they have nothing in common."""

    title: Words
    samples: tuple[SampleRecord, ...]


def mistake_groups(run: Run) -> list[MistakeGroup]:
    """The wrong samples: by confusion, the most frequent first, where classes are confused."""
    wrong = samples(run, right=False)
    pairs: dict[tuple[str, str], list[SampleRecord]] = {}
    for one in wrong:
        pairs.setdefault((one.truth, one.predicted), []).append(one)
    counted = {(one.truth, one.predicted): one for one in view.confusions(run)}
    if counted:
        order = sorted(pairs, key=lambda pair: -counted[pair].times if pair in counted else 0)
        return [
            MistakeGroup(_title(*pair, counted.get(pair)), tuple(pairs[pair])) for pair in order
        ]
    if any(one.marks or one.areas for one in wrong) or not 0 < len(pairs) <= FEW:
        return [MistakeGroup("", tuple(wrong))] if wrong else []
    return [MistakeGroup(_title(*pair, None), tuple(found)) for pair, found in pairs.items()]


def _title(truth: str, predicted: str, found: view.Confusion | None) -> Text:
    values: dict[str, object] = {
        "truth": answer_name(truth), "predicted": answer_name(predicted)
    }  # fmt: skip
    if found is None:
        return message("{truth} taken for {predicted}", **values)
    return message(
        "{truth} taken for {predicted}: {times} of {of}",
        times=count(found.times), of=count(found.of), **values,
    )  # fmt: skip


def samples(run: Run, right: bool) -> list[SampleRecord]:
    """The samples with right answers, or those with wrong ones."""
    found = () if run.evaluation is None else run.evaluation.samples
    return [one for one in found if one.right is right]


def source(run: Run, sample: SampleRecord) -> Words:
    """The site whose test image it is, or whose model answered."""
    return sample.site or message("shared test set")


def boxes(sample: SampleRecord) -> list[tuple[str, Words]]:
    """What the boxes on a picture show, as (kind, words); empty without boxes."""
    kinds: dict[str, list[MarkRecord]] = {"found": [], "missed": [], "false": []}
    for mark in sample.marks:
        kinds[mark.kind].append(mark)
    told = {
        "found": message("{n} found: {names}", n=len(kinds["found"]), names=_names(kinds["found"])),
        "missed": message(
            "{n} missed: {names}", n=len(kinds["missed"]), names=_names(kinds["missed"])
        ),
        "false": message("{n} false: {names}", n=len(kinds["false"]), names=_names(kinds["false"])),
    }
    return [(kind, told[kind]) for kind, marks in kinds.items() if marks]


def _names(marks: Sequence[MarkRecord]) -> Words:
    """The detections with their scores; objects, which have none, by class and how often."""
    often = Counter(mark.label for mark in marks if mark.score is None)
    names: list[Words] = [
        name if n in (1, len(marks)) else f"{name} ({count(n)})" for name, n in often.items()
    ]
    names += [
        message("{name} {share}", name=mark.label, share=percent(mark.score, 0))
        for mark in marks
        if mark.score is not None
    ]
    return listed([*names[:NAMED], "…"] if len(names) > NAMED else names)


def picture_note(sample: SampleRecord) -> Words:
    """The size of the file, if the picture is a smaller copy of it."""
    if sample.full is None:
        return ""
    width, height = sample.full
    return message("{width} × {height} pixels", width=count(width), height=count(height))
