"""Why the model answers as it does: test images with explanations, and how faithful these are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsight.language.message import Text, listed, message
from fedsight.report import plots
from fedsight.report.explanation_records import FaithfulnessRecord, SpreadRecord
from fedsight.report.phrases import answer_name
from fedsight.report.read import Run
from fedsight.report.svg import Plot
from fedsight.report.words import NOTHING, Words, count, number

FAILS = {
    "random-deletion": message("taking its regions away does less than taking away any"),
    "random-insertion": message("showing its regions alone does less than showing any"),
    "edges-deletion": message("taking its regions away does less than taking away edges"),
    "edges-insertion": message("showing its regions alone does less than showing edges"),
    "shuffled": message("it looks much the same for a network that has learnt nothing"),
    "silent": message("of half of the images or more it says nothing"),
}
OPEN = {
    "random-deletion": message("whether taking its regions away does more than taking away any"),
    "random-insertion": message("whether showing its regions alone does more than showing any"),
    "edges-deletion": message("whether taking its regions away does more than taking away edges"),
    "edges-insertion": message("whether showing its regions alone does more than showing edges"),
    "shuffled": message("whether it depends on what the network has learnt"),
}
NAMES = {
    "grad-cam": message("Grad-CAM"),
    "integrated-gradients": message("integrated gradients"),
    "occlusion": message("occlusion"),
    "attention-rollout": message("attention rollout"),
    "random": message("regions at random"),
    "edges": message("edges"),
}
HEIGHTS = {
    "deletion": message("score while regions are taken away"),
    "insertion": message("score while only they are shown"),
}


@dataclass(frozen=True)
class FaithfulnessRow:
    """A method, or what methods are compared with (`result` is empty)."""

    name: Words
    deletion: Words
    insertion: Words
    shuffled: Words
    result: Words
    fails: bool


def measured(run: Run) -> bool:
    """Whether the section has anything to show."""
    return run.explanations is not None and bool(run.explanations.methods)


def rows(run: Run) -> list[FaithfulnessRow]:
    """The methods, those that hold first, then what they are compared with."""
    found = run.explanations
    if found is None:
        return []
    methods = sorted(found.methods.items(), key=lambda pair: _order(pair[1]))
    return [
        *(_row(name, one, result(one.fails, one.undecided)) for name, one in methods),
        *(_row(name, one, "") for name, one in found.baselines.items()),
    ]


def _row(name: str, one: FaithfulnessRecord, result: Words) -> FaithfulnessRow:
    like = NOTHING if one.shuffled is None else _spread(one.shuffled)
    return FaithfulnessRow(
        named(name), _spread(one.deletion), _spread(one.insertion), like, result, bool(one.fails)
    )


def _order(one: FaithfulnessRecord) -> tuple[int, int]:
    return len(one.fails), len(one.undecided)


def result(fails: Sequence[str], undecided: Sequence[str]) -> Text:
    """The verdict on a method in words: in what it fails, or what the images do not decide."""
    if fails:
        why = listed(FAILS.get(reason, reason) for reason in fails)
        return message("fails: {reasons}", reasons=why)
    if undecided:
        what = listed(OPEN.get(reason, reason) for reason in undecided)
        return message("not decided: {reasons}", reasons=what)
    return message("holds")


def named(name: str) -> Words:
    """A method, or what methods are compared with."""
    return NAMES.get(name, name)


def _spread(one: SpreadRecord) -> Words:
    if one.mean is None:
        return NOTHING
    if one.low is None or one.high is None:
        return number(one.mean, 3)
    return message(
        "{mean} ({low} to {high})",
        mean=number(one.mean, 3), low=number(one.low, 3), high=number(one.high, 3),
    )  # fmt: skip


def lines(run: Run) -> list[Text]:
    """What the figures are, in sentences."""
    found = run.explanations
    if found is None:
        return []
    told: list[Text] = [
        message(
            "Measured on {images} test images, with 95 % intervals. While the regions that a "
            "method names are taken away, the score of the answer should fall sooner than with "
            "regions at random (deletion: low is good); while only they are shown, it should rise "
            "sooner (insertion: high is good). Edges ask no model. What is taken away is blurred "
            "until no detail is left, not painted over.",
            images=count(found.images),
        ),
        message(
            "A method holds if it does better than both on the same images; the intervals of the "
            "differences decide, so those in the table may overlap."
        ),
    ]
    if found.shuffled_answers:
        told.append(
            message(
                "The network with shuffled weights gives much the same answers, so that its "
                "explanations are alike says nothing against a method."
            )
        )
    if found.layer:
        told.append(message("Grad-CAM is made of the layer {layer}.", layer=found.layer))
    if found.site and found.common:
        told.append(
            message(
                "The answers are those of the model of site {site}, to test images that all sites "
                "share.",
                site=found.site,
            )
        )
    elif found.site:
        told.append(message("The images are those of site {site}.", site=found.site))
    if found.samples:
        told.append(message("This page contains test images: who gets it gets them."))
    return told


def diagram(run: Run, kind: str, name: str) -> Plot | None:
    """The score over the share of the image that is taken away (`deletion`) or shown."""
    found = run.explanations
    if found is None:
        return None
    lines, names = {}, []
    for key, one in (*found.methods.items(), *found.baselines.items()):
        heights = one.deletion_curve if kind == "deletion" else one.insertion_curve
        most = max(1, len(heights) - 1)
        lines[key] = [(at / most, height) for at, height in enumerate(heights)]
        names.append(named(key))
    return plots.shares(name, (message("share of the image"), HEIGHTS[kind]), lines, names)


def caption(run: Run, at: int) -> Words:
    """The answer that a picture explains, and where the image is from."""
    found = run.explanations
    if found is None:
        return ""
    one = found.samples[at]
    known: Words = answer_name(one.label)
    if one.score is not None:
        known = message("{label}, score {score}", label=known, score=number(one.score, 2))
    where = " · ".join(part for part in (one.site, one.name) if part)
    return message("{answer} ({where})", answer=known, where=where) if where else known
