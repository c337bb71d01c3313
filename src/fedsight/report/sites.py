"""Figures of single sites: a row for each, which gain and which lose, and the worst site."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsight.language.message import Text, message
from fedsight.report.nouns import nouns
from fedsight.report.read import Run
from fedsight.report.records import DeliveredRecord, GainRecord, SpreadRecord
from fedsight.report.words import Words

LISTED = 10  # sites whose unlabelled classes are named
CHANCE = 0.05  # sites differ beyond chance if chance makes them so different less often than this


def measured_on(run: Run) -> Words:
    """What a site's figure was measured on, in a few words; empty if the files do not say."""
    many = nouns(run.modality).many
    found: dict[str, Text] = {
        "label mix": message("its own label mix"),
        "test part": message("the shared test {images}", images=many),
        "own images": message("its own test {images}", images=many),
        "whole test part": message("the whole test set"),
    }
    return found.get(_test(run), "")


def by_what(run: Run) -> Words:
    """The same, as the beginning of a sentence about all sites."""
    found = _by_what(run)
    return message("{where} and the model that it chose", where=found) if chosen(run) else found


def _by_what(run: Run) -> Words:
    many = nouns(run.modality).many
    found: dict[str, Text] = {
        "label mix": message("with each site’s own label mix"),
        "test part": message("against each site’s own model"),
        "own images": message("on each site’s own test {images}", images=many),
        "whole test part": message("on the test set as each site sees it"),
    }
    return found.get(_test(run), message("by site"))


def how_measured(run: Run) -> Words:
    """The same, in a sentence or two."""
    many = nouns(run.modality).many
    found: dict[str, Text] = {
        "label mix": message(
            "Each site’s figure is measured on the shared test {images}, with every class weighted "
            "as among the site’s own training {images}. It estimates what the site would see, "
            "provided that its {images} of a class resemble the test {images} of that class.",
            images=many,
        ),
        "test part": message(
            "Every site’s figure is measured on the shared test {images}, all alike: this task’s "
            "figure does not depend on how frequent the classes are at a site.",
            images=many,
        ),
        "own images": message(
            "Each site’s figure is measured on its own test {images}, which no site trained on.",
            images=many,
        ),
        "whole test part": message(
            "Each site’s figure is measured on the whole test set, as the site sees it."
        ),
    }
    return found.get(_test(run), "")


def unlabelled(run: Run) -> Words:
    """Which classes sites do not label, in a sentence; empty if all label all."""
    facts = run.facts
    found = [
        f"{site.name} ({', '.join(facts.classes[label] for label in site.unlabelled)})"
        for site in facts.sites
        if site.unlabelled
    ]
    if not found:
        return ""
    more = "; ..." if len(found) > LISTED else ""
    return message(
        "Classes that a site does not label are left out of its training and of its figure: "
        "{sites}.",
        sites="; ".join(found[:LISTED]) + more,
    )


def _test(run: Run) -> str:
    return "" if run.evaluation is None else run.evaluation.site_test


@dataclass(frozen=True)
class SiteRow:
    """One row of the table of sites; a figure that was not measured is None."""

    name: str
    samples: int | None
    alone_whole: float | None
    alone: float | None
    federated: float | None
    pooled: float | None
    compared: GainRecord | None = None
    spread: SpreadRecord | None = None
    balanced: float | None = None  # federated, averages over classes
    macro_f1: float | None = None
    delivered: DeliveredRecord | None = None

    @property
    def reached(self) -> float | None:
        """The figure of the model that the site gets: the one that it chose, or the shared one."""
        return self.federated if self.delivered is None else self.delivered.score

    @property
    def held_out_alone(self) -> float | None:
        """The figure of the site's own model on its held-out images."""
        return None if self.delivered is None else self.delivered.held_out_figure("alone")

    @property
    def held_out_reached(self) -> float | None:
        """The figure there of the model that it chose by them."""
        found = self.delivered
        return None if found is None else found.held_out_figure(found.kind)

    @property
    def gain(self) -> float | None:
        """That figure minus the own model's, both measured for this site."""
        if not known(self.reached) or not known(self.alone):
            return None
        assert self.reached is not None
        assert self.alone is not None
        return self.reached - self.alone

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The 95 % interval of the gain, if it is known."""
        found = self.compared
        if found is None or not known(found.low) or not known(found.high):
            return None
        assert found.low is not None
        assert found.high is not None
        return found.low, found.high

    @property
    def tested(self) -> int | None:
        """The test samples that its figure rests on."""
        found = self.compared or self.spread
        return None if found is None else found.tested

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `no difference shown`, or empty if that was not measured."""
        return "" if self.compared is None else self.compared.verdict


def known(value: float | None) -> bool:
    """Whether a figure was measured and is finite."""
    return value is not None and math.isfinite(value)


