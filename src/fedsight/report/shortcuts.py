"""Whether the model looks at the same spots of an image at all sites, or answers by a shortcut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedsight.language.message import Text, listed, message
from fedsight.report.nouns import nouns
from fedsight.report.phrases import known_phrase
from fedsight.report.read import Run
from fedsight.report.shortcut_records import FlaggedRecord, ShortcutsRecord, SpotRecord
from fedsight.report.svg import Drawing, Plot
from fedsight.report.words import Words, count, number, percent, range_of

SHORTCUT = "shortcut"
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
    """One sentence for each shortcut, for the top of the page."""
    found = _found(run)
    if found is None:
        return []
    told: list[Text] = [
        message(
            "The model answers by a shortcut: one spot of the {images} of site {site} speaks for "
            "{label}, and does not at the other sites.",
            images=nouns(run.modality).many, site=one.site, label=one.label,
        )
        for one in found.flagged
        if one.verdict == SHORTCUT
    ]  # fmt: skip
    told += [
        message(
            "One spot alone decides for {label}, whichever site an image is from. It may be a "
            "shortcut.",
            label=one.label,
        )
        for one in found.everywhere
    ]
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
            "see without which one the score of the class falls most. If the sites’ {images} are "
            "alike, a site is named in at most {alarm} of runs.",
            **values, alarm=percent(found.false_alarm, 0),
        )
    ]  # fmt: skip
    if not found.flagged and not found.everywhere:
        told.append(
            message(
                "No site stands out: nothing suggests that the model answers by a mark that only "
                "one site’s {images} have.",
                **values,
            )
        )
    told += [line for one in found.flagged for line in _told(run, one)]
    told += [_everywhere(run, one) for one in found.everywhere]
    return told


def _told(run: Run, one: FlaggedRecord) -> list[Text]:
    """What is known of one spot at one site."""
    many, other = nouns(run.modality).many, one.pasted_elsewhere
    found: list[Text] = [
        message(
            "Site {site}, {label}: the marked spot matters most for {hottest} of {n} {images} "
            "(95 % interval {interval}), at the other sites for {rest} of {others}.",
            site=one.site, label=one.label, hottest=count(one.hottest), n=count(one.images),
            images=many, rest=count(one.elsewhere.hottest), others=count(one.elsewhere.images),
            interval="–" if one.interval is None else range_of(*one.interval),
        ),
        message(
            "Pasted on {tried} of the site’s other {images}, it at least doubled the odds of "
            "{label} in {raised}, and {made} were then taken for {label}; at the other sites, of "
            "{all} it was {rest} and {few}. Without it, {lost} of {right} right answers are lost.",
            tried=count(one.pasted.tried), images=many, label=one.label,
            raised=count(one.pasted.raised), made=count(one.pasted.made), all=count(other.tried),
            rest=count(other.raised), few=count(other.made), lost=count(one.lost),
            right=count(one.right),
        ),
    ]  # fmt: skip
    found.append(
        message(
            "So something in this spot stands for {label} at {site} and not at the other sites. "
            "Look at these {images} there: it may be a mark of the device or of the place.",
            label=one.label, site=one.site, images=many,
        )
        if one.verdict == SHORTCUT
        else message(
            "So the model looks elsewhere at {site}, but the spot does not speak for {label} by "
            "itself: it need not be a shortcut.",
            site=one.site, label=one.label,
        )
    )  # fmt: skip
    return found


def _everywhere(run: Run, one: SpotRecord) -> Text:
    return message(
        "{label}, at all sites that have it: the marked spot alone, pasted on {tried} other "
        "{images}, turned {made} into {label}. That is a shortcut if the {images} of {label} have "
        "a mark there, and none if what makes {label} is always at this place.",
        label=one.label, tried=count(one.pasted.tried), images=nouns(run.modality).many,
        made=count(one.pasted.made),
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
    where = one.site if isinstance(one, FlaggedRecord) else message("all sites that have it")
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
