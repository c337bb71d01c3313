"""The privacy section of the report, made only from the run's own summary."""

from __future__ import annotations

from fedsight.report.read import Run
from fedsight.report.words import several

UNITS = {"client": "a client with all its {modalities}", "example": "a single {modality}"}
NEIGHBOURS = {
    "add_remove": "one added or removed (add/remove)",
    "replace_one": "one replaced by another (replace-one)",
}


def spent(run: Run) -> str:
    """Epsilon and delta, or an empty text without protection."""
    found = run.summary.privacy if run.summary is not None else None
    if found is None or found.epsilon is None:
        return ""
    return f"ε {found.epsilon:.3g} at δ {found.delta:g}"


def rows(run: Run) -> list[tuple[str, str]]:
    """What a reader must know to judge epsilon, as (name, value)."""
    found = run.summary.privacy if run.summary is not None else None
    if found is None:
        return []
    unit = (
        UNITS.get(found.unit, "").format(modality=run.modality, modalities=run.modalities)
        or found.unit
    )
    noise = "differs by site" if found.noise_multiplier is None else f"{found.noise_multiplier:.4g}"
    table = [
        ("Spent", spent(run)),
        ("Target", "none" if found.target is None else f"ε {found.target:g}"),
        ("Protects", f"{unit}: {found.covers}"),
        ("Neighbours", NEIGHBOURS.get(found.neighbours, found.neighbours)),
        ("Mechanism", found.mechanism),
        ("Sampling", found.sampling),
        ("Noise multiplier", noise),
        ("Source of noise", found.noise_from),
        ("Trusted", found.trusts),
        ("Not covered", "; ".join(found.not_covered)),
    ]
    return [(name, value) for name, value in table if value]


def stopped(run: Run) -> str:
    """A sentence if the privacy target ended the run, otherwise an empty text."""
    found = run.summary.privacy if run.summary is not None else None
    if found is None or not found.stopped or found.target is None:
        return ""
    return (
        f"Training stopped after {several(found.rounds, 'round')} of {found.rounds_planned}: "
        f"another round would have exceeded the target of ε {found.target:g}."
    )