def site_rows(run: Run) -> list[SiteRow]:
    """A row for every site with at least one known figure, the largest gain first.

    Without gains: in the run's order.
    """
    summary, comparison, evaluation = run.summary, run.comparison, run.evaluation
    federated: dict[str, float | None] = {}
    averages = summary.by_site if summary is not None else {}
    if summary is not None:
        federated = {name: score.score for name, score in summary.by_site.items()}
    if comparison is not None:
        federated |= comparison.federated.by_site
    alone = comparison.alone if comparison is not None else {}
    pooled = comparison.pooled.by_site if comparison is not None else {}
    samples = {site.name: site.samples for site in run.facts.sites}
    delivered = _chosen(run)
    compared: dict[str, GainRecord] = dict(comparison.sites) if comparison is not None else {}
    compared |= delivered
    spread: Mapping[str, SpreadRecord] = evaluation.sites if evaluation is not None else {}
    rows = [
        SiteRow(
            name,
            samples.get(name),
            alone[name].score if name in alone else None,
            alone[name].own_score if name in alone else None,
            federated.get(name),
            pooled.get(name),
            compared.get(name),
            spread.get(name),
            averages[name].balanced_accuracy if name in averages else None,
            averages[name].macro_f1 if name in averages else None,
            delivered.get(name),
        )
        for name in dict.fromkeys([*samples, *federated, *alone, *pooled])
    ]
    if all(row.gain is None for row in rows):
        return rows
    return sorted(rows, key=lambda row: -math.inf if row.gain is None else row.gain, reverse=True)


def chosen(run: Run) -> bool:
    """Whether sites chose the model that they get."""
    return bool(_chosen(run))


def _chosen(run: Run) -> Mapping[str, DeliveredRecord]:
    """What each site got, if any had images to choose by."""
    given = {} if run.comparison is None else run.comparison.delivered
    return given if any(one.held_out for one in given.values()) else {}


def delivered_words(row: SiteRow) -> Words:
    """Which model the site got, in a few words; empty if no site chose one."""
    if row.delivered is None:
        return ""
    if not row.delivered.held_out:
        return message(
            "{model} (too few held-out samples to choose by)", model=kind_words(row.delivered.kind)
        )
    return kind_words(row.delivered.kind)


def kind_words(kind: str) -> Words:
    """A kind of model that a site can get, in a few words."""
    found: dict[str, Text] = {
        "shared": message("the shared model"),
        "corrected": message("the shared model, corrected for its label mix"),
        "tuned": message("the shared model, tuned at the site"),
        "alone": message("its own model"),
    }
    return found.get(kind, kind)


def alike(run: Run, rows: Sequence[SiteRow]) -> float | None:
    """The one figure of all sites, which are measured alike with one model; None if they differ."""
    found = {row.federated for row in rows}
    if _test(run) != "test part" or len(found) > 1 or any(known(row.alone) for row in rows):
        return None
    return next(iter(found), None)


@dataclass(frozen=True)
class Tally:
    """The sites that gain beyond chance, those that lose, and the number that were compared.

    `judged`: whether it is known what is beyond chance.
    """

    better: tuple[SiteRow, ...]
    worse: tuple[SiteRow, ...]
    higher: int
    all: int
    judged: bool


def tally(rows: Sequence[SiteRow]) -> Tally | None:
    """Who gains and who loses by joining, the largest changes first; None without a comparison."""
    gains = [row for row in rows if row.gain is not None]
    if not gains:
        return None
    ranked = sorted(gains, key=lambda row: row.gain or 0.0)
    return Tally(
        tuple(row for row in reversed(ranked) if row.verdict == "better"),
        tuple(row for row in ranked if row.verdict == "worse"),
        sum((row.gain or 0.0) > 0 for row in gains),
        len(gains),
        any(row.verdict for row in gains),
    )


def differ(run: Run) -> bool | None:
    """Whether the sites' figures differ beyond chance; None if that was not measured."""
    found = None if run.evaluation is None else run.evaluation.differ
    return None if found is None or not math.isfinite(found) else found < CHANCE


def worst_site(run: Run) -> tuple[str, float] | None:
    """The site with the lowest figure, where sites differ beyond chance; else None."""
    found = None if run.summary is None else run.summary.worst_site
    if found is None or found.score is None or not differ(run):
        return None
    return found.name, found.score


def budget(run: Run) -> Words:
    """How often each of the three ways passed over its training samples, if the files say so."""
    if run.comparison is None:
        return ""
    pooled, federated = run.comparison.pooled.passes, run.comparison.federated.passes
    alone = [one.passes for one in run.comparison.alone.values() if one.passes is not None]
    values = [value for value in (pooled, federated, *alone) if value is not None]
    if pooled is None or federated is None or not alone or not all(map(math.isfinite, values)):
        return ""
    each: Words = f"{min(alone):.4g}"
    if max(alone) - min(alone) >= 0.05:
        each = message("{low} to {high}", low=f"{min(alone):.4g}", high=f"{max(alone):.4g}")
    return message(
        "Passes over the training {images}, on average: together {federated}, alone {alone}, "
        "pooled {pooled}.",
        images=nouns(run.modality).many,
        federated=f"{federated:.4g}",
        alone=each,
        pooled=f"{pooled:.4g}",
    )
