"""How a run's models do beyond the images that they were trained on: over-fitting, corruptions."""

from __future__ import annotations

from dataclasses import dataclass

from fedsight.language.message import Text, message
from fedsight.report.nouns import nouns
from fedsight.report.read import Run
from fedsight.report.trust_records import CorruptedRecord, GapRecord, SitesMeanRecord
from fedsight.report.words import Words, count, percent, range_of

KINDS = {
    "noise": message("Noise"),
    "blur": message("Blur"),
    "contrast": message("Low contrast"),
    "jpeg": message("JPEG"),
    "shift": message("Moved"),
    "brightness": message("Brightness"),
}


@dataclass(frozen=True)
class CorruptionRow:
    """A corruption: the mean share of right answers over its severities, of both models."""

    name: Words
    federated: float | None
    pooled: float | None


def lines(run: Run) -> list[Text]:
    """What was measured, in sentences."""
    if run.summary is None:
        return []
    found: list[Text] = []
    gaps, stress = run.summary.overfitting, run.summary.robustness
    if gaps is not None:
        found += _gap(run, gaps.federated, message("the federated model"))
        found += _gap(run, gaps.pooled, message("the model of all data pooled"))
    if gaps is not None and gaps.sites is not None:
        found.append(
            message(
                "On average over the sites, the models that they get are right for {federated} "
                "more of the {images} that they know than of others in the site’s mix of "
                "classes, and the sites’ own models for {alone} more.",
                images=nouns(run.modality).many, **_means(gaps.sites),
            )
        )  # fmt: skip
    if stress is not None and stress.sites is not None:
        found.append(
            message(
                "Corrupted {images}: on average over the sites and their mixes of classes, the "
                "models that the sites get are right for {federated}, and their own for {alone}.",
                images=nouns(run.modality).many, **_means(stress.sites),
            )
        )  # fmt: skip
    return found


def _means(sites: SitesMeanRecord) -> dict[str, Words]:
    return {"federated": percent(sites.federated), "alone": percent(sites.alone)}


def _gap(run: Run, gap: GapRecord | None, model: Words) -> list[Text]:
    if gap is None or gap.gap is None:
        return []
    bounds = gap.interval
    return [
        message(
            "Over-fitting: {model} is right for {train} of {tried} training {images} and for "
            "{test} of the test part, which is {gap} (95 % interval {interval}) less.",
            model=model, train=percent(gap.train), tried=count(gap.images),
            images=nouns(run.modality).many, test=percent(gap.test), gap=percent(gap.gap),
            interval=percent(gap.gap) if bounds is None else range_of(*bounds),
        )
    ]  # fmt: skip


def rows(run: Run) -> list[CorruptionRow]:
    """Each corruption that was measured."""
    stress = None if run.summary is None else run.summary.robustness
    if stress is None or stress.federated is None:
        return []
    return [
        CorruptionRow(
            KINDS.get(kind, kind), _mean(stress.federated, kind), _mean(stress.pooled, kind)
        )
        for kind in stress.federated.by_kind
    ]


def _mean(model: CorruptedRecord | None, kind: str) -> float | None:
    each = () if model is None else model.by_kind.get(kind, ())
    known = [one for one in each if one is not None]
    return sum(known) / len(known) if known else None
