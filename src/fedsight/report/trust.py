"""How far a run's answers can be trusted: calibration, prediction sets, unlike images."""

from __future__ import annotations

from dataclasses import dataclass

from fedsight.language.message import Text, message
from fedsight.report import plots, trust_covering
from fedsight.report.nouns import nouns
from fedsight.report.phrases import known_phrase
from fedsight.report.read import Run
from fedsight.report.svg import Plot
from fedsight.report.trust_covering import HOLDS
from fedsight.report.trust_records import CalibrationRecord, OodRecord, SetsRecord
from fedsight.report.words import Words, count, number, percent, range_of

NAMED = 10  # sites that a sentence names, at most


@dataclass(frozen=True)
class TrustRow:
    """One site: how the sets do in its mix, by the common threshold and by its own, and how far
    confidence is off on its held-out images."""

    name: str
    coverage: float | None
    size: float | None
    own_coverage: float | None
    own_size: float | None
    ece: float | None
    images: int | None


@dataclass(frozen=True)
class GivenRow:
    """The model that a site got: how its sets do on test images of the site, and how far
    confidence is off."""

    name: str
    coverage: float | None
    size: float | None
    ece: float | None
    images: int | None
    reason: Words


def measured(run: Run) -> bool:
    """Whether the section has anything to show."""
    return bool(lines(run))


def left_out(run: Run) -> Words:
    """Why nothing of it was measured; empty if something was, or nobody asked."""
    if run.summary is None or measured(run):
        return ""
    reasons = {
        part.reason
        for part in (run.summary.calibration, run.summary.sets, run.summary.ood)
        if part is not None and part.reason
    }
    if len(reasons) != 1:
        return ""
    return message(
        "Calibration, prediction sets and unlike inputs were not measured: {reason}.",
        reason=known_phrase(reasons.pop()),
    )


def lines(run: Run) -> list[Text]:
    """What was measured, in sentences, and why the rest was not."""
    if run.summary is None:
        return []
    sets = run.summary.sets
    if sets is not None and sets.covers:
        return [*trust_covering.lines(run, sets), *_travelled(run, sets), *_sites(sets)]
    parts = (
        _calibration(run, run.summary.calibration),
        _sets(run, run.summary.sets),
        _ood(run, run.summary.ood),
    )
    found = [line for part in parts for line in part]
    travelled = _travelled(run, sets)
    without = {} if sets is None else sets.without
    if not found and not travelled and not without:
        return []
    calibration = run.summary.calibration
    if calibration is not None and calibration.ece is not None:
        calibration = None  # its reason is told with it
    for part in (calibration, run.summary.sets, run.summary.ood):
        if part is not None and part.reason:
            found.append(message("Left out: {reason}.", reason=known_phrase(part.reason)))
    return [*found, *travelled, *_sites(sets)]


def _sites(sets: SetsRecord | None) -> list[Text]:
    """Which sites are not in the sums, and which may have falsified them."""
    found: list[Text] = []
    for site, reason in sorted(({} if sets is None else sets.without).items()):
        told = {"site": site, "reason": known_phrase(reason)}
        found.append(message("Without site {site}: {reason}.", **told))
    for site, reason in sorted(({} if sets is None else sets.doubts).items()):
        told = {"site": site, "reason": known_phrase(reason)}
        found.append(message("Site {site} may have falsified these sums: {reason}.", **told))
    return found


def _travelled(run: Run, found: SetsRecord | None) -> list[Text]:
    """How the sums that all of it is made of have left the sites."""
    if found is None or not found.sums:
        return []
    images = nouns(run.modality).many
    told: list[Text] = [
        message(
            "All this is made of whole-number sums that each site sent as they are, as its owner "
            "permits."
        )
    ]
    if found.sums == "masked":
        told = [
            message(
                "All this is made of sums that the sites sent masked: only those of all sites "
                "together came out, and nothing is known of a single site."
            )
        ]
    elif found.sums == "noised":
        told = [
            message(
                "All this is made of sums with noise. The promise holds with the noise counted in, "
                "so sets and other answers are larger than without; what comes of them on other "
                "{images} was not measured.",
                images=images,
            )
        ]
    if found.covers != "pairs":
        told += _single(found, images)
    if found.missing:
        told.append(
            message(
                "The sums lack {missing} test {images} of these sites: one that protects its "
                "{images} sends zeros where it cannot compute.",
                missing=count(found.missing), images=images,
            )
        )  # fmt: skip
    return told


def _single(found: SetsRecord, images: Words) -> list[Text]:
    """Whose images count one by one, and what that means."""
    if not found.grouped:
        return [
            message(
                "They count {images} one by one: where several belong together (such as a "
                "patient's), little is promised of new groups' {images}.",
                images=images,
            )
        ]
    if not found.ungrouped:
        return []
    names, more = ", ".join(found.ungrouped[:NAMED]), len(found.ungrouped) - NAMED
    return [
        message(
            "Sites that do not know which of their {images} belong together: {count} ({names}). "
            "There each counts by itself, and if some do belong together, little is promised of "
            "new groups' {images} at these sites.",
            images=images, count=count(len(found.ungrouped)),
            names=f"{names}, ..." if more > 0 else names,
        )
    ]  # fmt: skip


