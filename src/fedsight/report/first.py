"""The first sentence of the report: the shared test set, and each site's own images."""

from __future__ import annotations

from collections.abc import Sequence

from fedsight.language.message import Text, listed, message, plural
from fedsight.report import view
from fedsight.report.nouns import nouns
from fedsight.report.phrases import figure_name, known_phrase
from fedsight.report.read import Run
from fedsight.report.sites import SiteRow, Tally, by_what, differ, known, site_rows, tally
from fedsight.report.words import Words, between, count, percent, points, range_of, rounds, sites

NAMED = 2  # sites that lose that the sentence names


def first_sentence(run: Run) -> Words:
    """What the run reached on the shared test set, and who gains and who loses by it."""
    own = _own(run)
    if own is None:
        return message("{shared}.", shared=_shared(run))
    return message("{shared}; {own}.", shared=_shared(run), own=own)


def figure(run: Run, value: float | None) -> Words:
    """A value of the run's main figure, with its name: `88.1 % accuracy`."""
    name = figure_name(run.facts.headline)
    return message("{share} {figure}", figure=name, share=view.score_words(run, value))


def interval(run: Run) -> tuple[float, float] | None:
    """The 95 % interval of the final main figure over other test samples; None if unknown, and
    where the figure has a margin by noise."""
    noised = run.evaluation is not None and run.evaluation.noised
    return None if run.summary is None or noised else run.summary.score_interval


def no_interval(run: Run) -> Text | None:
    """Why the main figure has no interval, if that was said."""
    if run.evaluation is None or not run.evaluation.no_interval or interval(run) is not None:
        return None
    return message(
        "The {figure} of all test {images} has no interval: {reason}.",
        figure=figure_name(run.facts.headline),
        images=nouns(run.modality).many,
        reason=known_phrase(run.evaluation.no_interval),
    )


def _shared(run: Run) -> Text:
    reached, three, many = view.score(run), view.three_way(run), nouns(run.modality).many
    together: dict[str, object] = {"images": many, "sites": sites(run.population)}
    if reached is None:
        return message(
            "{sites} trained together for {rounds}; {figure} was not measured",
            rounds=rounds(view.rounds(run)), figure=figure_name(run.facts.headline), **together,
        )  # fmt: skip
    together["figure"] = _with_interval(run, reached)
    one = 1 if run.population == 1 else 2
    if three is None:
        return plural(
            "On the shared test {images}, {sites} reaches {figure} without sharing its {images}",
            "On the shared test {images}, {sites} reach {figure} without sharing their {images}",
            one, **together,
        )  # fmt: skip
    together["alone"] = percent(three.mean)
    if len(three.alone) < run.population:
        return message(
            "On the shared test {images}, {sites} together reach {figure}; alone, {tried} of them "
            "reach {alone} on average",
            tried=count(len(three.alone)), **together,
        )  # fmt: skip
    return plural(
        "On the shared test {images}, {sites} reaches {figure}, and alone {alone}",
        "On the shared test {images}, {sites} together reach {figure}, "
        "and alone {alone} on average",
        one, **together,
    )  # fmt: skip


def _with_interval(run: Run, reached: float) -> Words:
    bounds = interval(run)
    if bounds is None:
        return figure(run, reached)
    return message(
        "{figure} (95 % interval {interval})",
        figure=figure(run, reached),
        interval=range_of(*bounds),
    )


def _own(run: Run) -> Text | None:
    rows = site_rows(run)
    found = tally(rows)
    if found is None:
        return _by_site(run, rows)
    if found.judged:
        return message("{where}, {outcome}", where=by_what(run), outcome=_outcome(found))
    return message(
        "{where}, the figure is higher than alone at {higher} of {sites}, by chance or not",
        where=by_what(run), higher=count(found.higher), sites=sites(found.all),
    )  # fmt: skip


def _outcome(found: Tally) -> Text:
    of = sites(found.all)
    if not found.better and not found.worse:
        return message("none of {sites} is shown to gain or to lose by joining", sites=of)
    gain = plural("{n} of {sites} gains", "{n} of {sites} gain", len(found.better), sites=of)
    if found.better:
        most = found.better[0]
        gain = message(
            "{gain}, {site} most: {change}", gain=gain, site=most.name, change=_change(most)
        )
    if not found.worse:
        return message("{gain}, and none loses", gain=gain)
    lose = plural("{n} loses", "{n} lose", len(found.worse))
    named = listed(
        message("{site} {change}", site=row.name, change=_change(row))
        for row in found.worse[:NAMED]
    )
    if len(found.worse) > NAMED:
        named = message("most {named}", named=named)
    return message("{gain}, and {lose}: {named}", gain=gain, lose=lose, named=named)


def _change(row: SiteRow) -> Text:
    bounds = row.bounds
    if bounds is None:
        return message("{gain} by chance or not", gain=points(row.gain))
    return message("{gain} ({interval})", gain=points(row.gain), interval=between(*bounds))


def _by_site(run: Run, rows: Sequence[SiteRow]) -> Text | None:
    """Without a comparison: how far the sites' figures are apart, and whether that is chance."""
    figures = [row.federated for row in rows if known(row.federated)]
    values = [value for value in figures if value is not None]
    if len(values) < 2 or min(values) == max(values):
        return None
    spread = {"where": by_what(run), "interval": range_of(min(values), max(values))}
    beyond = differ(run)
    if beyond is None:
        return message("{where}, it is {interval}", **spread)
    if beyond:
        return message("{where}, it is {interval}, which is more than chance explains", **spread)
    return message("{where}, it is {interval}, which chance alone can explain", **spread)
