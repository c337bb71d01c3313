"""Sentences, key figures and table rows made from the files of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from fedsight.core.intervals import wilson
from fedsight.report.protect import spent as epsilon
from fedsight.report.read import Run
from fedsight.report.records import Comparison, Evaluation
from fedsight.report.sites import worst_site
from fedsight.report.words import (
    count,
    duration,
    estimate,
    number,
    percent,
    points,
    sentence,
    several,
    size,
    word,
)  # fmt: skip

NAMED = 5  # sites that a sentence names
ACCURACY = "Accuracy"  # the only main figure that is a share of correct answers


@dataclass(frozen=True)
class Figure:
    """One key figure: its name, its value, and a note, such as what it was measured on."""

    label: str
    value: str
    note: str = ""


def score(run: Run) -> float | None:
    """The final main figure, or that of the last evaluated round of an unfinished run."""
    if run.summary is not None:
        return run.summary.score
    return next((r.score for r in reversed(run.rounds) if r.score is not None), None)


def score_error(run: Run) -> float | None:
    """The standard error that noise gives the final main figure; None without noise."""
    return run.summary.score_error if run.summary is not None else None


def loss(run: Run) -> float | None:
    """The final loss on the test part, likewise."""
    if run.summary is not None:
        return run.summary.loss
    return next((r.loss for r in reversed(run.rounds) if r.loss is not None), None)


def total(run: Run, what: str) -> Any:
    """`bytes_up`, `bytes_down` or `seconds` of the whole run; None if a round lacks it."""
    final = getattr(run.summary, what) if run.summary is not None else None
    if final is not None:
        return final
    values = [getattr(line, what) for line in run.rounds]
    return None if None in values else sum(values)


def history_part(run: Run) -> str:
    """The part that the rounds' figures were measured on."""
    return next((line.measured_on for line in run.rounds if line.measured_on), "test part")


def rounds(run: Run) -> int:
    """Number of finished rounds."""
    if run.summary is not None and run.summary.rounds is not None:
        return run.summary.rounds
    return run.rounds[-1].round


def alone_scores(comparison: Comparison) -> dict[str, float]:
    """The score of each site's own model on the whole test part."""
    return {
        name: score.score
        for name, score in comparison.alone.items()
        if score.score is not None and math.isfinite(score.score)
    }


@dataclass(frozen=True)
class ThreeWay:
    """The three-way comparison on the whole test part."""

    alone: dict[str, float]
    mean: float
    federated: float
    pooled: float


def three_way(run: Run) -> ThreeWay | None:
    """The three-way comparison, or None if one of the three was not measured."""
    if run.comparison is None:
        return None
    alone = alone_scores(run.comparison)
    federated, pooled = run.comparison.federated.score, run.comparison.pooled.score
    if not alone or federated is None or pooled is None:
        return None
    return ThreeWay(alone, fmean(alone.values()), federated, pooled)


def headlines(runs: Sequence[Run]) -> str:
    """The name of the score of several runs."""
    return " / ".join(dict.fromkeys(run.facts.headline for run in runs))


def headline(run: Run) -> str:
    """The result of the run in one sentence."""
    sites = sentence(several(run.population, "site"))
    whose = "its" if run.population == 1 else "their"
    reached = score(run)
    three = three_way(run)
    figure = "" if run.facts.headline == ACCURACY else f" ({run.facts.headline})"
    if three is not None:
        return (
            f"{sites} reached {percent(three.federated)}{figure} without sharing {whose} "
            f"{run.modalities}; {_alone(len(three.alone), run.population)} {percent(three.mean)}; "
            f"pooling all {run.modalities} reaches {percent(three.pooled)}."
        )
    if reached is None:
        done, nothing = several(rounds(run), "round"), f"no {word(run.facts.headline)}"
        return f"{sites} trained {done}; {nothing} was measured."
    found = estimate(reached, score_error(run))
    return f"{sites} reached {found}{figure} without sharing {whose} {run.modalities}."


def _alone(tried: int, population: int) -> str:
    if population == 1:
        return "alone it reaches"
    if tried == population:
        return "alone they average"
    count_of = several(tried, "site").split()[0]
    return f"alone, {count_of} of them {'reaches' if tried == 1 else 'average'}"


