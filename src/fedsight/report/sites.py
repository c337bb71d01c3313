"""Figures of single sites: a row for each, the worst site, and how many sites gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsight.report.read import Run
from fedsight.report.records import GainRecord
from fedsight.report.words import bare_points

SITE_TEST = {
    "label mix": "Each site’s figure is measured on the common test {modalities}, with every class "
    "weighted as among the site’s own training {modalities}. It estimates what the site would see, "
    "provided that its {modalities} of a class resemble the test {modalities} of that class.",
    "test part": "Every site’s figure is measured on the common test {modalities}, all alike: this "
    "task’s figure does not depend on how frequent the classes are at a site.",
    "own images": "Each site’s figure is measured on its own test {modalities}, which no site "
    "trained on.",
    "whole test part": "Each site’s figure is measured on the whole test part, the same for all "
    "sites.",
}
MAX_SITES = 20
SHORT = {
    "label mix": "its own label mix",
    "test part": "the common test {modalities}",
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
    compared: GainRecord | None = None

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
                comparison.sites.get(name) if comparison is not None else None,
            )
        )
    return rows


def verdict(rows: Sequence[SiteRow], on: str = "") -> str:
    """A sentence: at how many sites the federated model is better or worse than the site's own,
    beyond chance."""
    gains = [row for row in rows if row.gain is not None]
    if not gains:
        return ""
    where = f", each measured on {on}" if on else ""
    sites = f"{len(gains)} site{'s' if len(gains) > 1 else ''}"
    known = [row.compared.verdict for row in gains if row.compared is not None]
    if not known:
        higher = sum((row.gain or 0) > 0 for row in gains)
        return (
            f"The federated model’s figure is higher than that of the site’s own model at {higher} "
            f"of {sites}{where}. Whether that is chance was not measured."
        )
    better, worse = known.count("better"), known.count("worse")
    left = len(gains) - better - worse
    text = (
        f"The federated model is better than the site’s own model at {better} of {sites} and worse "
        f"at {worse}{where}"
    )
    if left:
        text += f"; at {'the other ' if left < len(gains) else 'all '}{left} no difference is shown"
    return text + ". Both were compared on the same test data, each site by itself, at 95 %."


def interval(row: SiteRow) -> str:
    """The 95 % interval of the gain in points; empty if it is not known."""
    found = row.compared
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{bare_points(found.low)} to {bare_points(found.high)}"


def budget(run: Run) -> str:
    """How often each of the three ways passed over its training images, if the files say so."""
    if run.comparison is None:
        return ""
    pooled, federated = run.comparison.pooled.passes, run.comparison.federated.passes
    alone = [one.passes for one in run.comparison.alone.values() if one.passes is not None]
    if pooled is None or federated is None or not alone:
        return ""
    each = f"{min(alone):.1f}"
    if max(alone) - min(alone) >= 0.05:
        each += f" to {max(alone):.1f}"
    return (
        f"Passes over the training {run.modalities}, on average: federated {federated:.1f}, alone "
        f"{each}, pooled {pooled:.1f}."
    )
