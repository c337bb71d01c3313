"""Figures, sentences and notes of one run, made from its files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from fedsight.language.message import Text, listed, message, plural
from fedsight.report import words
from fedsight.report.nouns import nouns
from fedsight.report.phrases import figure_name, known_phrase
from fedsight.report.read import Run
from fedsight.report.records import Comparison
from fedsight.report.words import (
    Words,
    count,
    duration,
    estimate,
    label,
    percent,
    size,
)

NAMED = 5  # sites that a sentence names
ACCURACY = "Accuracy"  # the only main figure that is a share of right answers


def score(run: Run) -> float | None:
    """The final main figure, or that of the last evaluated round of an unfinished run."""
    if run.summary is not None:
        return run.summary.score
    return next((r.score for r in reversed(run.rounds) if r.score is not None), None)


def score_error(run: Run) -> float | None:
    """The standard error that noise gives the final main figure; None without noise."""
    return run.summary.score_error if run.summary is not None else None


def score_words(run: Run, value: float | None) -> Words:
    """A value of the main figure; the final one with the margin that noise gives it."""
    return estimate(value, score_error(run)) if value == score(run) else percent(value)


def total(run: Run, what: str) -> Any:
    """`bytes_up`, `bytes_down` or `seconds` of the whole run; None if a round lacks it."""
    final = getattr(run.summary, what) if run.summary is not None else None
    if final is not None:
        return final
    values = [getattr(line, what) for line in run.rounds]
    return None if None in values else sum(values)


def rounds(run: Run) -> int:
    """Number of finished rounds."""
    if run.summary is not None and run.summary.rounds is not None:
        return run.summary.rounds
    return run.rounds[-1].round


def site_words(run: Run, site: tuple[str, float]) -> Words:
    """The figure of a site, with the margin that noise gives it."""
    name, reached = site
    return estimate(reached, run.summary.site_errors.get(name) if run.summary else None)


@dataclass(frozen=True)
class ThreeWay:
    """The three-way comparison on the shared test set; `alone` by site."""

    alone: dict[str, float]
    mean: float
    federated: float
    pooled: float


def three_way(run: Run) -> ThreeWay | None:
    """The three-way comparison, or None if one of the three was not measured."""
    if run.comparison is None:
        return None
    alone = _alone_scores(run.comparison)
    federated, pooled = run.comparison.federated.score, run.comparison.pooled.score
    if not alone or federated is None or pooled is None:
        return None
    return ThreeWay(alone, fmean(alone.values()), federated, pooled)


def _alone_scores(comparison: Comparison) -> dict[str, float]:
    return {
        name: found.score
        for name, found in comparison.alone.items()
        if found.score is not None and math.isfinite(found.score)
    }


def figure_notes(run: Run) -> list[Text]:
    """What became of pretrained weights, what could not be computed, which sites have released no
    figures and why, and which have added noise to theirs."""
    notes: list[Text] = [
        message("Pretrained weights: {note}.", note=known_phrase(note))
        for note in run.facts.model.notes
    ]
    if run.evaluation is None:
        return notes
    notes += [
        message("Could not be computed: {what}. {reason}", what=known_phrase(what), reason=reason)
        for what, reason in run.evaluation.failed.items()
    ]
    found, noised = run.evaluation.withheld, run.evaluation.noised
    for reason in dict.fromkeys(found.values()):
        held = [site for site in sorted(found) if found[site] == reason]
        notes.append(
            plural(
                "{count} site released no figures ({names}): {reason}.",
                "{count} sites released no figures ({names}): {reason}.",
                len(held), count=count(len(held)), names=_names(held), reason=known_phrase(reason),
            )
        )  # fmt: skip
    notes += [
        message(
            "The figures do not cover site '{site}', which has test images: {reason}.",
            site=site, reason=known_phrase(why),
        )
        for site, why in sorted(run.evaluation.not_measured.items())
    ]  # fmt: skip
    if noised:
        notes.append(
            plural(
                "{count} site added noise to its figures ({names}), so these are "
                "estimates{margin}.",
                "{count} sites added noise to their figures ({names}), so these are "
                "estimates{margin}.",
                len(noised), count=count(len(noised)), names=_names(noised), margin=_margin(run),
            )
        )  # fmt: skip
    return notes


def _margin(run: Run) -> Words:
    """The margin of error by the noise of figures, if it is known."""
    if not score_error(run):
        return ""
    return message(
        ": {figure} {estimate} (95 % of what this noise does, itself an estimate)",
        figure=figure_name(run.facts.headline), estimate=score_words(run, score(run)),
    )  # fmt: skip


def _names(sites: Sequence[str]) -> str:
    return ", ".join(sites[:NAMED]) + (", …" if len(sites) > NAMED else "")


def lead(run: Run) -> Text:
    """What the first sentence is based on: data, sites, model, rounds."""
    facts, data = run.facts, run.facts.data
    held: Words = nouns(run.modality).many
    if data.train is not None:
        held = message("{count} training {images}", count=count(data.train), images=held)
    if data.title:
        held = message("{held} ({title})", held=held, title=data.title)
    values = {
        "held": held,
        "sites": words.sites(run.population),
        "rounds": words.rounds(rounds(run)),
    }
    if facts.model.parameters:
        return message(
            "{held}, held by {sites}; one model with {parameters} parameters, "
            "trained for {rounds}.",
            parameters=count(facts.model.parameters), **values,
        )  # fmt: skip
    return message("{held}, held by {sites}; one model, trained for {rounds}.", **values)


def cost(run: Run) -> list[Text]:
    """Bytes and time, in a few words each, as far as they were measured."""
    parts: list[Text] = []
    up, down = total(run, "bytes_up"), total(run, "bytes_down")
    if up is not None and down is not None:
        sent = {"up": size(up), "down": size(down)}
        parts.append(message("{up} sent and {down} received by all sites together", **sent))
    parts += carried(run)
    parts += _refused_codec(run)
    spent = total(run, "seconds")
    if spent is not None:
        took = {"time": duration(spent), "rounds": words.rounds(rounds(run))}
        parts.append(message("{time} for {rounds}", **took))
    times = [line.seconds for line in run.rounds if line.seconds is not None]
    if times:
        parts.append(message("{time} a round (median)", time=duration(median(times))))
    virtual = run.rounds[-1].virtual_seconds
    if virtual is not None:
        parts.append(message("{time} of virtual time", time=duration(virtual)))
    return parts


def carried(run: Run) -> list[Text]:
    """What the TLS connections of a federation have carried in all, and for each of a few sites."""
    sites = {} if run.traffic is None else run.traffic.sites
    known = [(name, one.received or 0, one.sent or 0) for name, one in sites.items()]
    if not known:
        return []
    whole = {
        "up": size(sum(up for _, up, _ in known)),
        "down": size(sum(down for *_, down in known)),
    }
    found: list[Text] = [
        message("with all that comes beside them, TLS carried {up} up and {down} down", **whole)
    ]
    if len(known) <= NAMED:
        each = (f"{label(name)} {size(up)} + {size(down)}" for name, up, down in sorted(known))
        found.append(message("by site: {sites}", sites=listed(each)))
    return found


def _refused_codec(run: Run) -> list[Text]:
    """What a shorter codec would have sent, if the run's protections had not refused it."""
    found = None if run.summary is None else run.summary.shorter_codec
    if found is None:
        return []
    return [
        message(
            "protected, a site sends {reply} and receives {order} in a round; the codec "
            "'{codec}', which the protection refuses, would make {shortest_reply} and "
            "{shortest_order} of them",
            reply=size(found.reply),
            order=size(found.order),
            codec=label(found.codec),
            shortest_reply=size(found.shortest_reply),
            shortest_order=size(found.shortest_order),
        )
    ]