def _noised_confidence(found: CalibrationRecord) -> list[Text]:
    """What sums with noise say of confidence, if they make a temperature."""
    if found.temperature is None or found.gap is None or found.noise is None:
        return []
    values = {
        "gap": percent(abs(found.gap)), "noise": percent(found.noise),
        "temperature": number(found.temperature, 2),
    }  # fmt: skip
    more = message(
        "Confidence: by sums with noise the model is more confident than it is right, by {gap} "
        "(standard deviation {noise}). So scores are divided by a temperature of {temperature}; "
        "what comes of it was not measured.",
        **values,
    )
    less = message(
        "Confidence: by sums with noise the model is less confident than it is right, by {gap} "
        "(standard deviation {noise}). So scores are divided by a temperature of {temperature}; "
        "what comes of it was not measured.",
        **values,
    )
    return [more if found.gap > 0 else less]


def _calibration(run: Run, found: CalibrationRecord | None) -> list[Text]:
    if found is not None and found.sums == "noised":
        return _noised_confidence(found)
    if found is None or found.ece is None:
        return []
    values = {
        "before": percent(found.ece_before), "after": percent(found.ece),
        "temperature": number(found.temperature, 2), "tested": count(found.tested),
        "images": nouns(run.modality).many,
    }  # fmt: skip
    bounds = found.ece_interval
    values["interval"] = percent(found.ece) if bounds is None else range_of(*bounds)
    heat = values.pop("temperature")
    scaled = message("scores are divided by a temperature of {temperature}", temperature=heat)
    if found.temperature is None:
        scaled = message("scores are scaled class by class")
    told: list[Text] = [
        message(
            "Confidence: on {tested} test {images} it is off by {before} on average as the model "
            "says it, and by {after} (95 % interval {interval}) once {scaled}. This is the "
            "expected calibration error without what chance adds.",
            **values, scaled=scaled,
        )
    ]  # fmt: skip
    if found.reason:
        why = known_phrase(found.reason)
        told.append(message("Scores are not scaled as asked: {reason}.", reason=why))
    return told


def _sets(run: Run, found: SetsRecord | None) -> list[Text]:
    if found is not None and found.sums == "noised":
        return [] if found.reason else _noised_sets(run, found)
    if found is None or found.coverage is None:
        return []
    values = {
        "asked": percent(found.asked), "held": count(found.images),
        "coverage": percent(found.coverage), "size": number(found.size, 2),
        "images": nouns(run.modality).many, "tested": count(found.tested),
    }  # fmt: skip
    told: list[Text] = [
        message(
            "Sets: made to hold the true class of at least {asked} of each site’s {images}, from "
            "its own share of {held} held-out ones. They hold it for {coverage} on average "
            "over the sites, each in its own mix of classes, with {size} classes; {tested} test "
            "{images} show it.",
            **values,
        )
        if found.guarantee == "site"
        else message(
            "Sets: made to hold the true class of at least {asked} of the {images} of a group "
            "(such as a patient) on average, from one of each of {held} held-out groups. They hold "
            "it for {coverage} of {tested} test {images}, one of each group, with {size} classes "
            "on average.",
            **values,
        )
        if found.grouped
        else message(
            "Sets: made to hold the true class of at least {asked} of {images}, from {held} "
            "held-out ones. They hold it for {coverage} of {tested} test {images}, with {size} "
            "classes on average.",
            **values,
        )
    ]
    if found.expected is not None:
        told.append(
            message(
                "By chance this share varies: in 95 of 100 such runs it is {range}.",
                range=range_of(*found.expected),
            )
        )
    holds = HOLDS.get(found.guarantee)
    if holds is not None:
        told.append(holds)
    return told


def _noised_sets(run: Run, found: SetsRecord) -> list[Text]:
    values = {
        "asked": percent(found.asked), "held": count(found.images),
        "images": nouns(run.modality).many,
    }  # fmt: skip
    said = message(
        "Sets: made to hold the true class of at least {asked} of {images}, from {held} test "
        "{images}.",
        **values,
    )
    if found.grouped:
        said = message(
            "Sets: made to hold the true class of at least {asked} of the {images} of a group "
            "(such as a patient) on average, from one of each of {held} test groups.",
            **values,
        )
    holds = HOLDS.get(found.guarantee)
    return [said] if holds is None else [said, holds]


def _ood(run: Run, found: OodRecord | None) -> list[Text]:
    if found is not None and found.sums == "noised" and found.threshold is not None:
        return [
            message(
                "Unlike the training: of {images} like it at most {asked} are called so. The "
                "command predict marks such {images}.",
                asked=percent(found.asked), images=nouns(run.modality).many,
            )
        ]  # fmt: skip
    if found is None or found.false_alarm is None:
        return []
    if found.grouped:
        return [
            message(
                "Unlike the training: of {tested} test {images}, one of each group, {alarms} are "
                "called so, and {asked} may be. The command predict marks such {images}.",
                alarms=percent(found.false_alarm), tested=count(found.tested),
                asked=percent(found.asked), images=nouns(run.modality).many,
            )
        ]  # fmt: skip
    return [
        message(
            "Unlike the training: {alarms} of {tested} test {images} are called so, and {asked} "
            "may be. The command predict marks such {images}.",
            alarms=percent(found.false_alarm), tested=count(found.tested),
            asked=percent(found.asked), images=nouns(run.modality).many,
        )
    ]  # fmt: skip


