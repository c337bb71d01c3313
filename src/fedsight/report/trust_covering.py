"""What a run measured of answers that are large enough to cover the truth, in sentences."""

from __future__ import annotations

from collections.abc import Callable

from fedsight.language.message import Message, Text, message
from fedsight.report.nouns import nouns
from fedsight.report.phrases import known_phrase
from fedsight.report.read import Run
from fedsight.report.trust_records import SetsRecord
from fedsight.report.words import Words, count, number, percent

HOLDS = {
    "mixture": message(
        "This holds for inputs drawn like the held-out ones of all sites together. At a single "
        "site, or for a single class, the share may be lower or higher, as the table shows."
    ),
    "site": message(
        "This holds for each site, for inputs drawn like its own held-out ones. For others it does "
        "not."
    ),
    "class": message(
        "This holds for each class, for inputs of it drawn like the held-out ones, however "
        "frequent the class is at a site."
    ),
}
MEAN = message("It is a mean: answers to single {images} may miss more.")
SAID = {
    "masks": (
        message(
            "Masks: made to hold at least {asked} of the pixels of an image’s foreground on "
            "average, from {held} held-out images that show one. They hold {coverage} of them in "
            "{tested} test images, and mark {size} of an image."
        ),
        MEAN,
    ),
    "labels": (
        message(
            "Sets: made to hold at least {asked} of the labels on average, from {held} held-out "
            "{images} that have any. They hold {coverage} of them for {tested} test {images}, with "
            "{size} labels in a set."
        ),
        MEAN,
    ),
    "objects": (
        message(
            "Boxes: those with a score of at least {threshold} are made to find at least {asked} "
            "of an image’s objects on average, from {held} held-out images that show some. They "
            "find {coverage} of them in {tested} test images, with {size} boxes in an image."
        ),
        message(
            "Margins: each side of a box moved outwards by {margin} of its width or height, "
            "{asked} of the objects that are found should be inside, on average over images; "
            "{margins} are. Of objects that no box finds this says nothing."
        ),
        MEAN,
    ),
    "pairs": (
        message(
            "Likeness: two people should pass as one in at most {allowed} of comparisons, on "
            "average over pairs of people, from {held} pairs that nobody trained on. Above "
            "{threshold} they pass in {missed} of {tested} other pairs, and people pass as "
            "themselves in {size}."
        ),
        message("It is a mean: some pairs look more alike than others."),
    ),
    "grades": (
        message(
            "Intervals: made to hold the grade of at least {asked} of {images}, from {held} "
            "held-out ones. They hold it for {coverage} of {tested} test {images}, with {size} "
            "grades on average."
        ),
    ),
}
# where there is a level for each site or class, of which no single size or threshold can be told
BY = {
    "site": message(
        "Answers: made to hold at least {asked} of the truth at each site, from its own share of "
        "{held} held-out {images}. They hold {coverage} on average over the sites; {tested} test "
        "{images} show it."
    ),
    "class": message(
        "Answers: made to hold at least {asked} of the truth of each class, from {held} held-out "
        "{images}. They hold {coverage} on average over the classes; {tested} test {images} show "
        "it."
    ),
}
SHARES = ("masks", "pairs")  # kinds whose answers have a size that is a share


def lines(run: Run, found: SetsRecord) -> list[Text]:
    """What was measured, or why it was not."""
    if found.coverage is None:
        reason = known_phrase(found.reason)
        return [message("Left out: {reason}.", reason=reason)] if found.reason else []
    values = {
        "asked": percent(found.asked), "allowed": _rest(found.asked), "held": count(found.images),
        "coverage": percent(found.coverage), "missed": _rest(found.coverage),
        "tested": count(found.tested), "size": _size(found.covers, found.size),
        "images": nouns(run.modality).many, "margins": percent(found.margins),
        "margin": percent(found.margin), "threshold": number(found.threshold),
    }  # fmt: skip
    said = SAID.get(found.covers, ())
    if found.guarantee in BY:
        said = (BY[found.guarantee],)
    told: list[Text] = [Message(one.one, tuple(values.items())) for one in said]
    holds = HOLDS.get(found.guarantee)
    return told if holds is None else [*told, holds]


def columns(covers: str) -> tuple[tuple[Text, ...], Callable[..., tuple[Words, Words]]]:
    """The headings of the table of sites, and what makes two cells of a coverage and a size."""
    headings = (
        message("Share that is held"), message("Size"), message("by its own threshold"),
        message("Size by it"),
    )  # fmt: skip
    return headings, lambda coverage, size: (percent(coverage), _size(covers, size))


def _size(covers: str, size: float | None) -> Words:
    return percent(size) if covers in SHARES else number(size, 2)


def _rest(share: float | None) -> Words:
    return percent(None if share is None else 1 - share)
