"""Whether the model looks at the same spots of an image at all sites, or answers by a shortcut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedsight.language.message import Text, listed, message
from fedsight.report.nouns import nouns
from fedsight.report.phrases import known_phrase
from fedsight.report.read import Run
from fedsight.report.shortcut_records import (
    CommonRecord,
    FlaggedRecord,
    ShortcutsRecord,
    SpotRecord,
)
from fedsight.report.svg import Drawing, Plot
from fedsight.report.words import Words, count, number, percent, range_of

SHORTCUT, UNTESTED = "shortcut", "untested"
SIDE = 120.0  # of the drawing of an image
CELLS = 7  # lines of the drawing, each way
SHOWN = 12  # spots with a drawing


@dataclass(frozen=True)
class LooksRow:
    """One site."""

    name: str
    images: int | None
    border: float | None
    peak: float | None
    agreement: Words
    uncompared: Words


def _found(run: Run) -> ShortcutsRecord | None:
    found = None if run.summary is None else run.summary.shortcuts
    return found if found is not None and found.images is not None else None


def measured(run: Run) -> bool:
    """Whether the section has anything to show."""
    return _found(run) is not None


def left_out(run: Run) -> Words:
    """Why it was not looked for, if the settings ask for it; else empty."""
    told = None if run.summary is None else run.summary.shortcuts
    asked = run.config.get("trust", {})
    if told is None or not told.reason or not isinstance(asked, dict):
        return ""
    if asked.get("shortcuts") is not True:
        return ""
    return message(
        "Whether the model looks at the same spots at all sites was not measured: {reason}.",
        reason=known_phrase(told.reason),
    )


def warnings(run: Run) -> list[Text]:
    """One sentence for each shortcut, or what may be one, for the top of the page."""
    found = _found(run)
    if found is None:
        return []
    told: list[Text] = [
        message(
            "The model seems to answer by a shortcut: one spot of the {images} of site {site} "
            "speaks for {label} more often than it does at the other sites.",
            images=nouns(run.modality).many, site=one.site, label=one.label,
        )
        for one in found.flagged
        if one.verdict == SHORTCUT
    ]  # fmt: skip
    told += [
        message(
            "The model may answer by a shortcut: for {label} it looks at another spot of the "
            "{images} of site {site} than at the other sites. Whether that spot speaks for {label} "
            "by itself could not be tested.",
            images=nouns(run.modality).many, site=one.site, label=one.label,
        )
        for one in found.flagged
        if one.verdict == UNTESTED
    ]  # fmt: skip
    told += [
        message(
            "One spot alone decides for {label}, at {n} sites. It may be a shortcut.",
            label=one.label, n=count(one.sites),
        )
        for one in found.everywhere
    ]  # fmt: skip
    return told


def lines(run: Run) -> list[Text]:
    """What was looked for and found, in sentences."""
    found = _found(run)
    if found is None:
        return []
    values = {"images": nouns(run.modality).many, "n": count(found.images)}
    told: list[Text] = [
        message(
            "In {n} {images} that only the sites have, one spot after another was taken away, to "
            "see without which one the score of the class falls most. If {images} of a class are "
            "alike at all sites, a site is named in at most {alarm} of runs.",
            **values, alarm=percent(found.false_alarm, 0),
        )
    ]  # fmt: skip
    told += _compared(found)
    told += [line for one in found.flagged for line in _told(run, one)]
    told += [_everywhere(run, one) for one in found.everywhere]
    return told + _unasked(found)


def _compared(found: ShortcutsRecord) -> list[Text]:
    """How much could be compared, and that no site stands out in it if none does."""
    if found.pairs is None or found.compared is None:
        return []
    values = {"n": count(found.compared), "all": count(found.pairs)}
    if not found.compared:
        return [
            message(
                "Nothing could be compared: in none of {all} cases in which a site has a class do "
                "enough other sites and images have it too. So this says nothing about marks of a "
                "site.",
                **values,
            )
        ]
    told: list[Text] = [
        message(
            "Of {all} cases in which a site has a class, {n} could be compared with other sites. "
            "Of the rest nothing is known.",
            **values,
        )
        if found.compared < found.pairs
        else message("All {all} cases in which a site has a class could be compared.", **values)
    ]
    if not found.flagged and not found.unasked:
        told.append(
            message(
                "No site stands out in these. Marks that the model uses less than what else is in "
                "the image are not found."
            )
        )
    return told


def _unasked(found: ShortcutsRecord) -> list[Text]:
    """What was left out because sites are asked about a few spots only."""
    told: list[Text] = []
    if found.unasked:
        told.append(
            message(
                "{n} more spots stand out at a site, less clearly, and are neither named nor "
                "tested: the sites are asked about a few only.",
                n=count(found.unasked),
            )
        )
    if found.classes_unasked:
        told.append(
            message(
                "For {n} of {all} classes it was not tried whether one spot decides at all sites: "
                "the sites are asked about a few only.",
                n=count(found.classes_unasked), all=count(found.classes),
            )
        )  # fmt: skip
    return told


def _told(run: Run, one: FlaggedRecord) -> list[Text]:
    """What is known of one spot at one site."""
    many = nouns(run.modality).many
    found: list[Text] = [
        message(
            "Site {site}, {label}: the marked spot matters most for {hottest} of {n} {images} "
            "(95 % interval {interval}), at the other sites for {rest} of {others}.",
            site=one.site, label=one.label, hottest=count(one.hottest), n=count(one.images),
            images=many, rest=count(one.elsewhere.hottest), others=count(one.elsewhere.images),
            interval="–" if one.interval is None else range_of(*one.interval),
        ),
        message(
            "Without it, {lost} of {right} right answers are lost.",
            lost=count(one.lost), right=count(one.right),
        ),
        *_pasted(run, one),
    ]  # fmt: skip
    return [*found, _meant(run, one)]


def _pasted(run: Run, one: FlaggedRecord) -> list[Text]:
    """What came of pasting a spot, where there were images to paste it on."""
    own, other, many = one.pasted, one.pasted_elsewhere, nouns(run.modality).many
    told: list[Text] = []
    if own.tried:
        told.append(
            message(
                "Taken from {donors} {images} and pasted on {tried} of the site’s others, it at "
                "least doubled the odds of {label} in {raised}, and {made} were then taken for "
                "{label}.",
                donors=count(own.donors), images=many, tried=count(own.tried), label=one.label,
                raised=count(own.raised), made=count(own.made),
            )
        )  # fmt: skip
    if other.tried:
        told.append(
            message(
                "At the other sites, taken from {donors} of their own {images} and pasted on "
                "{tried}, the same spot did so in {raised}, and {made} were then taken for "
                "{label}.",
                donors=count(other.donors), images=many, tried=count(other.tried),
                raised=count(other.raised), made=count(other.made), label=one.label,
            )
        )  # fmt: skip
    return told


def _meant(run: Run, one: FlaggedRecord) -> Text:
    """What follows for one spot at one site."""
    values = {"label": one.label, "site": one.site, "images": nouns(run.modality).many}
    if one.verdict == SHORTCUT:
        return message(
            "So something in this spot stands for {label} at {site} more often than at the other "
            "sites. Look at these {images} there: it may be a mark of the device or of the place.",
            **values,
        )
    if one.verdict == UNTESTED and not one.pasted.tried:
        return message(
            "Whether it speaks for {label} by itself could not be tested: {site} has no {images} "
            "to paste it on that are not of {label}, or taken for it, already. Look at these "
            "{images}: it may be a mark of the device or of the place.",
            **values,
        )
    if one.verdict == UNTESTED:
        return message(
            "Whether it speaks for {label} more often there could not be tested: no other site has "
            "both {images} of {label} and others to paste the spot on. Look at these {images} at "
            "{site}: it may be a mark of the device or of the place.",
            **values,
        )
    return message(
        "So the model looks elsewhere at {site}, but the spot was not found to speak for {label} "
        "more often than at the other sites: it need not be a shortcut.",
        **values,
    )


def _everywhere(run: Run, one: CommonRecord) -> Text:
    return message(
        "{label}: the marked spot alone, taken from {donors} {images} and pasted on {tried} "
        "others, turned {made} into {label}; at each of {n} sites more than half, beyond chance. "
        "That is a shortcut if the {images} of {label} have a mark there, and none if what makes "
        "{label} is always at this place.",
        label=one.label, tried=count(one.pasted.tried), images=nouns(run.modality).many,
        made=count(one.pasted.made), donors=count(one.pasted.donors), n=count(one.sites),
    )  # fmt: skip


def rows(run: Run) -> list[LooksRow]:
    """Each site that was compared."""
    found = _found(run)
    if found is None:
        return []
    return [
        LooksRow(
            name, one.images, one.border, one.peak, number(one.agreement, 2), listed(one.uncompared)
        )
        for name, one in found.by_site.items()
    ]


def plots(run: Run, anchor: str) -> dict[str, Plot]:
    """An image's outline for each spot that was found, with the spot: no image of a site."""
    found = _found(run)
    if found is None:
        return {}
    spots: Sequence[SpotRecord] = (*found.flagged, *found.everywhere)
    return {
        f"spot{at}": _outline(f"{anchor}-spot{at}", one) for at, one in enumerate(spots[:SHOWN])
    }