def figure_notes(run: Run) -> list[str]:
    """What became of pretrained weights, which sites have released no figures and why, and which
    have added noise to theirs."""
    notes = [f"Pretrained weights: {note}." for note in run.facts.model.notes]
    if run.evaluation is None:
        return notes
    found, noised = run.evaluation.withheld, run.evaluation.noised
    for reason in dict.fromkeys(found.values()):
        sites = [site for site in sorted(found) if found[site] == reason]
        notes.append(f"{_named(sites, 'released no figures')}: {reason}.")
    if noised:
        whose = "its" if len(noised) == 1 else "their"
        added = _named(noised, f"added noise to {whose} figures")
        notes.append(f"{added}, so these are estimates{_margin(run)}.")
    return notes


def _margin(run: Run) -> str:
    """The margin of error by the noise of figures, if it is known."""
    found = estimate(score(run), score_error(run))
    if "±" not in found:
        return ""
    what = word(run.facts.headline)
    return f": {what} {found} (95 % of what this noise does, itself an estimate)"


def _named(sites: Sequence[str], what: str) -> str:
    names = ", ".join(sites[:NAMED]) + (", ..." if len(sites) > NAMED else "")
    return f"{sentence(several(len(sites), 'site'))} {what} ({names})"


def certainty(run: Run) -> str:
    """The interval that the size of the test part alone implies (an estimate)."""
    reached, tested = score(run), run.facts.data.test
    if run.facts.headline != ACCURACY or reached is None:
        return ""  # the interval is for a share of correct answers
    found = run.evaluation
    if found is not None and (found.personal or found.noised):
        return ""
    if not tested or not 0 <= reached <= 1:
        return ""
    low, high = (percent(bound) for bound in wilson(reached, tested))
    return (
        f"On {count(tested)} test {run.modalities}, an accuracy of {percent(reached)} stands for "
        f"{low} to {high} (95 % Wilson interval, an estimate); a difference within it may be due "
        "to chance."
    )


def _of_site(run: Run, worst: tuple[str, float]) -> str:
    name, reached = worst
    return estimate(reached, run.summary.site_errors.get(name) if run.summary else None)


def key_figures(run: Run) -> list[Figure]:
    """The figures that a reader looks for first; those not measured are left out."""
    figures = []
    reached, three, tested = score(run), three_way(run), run.facts.data.test
    if reached is not None:
        note = f"on {count(tested)} test {run.modalities}" if tested else ""
        shown = estimate(reached, score_error(run))
        figures.append(Figure(run.facts.headline, shown, note))
    if three is not None:
        gain, gap = three.federated - three.mean, three.federated - three.pooled
        figures.append(Figure("Gain over alone", points(gain), f"alone {percent(three.mean)}"))
        figures.append(Figure("Against pooled", points(gap), f"pooled {percent(three.pooled)}"))
    worst = worst_site(run)
    if worst is not None:
        figures.append(Figure("Worst site", _of_site(run, worst), worst[0]))
    for name, what in (("Sent by sites", "bytes_up"), ("Received by sites", "bytes_down")):
        amount = total(run, what)
        if amount is not None:
            figures.append(
                Figure(name, size(amount), f"{size(amount / max(1, rounds(run)))} per round")
            )
    if epsilon(run):
        figures.append(Figure("Privacy", epsilon(run), "an upper bound"))
    spent = total(run, "seconds")
    if spent is not None:
        each = [line.seconds for line in run.rounds if line.seconds is not None]
        note = f"median round {duration(median(each))}" if each else ""
        figures.append(Figure("Time", duration(spent), note))
    cohorts = sorted({line.cohort for line in run.rounds if line.cohort is not None})
    note = f"{several(cohorts[0], 'site')} per round" if len(cohorts) == 1 else ""
    figures.append(Figure("Rounds", count(rounds(run)), note))
    return figures


def mistakes(run: Run, most: int = 3) -> list[str]:
    """The most frequent confusions as sentences, worst first."""
    assert run.evaluation is not None
    classes, matrix = run.evaluation.classes, run.evaluation.confusion or ()
    wrong = sorted(
        (-matrix[i][j], i, j)
        for i in range(len(classes))
        for j in range(len(classes))
        if i != j and matrix[i][j]
    )
    return [
        f"{count(-times)} of {count(sum(matrix[i]))} {run.modalities} of “{classes[i]}” "
        f"were classified as “{classes[j]}”."
        for times, i, j in wrong[:most]
    ]