def rows(run: Run) -> list[TrustRow]:
    """Each site of which something is known."""
    if run.summary is None:
        return []
    sets = run.summary.sets.by_site if run.summary.sets is not None else {}
    sure = run.summary.calibration.by_site if run.summary.calibration is not None else {}
    found = []
    for name in dict.fromkeys([*sets, *sure]):
        one, other = sets.get(name), sure.get(name)
        found.append(
            TrustRow(
                name,
                one.coverage if one else None,
                one.size if one else None,
                one.own_coverage if one else None,
                one.own_size if one else None,
                other.ece if other else None,
                one.images if one else None,
            )
        )
    return found


def given(run: Run) -> list[GivenRow]:
    """Each site of whose model something is known."""
    found = []
    for name, one in ({} if run.comparison is None else run.comparison.delivered).items():
        sets, sure = (one.trust.sets, one.trust.calibration) if one.trust else (None, None)
        if sets is None or not (sets.covers or (sure is not None and sure.ece_before is not None)):
            continue
        why = known_phrase(sets.reason) if sets.reason else ""
        ece = None if sure is None else sure.ece
        found.append(GivenRow(name, sets.coverage, sets.size, ece, sets.images, why))
    return found


def given_table(run: Run) -> tuple[tuple[Text, ...], list[tuple[str, tuple[Words, ...]]]]:
    """The headings of the table of sites' own models, and the name and the cells of each row."""
    rows, covers = given(run), _given_covers(run)
    if covers:
        headings, cells = trust_covering.columns(covers)
        held: Text = message("{images} that they are made of", images=nouns(run.modality).many)
        return (*headings[:2], held), [
            (row.name, _given_cells(row, cells(row.coverage, row.size), count(row.images)))
            for row in rows
        ]
    headings = (
        message("Sets that hold the true class"), message("Classes in a set"),
        message("{images} that sets are made of", images=nouns(run.modality).many),
        message("Confidence off by"),
    )  # fmt: skip
    return headings, [
        (row.name, (*_given_cells(row, (percent(row.coverage), number(row.size, 2)),
                                  count(row.images)), percent(row.ece)))
        for row in rows
    ]  # fmt: skip


def _given_cells(
    row: GivenRow, both: tuple[Words, Words], images: Words
) -> tuple[Words, Words, Words]:
    """Coverage and size, and of how many images; or why there are none."""
    return (row.reason, "", images) if row.reason else (*both, images)


def _given_covers(run: Run) -> str:
    """What the answers of sites' own models are made to hold, if they are no sets of classes."""
    every = {} if run.comparison is None else run.comparison.delivered
    kinds = {one.trust.sets.covers for one in every.values() if one.trust and one.trust.sets}
    return next((kind for kind in kinds if kind), "")


def table(run: Run) -> tuple[tuple[Text, ...], list[tuple[str, tuple[Words, ...]]]]:
    """The headings of the table of sites, and the name and the cells of each row."""
    held: Text = message("Held-out {images}", images=nouns(run.modality).many)
    sets = run.summary.sets if run.summary is not None else None
    if sets is not None and sets.covers:
        headings, cells = trust_covering.columns(sets.covers)
        held = trust_covering.held_out(run, sets)
        return (*headings, held), [
            (row.name, (*cells(row.coverage, row.size), *cells(row.own_coverage, row.own_size),
                        count(row.images)))
            for row in rows(run)
        ]  # fmt: skip
    headings = (
        message("Sets that hold the true class"), message("Classes in a set"),
        message("by its own threshold"), message("Classes in such a set"),
        message("Confidence off by"), held,
    )  # fmt: skip
    return headings, [
        (row.name, (percent(row.coverage), number(row.size, 2), percent(row.own_coverage),
                    number(row.own_size, 2), percent(row.ece), count(row.images)))
        for row in rows(run)
    ]  # fmt: skip


def diagram(run: Run, name: str) -> Plot | None:
    """The share of right answers over the confidence, before and after scaling."""
    if run.trust is None:
        return None
    bins = run.trust.reliability
    lines = {
        key: [
            (one.confidence, one.accuracy)
            for one in bins.get(key, ())
            if one.confidence is not None and one.accuracy is not None
        ]
        for key in ("before", "after")
    }
    if not lines["after"]:
        return None
    lines["right"] = [(0.0, 0.0), (1.0, 1.0)]
    names = (message("as the model says"), message("after scaling"), message("as it should be"))
    axes = (message("confidence"), message("share of right answers"))
    return plots.shares(name, axes, lines, names)
