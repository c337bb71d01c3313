"""Builds the report of one run or several: a single self-contained HTML file in both languages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedsight.core.errors import StoreError
from fedsight.core.files import write_atomically
from fedsight.language.current import Language, current_language
from fedsight.language.message import Text, message, plural, text_in
from fedsight.report import (
    bars,
    classes,
    explanations,
    first,
    generalisation,
    groups,
    mistakes,
    nouns,
    phrases,
    protect,
    shortcuts,
    sites,
    trust,
    view,
    words,
)
from fedsight.report.bilingual import TAGS, in_html
from fedsight.report.figures import chapter_plots, overlays
from fedsight.report.groups import Group, Member, grouped
from fedsight.report.read import Run, read
from fedsight.report.svg import Plot


@dataclass(frozen=True)
class Chapter:
    """One run as the template sees it: the content of its files, its name and its plots."""

    run: Run
    name: str
    anchor: str
    plots: dict[str, Plot]


def build(runs: Sequence[Path], out: Path | None = None, language: Language | None = None) -> Path:
    """Write the report of one run, or of several side by side, and return its path.

    `out` defaults to `report.html` in the first run's folder; the page opens in `language`
    (default: the current one) and can be switched. The file is written whole or not at all. Raises
    StoreError if a run folder is missing or broken or the page cannot be written.
    """
    if not runs:
        raise StoreError("no run was given", "name at least one run folder")
    target = Path(runs[0]) / "report.html" if out is None else Path(out)
    html = render([read(Path(run)) for run in runs], language or current_language())
    write_atomically(target, html.encode("utf-8", "replace"))
    return target


def render(runs: Sequence[Run], language: Language = "en") -> str:
    """The page as text; the same runs give the same text."""
    chapters = [
        Chapter(run, name, f"run{at}", chapter_plots(run, f"run{at}"))
        for at, (run, name) in enumerate(zip(runs, _names(runs), strict=True), 1)
    ]
    side_by_side: list[Group] = []
    if len(runs) > 1:
        side_by_side = grouped([Member(one.run, one.name, one.anchor) for one in chapters])
    headlines = list(dict.fromkeys(run.facts.headline for run in runs))
    return (
        _environment()
        .get_template("page.html")
        .render(
            chapters=chapters,
            groups=side_by_side,
            overlays=overlays(side_by_side),
            language=language,
            tag=TAGS[language],
            plain=lambda text: text_in(text, language) if isinstance(text, Text) else text,
            held=nouns.all_of([run.modality for run in runs]),
            headlines=headlines,
            compared=any(view.three_way(run) for run in runs),
            averaged=any(classes.overall(run) for run in runs),
            evaluated=any(run.evaluation for run in runs),
            versions=list(dict.fromkeys(run.facts.fedsight for run in runs if run.facts.fedsight)),
        )
    )


@cache
def _environment() -> Environment:
    """The templates, compiled once in a process."""
    environment = Environment(
        loader=PackageLoader("fedsight", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=in_html,
    )
    environment.globals.update(
        message=message,
        plural=plural,
        known=phrases.known_phrase,
        answer=phrases.answer_name,
        nouns=nouns.nouns,
        bars=bars,
        explanations=explanations,
        averages=classes,
        first=first,
        grouping=groups,
        mistakes=mistakes,
        protect=protect,
        shortcuts=shortcuts,
        sites=sites,
        trust=trust,
        generalisation=generalisation,
        view=view,
        words=words,
    )
    return environment


def _names(runs: Sequence[Run]) -> list[str]:
    """The runs' names; equal ones are distinguished by folder, or else by number."""
    names = [run.facts.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.facts.name} ({run.folder.resolve().name})" for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} #{names[:at].count(name) + 1}"
        for at, name in enumerate(names)
    ]