def timed(run: Run) -> bool:
    """Whether the order in which replies came decided which of them made a round."""
    return any(line.reply_seconds for line in run.rounds)


@dataclass(frozen=True)
class Confusion:
    """How often one class was taken for another, of how many samples of it."""

    truth: str
    predicted: str
    times: int
    of: int


def confusions(run: Run) -> list[Confusion]:
    """Which class was taken for which, the most frequent first."""
    if run.evaluation is None:
        return []
    classes, matrix = run.evaluation.classes, run.evaluation.confusion
    wrong = sorted(
        (-times, i, j)
        for i, row in enumerate(matrix)
        for j, times in enumerate(row)
        if i != j and times > 0
    )
    return [Confusion(classes[i], classes[j], -times, sum(matrix[i])) for times, i, j in wrong]


def cell(value: str | float | None) -> Words:
    """A table cell: text unchanged, numbers with three digits, a dash if there is no value."""
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1e6 and value != int(value):
        return f"{value:.3g}"
    return count(int(value)) if value == int(value) and abs(value) > 1 else f"{value:.3f}"


def environment(run: Run) -> list[tuple[str, Words]]:
    """The software and the machine, as (name, value)."""
    return [(key, _value(value)) for key, value in run.facts.environment.items()]


def _value(value: object) -> Words:
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    return cell(value) if isinstance(value, float) else str(value)


def rejected(run: Run) -> list[tuple[int, str, str]]:
    """Every rejected update: (round, site, reason)."""
    return [(line.round, site, why) for line in run.rounds for site, why in line.rejected.items()]


def doubts(run: Run) -> list[tuple[int, str, str]]:
    """What was odd about updates that counted: (round, site, why it may have cheated)."""
    return [(line.round, site, why) for line in run.rounds for site, why in line.doubts.items()]


def averaged(run: Run) -> bool:
    """Whether the figures are those of a moving average of the models."""
    return any(line.model is not None for line in run.rounds)


def missing_replies(run: Run) -> int:
    """How many requested updates did not arrive or did not count."""
    return sum(
        max(0, line.cohort - line.replies)
        for line in run.rounds
        if line.cohort is not None and line.replies is not None
    )


def disagreement(run: Run) -> Words:
    """A warning if two files of the run give different figures for the same model."""
    three, reached = three_way(run), run.summary.score if run.summary else None
    if three is None or reached is None or math.isclose(three.federated, reached, abs_tol=1e-9):
        return ""
    return message(
        "The files of this run disagree: for the federated model, summary.json gives {one} and "
        "comparison.json {other}.",
        one=percent(reached, 2), other=percent(three.federated, 2),
    )  # fmt: skip
