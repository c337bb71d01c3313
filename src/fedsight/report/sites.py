"""Figures of single sites: a row for each, the worst site, and how many sites gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsight.report.read import Run

SITE_TEST = {
    "label mix": "Each site’s figure is measured on the common test {modalities}, with every class "
    "weighted as among the site’s own training {modalities}. It estimates what the site would see, "
    "provided that its {modalities} of a class resemble the test {modalities} of that class.",
    "own images": "Each site’s figure is measured on its own test {modalities}, which no site "
    "trained on.",
    "whole test part": "Each site’s figure is measured on the whole test part, the same for all "
    "sites.",
}
MAX_SITES = 20
SHORT = {
    "label mix": "its own label mix",
    "own images": "its own test {modalities}",
    "whole test part": "the whole test part",
}


def measured_on(run: Run) -> str:
    """What a site's figure was measured on, in a few words; empty if the files do not say."""
    return _wording(SHORT, run)


def how_measured(run: Run) -> str:
    """The same, in a sentence or two."""
    return _wording(SITE_TEST, run)


def _wording(words: Mapping[str, str], run: Run) -> str:
    test = "" if run.evaluation is None else run.evaluation.site_test
    return words.get(test, "").format(modalities=run.modalities)


@dataclass(frozen=True)
class SiteRow:
    """One row of the table of sites; a figure that was not measured is None."""

    name: str
    samples: int | None
    alone_whole: float | None
    alone: float | None
    federated: float | None
    pooled: float | None
    worst: bool

    @property
    def gain(self) -> float | None:
        """Federated minus alone, both measured for this site."""
        if self.federated is None or self.alone is None:
            return None
        return self.federated - self.alone


def worst_site(run: Run) -> tuple[str, float] | None:
    """The site with the lowest final figure."""
    summary = run.summary
    if summary is None:
        return None
    if summary.worst_site is not None and summary.worst_site.score is not None:
        return summary.worst_site.name, summary.worst_site.score
    known = {k: v.score for k, v in summary.by_site.items() if v.score is not None}
    name = min(known, key=lambda site: known[site], default=None)
    return None if name is None else (name, known[name])


def site_rows(run: Run) -> list[SiteRow]:
    """A row for every site with at least one known figure, in the run's order."""
    summary, comparison = run.summary, run.comparison
    federated: dict[str, float | None] = {}
    if summary is not None:
        federated = {name: score.score for name, score in summary.by_site.items()}
    alone, pooled = {}, {}
    if comparison is not None:
        federated |= comparison.federated.by_site
        alone, pooled = comparison.alone, comparison.pooled.by_site
    samples = {site.name: site.samples for site in run.facts.sites}
    worst = worst_site(run)
    rows = []
    for name in dict.fromkeys([*samples, *federated, *alone, *pooled]):
        own = alone.get(name)
        rows.append(
            SiteRow(
                name,
                samples.get(name),
                own.score if own else None,
                own.own_score if own else None,
                federated.get(name),
                pooled.get(name),
                worst is not None and name == worst[0],
            )
        )
    return rows


def verdict(rows: Sequence[SiteRow], on: str = "") -> str:
    """A sentence: at how many sites the federated model beats the site's own."""
    gains = [row.gain for row in rows if row.gain is not None]
    if not gains:
        return ""
    better = sum(gain > 0 for gain in gains)
    where = f", each measured on {on}" if on else ""
    text = (
        f"The federated model beats the site’s own model at {better} of {len(gains)} "
        f"site{'s' if len(gains) > 1 else ''}{where}"
    )
    return text + (
        "." if better == len(gains) else "; at the others, training alone was as good or better."
    )
