"""The plots of a run's chapter, and the curves of several runs together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedsight.language.message import message
from fedsight.report import explanations, plots, shortcuts, tables, trust
from fedsight.report.groups import Group
from fedsight.report.nouns import nouns
from fedsight.report.phrases import answer_name, known_phrase
from fedsight.report.read import Run
from fedsight.report.svg import Plot
from fedsight.report.words import Words


def history_part(run: Run) -> Words:
    """What the rounds' figures were measured on."""
    part = next((line.measured_on for line in run.rounds if line.measured_on), "")
    many = nouns(run.modality).many
    if part == "validation part":
        return message("validation {images}", images=many)
    return message("test {images}", images=many)


def _line(run: Run, name: Words, what: str, style: int = 0) -> plots.Polyline:
    values = [getattr(line, what) for line in run.rounds]
    return plots.Polyline(name, [line.round for line in run.rounds], values, style)


def round_plots(run: Run, anchor: str) -> dict[str, Plot]:
    """Main figure and loss over a run's rounds, as far as they were measured."""
    tested = message("on {part}", part=history_part(run))
    losses = [
        _line(run, tested, "loss", 0),
        _line(run, message("in training"), "train_loss", 1),
    ]
    headline = known_phrase(run.facts.headline)
    found = {
        "score": plots.curves(f"{anchor}-score", headline, [_line(run, headline, "score")], True),
        "loss": plots.curves(f"{anchor}-loss", message("loss"), losses),
    }
    return {name: plot for name, plot in found.items() if plot is not None}


def chapter_plots(run: Run, anchor: str) -> dict[str, Plot]:
    """The plots of one run by name; those for which nothing was measured are left out."""
    facts, evaluation = run.facts, run.evaluation
    found: dict[str, Plot | None] = {**round_plots(run, anchor)}
    held = [(site.name, site.labels) for site in facts.sites if site.labels]
    if held and len(facts.classes) <= tables.MOST:
        found["labels"] = tables.labels(f"{anchor}-labels", facts.classes, held)
    found["reliability"] = trust.diagram(run, f"{anchor}-reliability")
    for kind in explanations.HEIGHTS:
        found[kind] = explanations.diagram(run, kind, f"{anchor}-{kind}")
    found |= shortcuts.plots(run, anchor)
    if evaluation is None:
        return {name: plot for name, plot in found.items() if plot is not None}
    if evaluation.confusion and len(evaluation.classes) <= tables.MOST:
        matrix = tables.confusion(f"{anchor}-confusion", evaluation.classes, evaluation.confusion)
        found["confusion"] = matrix
    for at, curve in enumerate(evaluation.curves):
        axes = (known_phrase(curve.x), known_phrase(curve.y))
        names = [answer_name(name) for name in curve.lines]
        found[f"curve{at}"] = plots.shares(f"{anchor}-curve{at}", axes, curve.lines, names)
    return {name: plot for name, plot in found.items() if plot is not None}


def overlays(groups: Sequence[Group]) -> dict[str, Plot]:
    """Main figure and loss over the rounds of several runs, and the figure over their traffic and
    time; one style for each group."""
    if not groups:
        return {}
    headlines = list(dict.fromkeys(group.headline for group in groups))
    axis: Words = known_phrase(headlines[0]) if len(headlines) == 1 else message("main figure")
    lines = {
        what: [
            _line(member.run, group.name, what, style)
            for style, group in enumerate(groups)
            for member in group.members
        ]
        for what in ("score", "loss")
    }
    costs = {
        what: [
            replace(line, x=_spent(member.run, what))
            for line, member in zip(
                lines["score"], [one for group in groups for one in group.members], strict=True
            )
        ]
        for what in ("bytes", "seconds", "virtual")
    }
    found = {
        "score": plots.curves("all-score", axis, lines["score"], True),
        "bytes": plots.curves("all-bytes", axis, costs["bytes"], True, plots.TRAFFIC),
        "seconds": plots.curves("all-seconds", axis, costs["seconds"], True, plots.TIME),
        "virtual": plots.curves("all-virtual", axis, costs["virtual"], True, plots.VIRTUAL),
        "loss": plots.curves("all-loss", message("loss"), lines["loss"]),
    }
    return {name: plot for name, plot in found.items() if plot is not None}


def _spent(run: Run, what: str) -> list[float | None]:
    """Megabytes, seconds or virtual seconds up to the end of each round; None from where it is not
    known."""
    if what == "virtual":
        return [line.virtual_seconds for line in run.rounds]
    total: float | None = 0.0
    found = []
    for line in run.rounds:
        costs = (line.bytes_up, line.bytes_down) if what == "bytes" else (line.seconds,)
        for cost in costs:
            total = None if total is None or cost is None else total + cost
        found.append(total if total is None or what == "seconds" else total / 1e6)
    return found
