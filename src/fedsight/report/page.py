"""Builds the report of one run or several: a single self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedsight.core.errors import StoreError
from fedsight.core.files import write_atomically
from fedsight.report import plots, protect, sites, tables, view, words
from fedsight.report.read import Run, read


@dataclass(frozen=True)
class Section:
    """One run as the template sees it: the content of its files, its name and its plots."""

    run: Run
    name: str
    anchor: str
    figures: dict[str, Markup]


def build(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or of several side by side, and return its path.

    `out` defaults to `report.html` in the first run's folder. The file is written whole or not at
    all. Raises StoreError if a run folder is missing or broken or the page cannot be written.
    """
    if not runs:
        raise StoreError("no run was given", "name at least one run folder")
    target = Path(runs[0]) / "report.html" if out is None else Path(out)
    html = render([read(Path(run)) for run in runs])
    write_atomically(target, html.encode("utf-8", "replace"))
    return target


@cache
def _environment() -> Environment:
    """The templates, compiled once in a process."""
    environment = Environment(
        loader=PackageLoader("fedsight", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=words.percent,
        bare_points=words.bare_points,
        number=words.number,
        count=words.count,
        size=words.size,
        duration=words.duration,
        date=words.date,
    )
    return environment


def render(runs: Sequence[Run]) -> str:
    """The page as text; the same runs give the same text."""
    parts = [
        Section(run, name, f"run{at}", _figures(run, f"run{at}"))
        for at, (run, name) in enumerate(zip(runs, _names(runs), strict=True), 1)
    ]
    return (
        _environment()
        .get_template("page.html")
        .render(
            parts=parts,
            view=view,
            sites=sites,
            protect=protect,
            words=words,
            modality=" or ".join(dict.fromkeys(run.modality for run in runs)),
            compared=any(view.three_way(run) for run in runs),
            headlines={run.facts.headline for run in runs},
            evaluated=any(run.evaluation for run in runs),
            overlays=_overlays(parts) if len(parts) > 1 else {},
        )
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """The runs' names; equal ones are distinguished by folder, or else by number."""
    names = [run.facts.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.facts.name} ({run.folder.resolve().name})" for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} #{names[:at].count(name) + 1}"
        for at, name in enumerate(names)
    ]


def _line(run: Run, name: str, what: str) -> plots.Polyline:
    return plots.Polyline(
        name, [line.round for line in run.rounds], [getattr(line, what) for line in run.rounds]
    )


def _figures(run: Run, anchor: str) -> dict[str, Markup]:
    three, rows = view.three_way(run), sites.site_rows(run)
    facts, evaluation = run.facts, run.evaluation
    levels = []
    if three is not None:
        levels = [
            ("pooled, final", three.pooled, plots.POOLED),
            ("sites alone, mean", three.mean, plots.ALONE),
        ]
    tested = f"on {view.history_part(run).removesuffix(' part')} {run.modalities}"
    losses = [_line(run, tested, "loss"), _line(run, "in training", "train_loss")]
    figures = {
        "score": plots.curves(
            f"{anchor}-score",
            f"{facts.headline} on the {view.history_part(run)} after each round",
            [_line(run, "federated", "score")],
            share=True,
            levels=levels,
        ),
        "loss": plots.curves(f"{anchor}-loss", "Loss after each round", losses),
        "sites": plots.by_site(
            f"{anchor}-sites",
            facts.headline,
            [(row.name, row.alone, row.federated) for row in rows],
        ),
    }
    if three is not None:
        figures["three"] = plots.three_way(
            f"{anchor}-three",
            facts.headline,
            three.alone,
            three.mean,
            three.federated,
            three.pooled,
        )
    up = [line.bytes_up for line in run.rounds if line.bytes_up is not None]
    down = [line.bytes_down for line in run.rounds if line.bytes_down is not None]
    if len(up) == len(down) == len(run.rounds):
        figures["bytes"] = plots.traffic(
            f"{anchor}-bytes", [line.round for line in run.rounds], up, down
        )
    held = [(site.name, site.labels) for site in facts.sites if site.labels]
    if held:
        title = f"Training {run.modalities} of each class at each site"
        figures["labels"] = tables.labels(f"{anchor}-labels", title, facts.classes, held)
    if evaluation is not None and evaluation.confusion:
        figures["confusion"] = tables.confusion(
            f"{anchor}-confusion", evaluation.classes, evaluation.confusion
        )
    for at, curve in enumerate(evaluation.curves if evaluation is not None else ()):
        figures[f"curve{at}"] = plots.shares(
            f"{anchor}-curve{at}", curve.title, (curve.x, curve.y), curve.lines
        )
    return {name: figure for name, figure in figures.items() if figure}


def _overlays(parts: Sequence[Section]) -> dict[str, Markup]:
    headline = view.headlines([part.run for part in parts])
    lines = {
        what: [_line(part.run, part.name, what) for part in parts] for what in ("score", "loss")
    }
    figures = {
        "score": plots.curves(
            "all-score", f"{headline} on the test part after each round", lines["score"], True
        ),
        "loss": plots.curves("all-loss", "Loss on the test part after each round", lines["loss"]),
    }
    return {name: figure for name, figure in figures.items() if figure}