def caption(run: Run, at: int) -> Words:
    """Whose spot a drawing shows."""
    found = _found(run)
    if found is None:
        return ""
    spots: Sequence[SpotRecord] = (*found.flagged, *found.everywhere)
    one = spots[at]
    where = one.site if isinstance(one, FlaggedRecord) else message("several sites")
    return message("{answer} ({where})", answer=one.label, where=where)


def _outline(name: str, one: SpotRecord) -> Plot:
    drawing = Drawing(SIDE + 2, SIDE + 2)
    for at in range(CELLS + 1):
        place = 1 + SIDE * at / CELLS
        drawing.line((1, place), (SIDE + 1, place), "rule")
        drawing.line((place, 1), (place, SIDE + 1), "rule")
    left, top, right, bottom = (
        min(1.0, max(0.0, side)) if math.isfinite(side) else 0.0 for side in one.box
    )
    size = (SIDE * max(0.0, right - left), SIDE * max(0.0, bottom - top))
    drawing.rectangle((1 + SIDE * left, 1 + SIDE * top), size, "cell")
    words = message(
        "from {left} to {right} of the width and from {top} to {bottom} of the height",
        left=percent(left, 0), right=percent(right, 0), top=percent(top, 0),
        bottom=percent(bottom, 0),
    )  # fmt: skip
    return Plot(drawing.svg(name), words)
