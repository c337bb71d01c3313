"""The privacy section of the report, made only from the run's own summary."""

from __future__ import annotations

import math

from fedsight.language.message import Text, listed, message
from fedsight.report.nouns import nouns
from fedsight.report.phrases import known_phrase
from fedsight.report.read import Run
from fedsight.report.records import ProtectionRecord
from fedsight.report.words import Words, count, rounds


def spent(run: Run) -> Words:
    """Epsilon and delta, or an empty text without protection."""
    found = _protection(run)
    if found is None or found.epsilon is None or not math.isfinite(found.epsilon):
        return ""
    delta = "–" if found.delta is None else f"{found.delta:g}"
    return message("ε {epsilon} at δ {delta}", epsilon=f"{found.epsilon:.3g}", delta=delta)


def rows(run: Run) -> list[tuple[Text, Words]]:
    """What a reader must know to judge epsilon, as (name, value)."""
    found = _protection(run)
    if found is None:
        return []
    noise: Words = message("differs by site")
    if found.noise_multiplier is not None:
        noise = f"{found.noise_multiplier:.4g}"
    target: Words = message("none") if found.target is None else f"ε {found.target:g}"
    covered = listed(known_phrase(one) for one in found.not_covered)
    table: list[tuple[Text, Words]] = [
        (message("Spent"), spent(run)),
        (message("Target"), target),
        (message("Protects"), _protects(run, found)),
        (message("Neighbours"), _neighbours(found.neighbours)),
        (message("Mechanism"), found.mechanism),
        (message("Sampling"), known_phrase(found.sampling)),
        (message("Noise multiplier"), noise),
        (message("Source of noise"), known_phrase(found.noise_from)),
        (message("Trusted"), known_phrase(found.trusts)),
        (message("Not covered"), covered),
    ]
    return [(name, value) for name, value in table if value]


def _protects(run: Run, found: ProtectionRecord) -> Words:
    held = nouns(run.modality)
    units: dict[str, Text] = {
        "client": message("a client with all its {images}", images=held.many),
        "example": message("a single {image}", image=held.one),
    }
    unit = units.get(found.unit, found.unit)
    if not found.covers:
        return unit
    return message("{unit}: {covers}", unit=unit, covers=known_phrase(found.covers))


def _neighbours(name: str) -> Words:
    if name == "add_remove":
        return message("one added or removed (add/remove)")
    if name == "replace_one":
        return message("one replaced by another (replace-one)")
    return name


def stopped(run: Run) -> Words:
    """A sentence if the privacy target ended the run, otherwise an empty text."""
    found = _protection(run)
    if found is None or not found.stopped or found.target is None:
        return ""
    return message(
        "Training stopped after {rounds} of {planned}: another round would have exceeded the "
        "target of ε {target}.",
        rounds=rounds(found.rounds),
        planned=count(found.rounds_planned),
        target=f"{found.target:g}",
    )


def _protection(run: Run) -> ProtectionRecord | None:
    return run.summary.privacy if run.summary is not None else None
