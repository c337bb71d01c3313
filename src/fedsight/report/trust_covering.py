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
        "site, or for a single class, the share may be lower or higher."
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
PAIRS_BY_SITE = message(
    "Likeness: two people should pass as one in at most {allowed} of comparisons at each site, on "
    "average over pairs of people, from its own share of {held} pairs that nobody trained on. "
    "They pass in {missed} on average over the sites; {tested} other pairs show it."
)
GROUPED = message(
    "Of a group, such as a patient, all {images} count as one: the numbers of held-out and of test "
    "{images} are numbers of groups."
)
PAIRS_HOLD = {
    "mixture": message(
        "This holds for two people at one site, drawn like those of all sites together. At a "
        "single site it may be more or fewer."
    ),
    "site": message(
        "This holds at each site, for two people drawn like its own. For others it does not."
    ),
}
SUBJECTS = {
    "masks": message("Masks that hold the truth"), "labels": message("Sets of labels"),
    "objects": message("Boxes that find the objects"), "grades": message("Intervals of grades"),
    "pairs": message("A guaranteed threshold of likeness"),
}  # fmt: skip
SIZES = {
    "masks": message("Share of an image that is marked"), "labels": message("Labels in a set"),
    "objects": message("Boxes in an image"), "grades": message("Grades in an interval"),
}  # fmt: skip
SHARES = ("masks", "pairs")  # kinds whose answers have a size that is a share


def lines(run: Run, found: SetsRecord) -> list[Text]:
    """What was measured, or why it was not."""
    if found.sums == "noised" and not found.reason:
        return [_noised(run, found), *_whose(found)]
    if found.coverage is None:
        reason = known_phrase(found.reason)
        subject = SUBJECTS.get(found.covers, SUBJECTS["masks"])
        if not found.reason:
            return []
        return [message("{subject}: left out, as {reason}.", subject=subject, reason=reason)]
    values = {
        "asked": percent(found.asked), "allowed": _rest(found.asked), "held": count(found.images),
        "coverage": percent(found.coverage), "missed": _rest(found.coverage),
        "tested": count(found.tested), "size": _size(found.covers, found.size),
        "images": nouns(run.modality).many, "margins": percent(found.margins),
        "margin": percent(found.margin), "threshold": number(found.threshold),
    }  # fmt: skip
    said = SAID.get(found.covers, ())
    if found.guarantee in BY:
        by_site = found.covers == "pairs" and found.guarantee == "site"
        said = (PAIRS_BY_SITE if by_site else BY[found.guarantee],)
    if found.grouped:
        said = (*said, GROUPED)
    told: list[Text] = [Message(one.one, tuple(values.items())) for one in said]
    return [*told, *_whose(found)]


def _noised(run: Run, found: SetsRecord) -> Text:
    return message(
        "{subject}: made to hold at least {asked} of the truth on average, from {held} test "
        "{images}, or more: how many is known up to noise.",
        subject=SUBJECTS.get(found.covers, SUBJECTS["masks"]), asked=percent(found.asked),
        held=count(found.images), images=nouns(run.modality).many,
    )  # fmt: skip


def _whose(found: SetsRecord) -> list[Text]:
    """For whom it holds, and who is left out of what is shown."""
    told: list[Text] = []
    if found.always:
        told.append(
            message(
                "Never left out of an answer, as too few held-out inputs show them, and not in "
                "the mean: {names}.",
                names=", ".join(found.always),
            )
        )
    if found.covers == "pairs":
        told.append(PAIRS_HOLD.get(found.guarantee, PAIRS_HOLD["mixture"]))
    elif found.guarantee in HOLDS:
        told.append(HOLDS[found.guarantee])
    if found.reason_by_site:
        reason = known_phrase(found.reason_by_site)
        told.append(message("Single sites are left out: {reason}.", reason=reason))
    return told


def columns(covers: str) -> tuple[tuple[Text, ...], Callable[..., tuple[Words, Words]]]:
    """The headings of the table of sites, and what makes two cells of a coverage and a size."""
    if covers == "pairs":
        return (
            message("Comparisons of two people that pass"), message("Of a person with himself"),
            message("of two, by its own threshold"), message("with himself, by its own threshold"),
        ), lambda coverage, size: (_rest(coverage), percent(size))  # fmt: skip
    headings = (
        message("Share that is held"), SIZES.get(covers, message("Size")),
        message("by its own threshold"), message("Size by its own threshold"),
    )  # fmt: skip
    return headings, lambda coverage, size: (percent(coverage), _size(covers, size))


def held_out(run: Run, found: SetsRecord) -> Text:
    """The heading of how many units of a site were held out."""
    if found.covers == "pairs":
        return message("Held-out pairs of people")
    if found.grouped:
        return message("Held-out groups")
    return message("Held-out {images}", images=nouns(run.modality).many)


def _size(covers: str, size: float | None) -> Words:
    return percent(size) if covers in SHARES else number(size, 2)


def _rest(share: float | None) -> Words:
    return percent(None if share is None else 1 - share)