def curves(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Key and title of each of the task's curves."""
    return [(f"curve{at}", curve.title) for at, curve in enumerate(evaluation.curves)]


def cell(value: str | float | None) -> str:
    """A table cell: text unchanged, numbers with three digits, a dash if there is no value."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, str):
        return value
    return count(int(value)) if value == int(value) and abs(value) > 1 else f"{value:.3f}"


def rejected(run: Run) -> list[tuple[int, str, str]]:
    """Every rejected update: (round, site, reason)."""
    return [(line.round, site, why) for line in run.rounds for site, why in line.rejected.items()]


def doubts(run: Run) -> list[tuple[int, str, str]]:
    """What was odd about updates that counted: (round, site, why it may have cheated)."""
    return [(line.round, site, why) for line in run.rounds for site, why in line.doubts.items()]


def missing_replies(run: Run) -> int:
    """How many requested updates did not arrive or did not count."""
    return sum(
        max(0, line.cohort - line.replies)
        for line in run.rounds
        if line.cohort is not None and line.replies is not None
    )


def disagreement(run: Run) -> str:
    """A warning if two files of the run give different figures for the same model."""
    three, reached = three_way(run), run.summary.score if run.summary else None
    if three is None or reached is None or math.isclose(three.federated, reached, abs_tol=1e-9):
        return ""
    return (
        f"The files of this run disagree: for the federated model, summary.json gives "
        f"{percent(reached, 2)} and comparison.json {percent(three.federated, 2)}."
    )


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A configuration as dotted keys with their values as text."""
    values: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = str(value)
    return values


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Configuration keys whose value differs between the runs, with each run's value."""
    tables = [flat(run.config) for run in runs]
    keys = sorted({key for table in tables for key in table} - {"name"})
    rows = [(key, [table.get(key, "–") for table in tables]) for key in keys]
    return [row for row in rows if len(set(row[1])) > 1]


def side_by_side(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Key figures of several runs, one row per figure; those that no run measured are left out."""
    tables = [{figure.label: figure.value for figure in key_figures(run)} for run in runs]
    for run, table in zip(runs, tables, strict=True):
        if loss(run) is not None:
            table["Loss"] = number(loss(run))
        worst = worst_site(run)
        if worst is not None:
            table["Worst site"] = f"{_of_site(run, worst)} ({worst[0]})"
    order = (
        *dict.fromkeys(run.facts.headline for run in runs), "Loss",
        "Gain over alone", "Against pooled", "Worst site", "Privacy",
        "Rounds", "Time", "Sent by sites", "Received by sites",
    )  # fmt: skip
    names = [name for name in order if any(name in table for table in tables)]
    return [(name, [table.get(name, "–") for table in tables]) for name in names]


def lead(run: Run) -> str:
    """What the headline is based on: data, sites, model, rounds."""
    facts, data = run.facts, run.facts.data
    kept = run.modalities
    held = kept if data.train is None else f"{count(data.train)} training {kept}"
    source = f" ({data.title})" if data.title else ""
    model = f" with {count(facts.model.parameters)} parameters" if facts.model.parameters else ""
    return (
        f"{held}{source}, held by {several(run.population, 'site')}; one model{model}, "
        f"trained for {several(rounds(run), 'round')}."
    )


def remarks(run: Run) -> list[str]:
    """Notes beside the curves: margin of error, traffic and time, as far as measured."""
    lines = [certainty(run)]
    up, down = total(run, "bytes_up"), total(run, "bytes_down")
    if up is not None and down is not None:
        lines.append(
            f"All sites together sent {size(up)} and received {size(down)} in "
            f"{several(rounds(run), 'round')}, as counted by the run."
        )
    times = [line.seconds for line in run.rounds if line.seconds is not None]
    if times:
        lines.append(
            f"A round took {duration(median(times))} (median; from {duration(min(times))} to "
            f"{duration(max(times))}), including evaluation."
        )
    return [line for line in lines if line]
