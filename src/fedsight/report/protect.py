"""What a run says of its protection, as rows of a table: only what its own summary holds."""

from __future__ import annotations

from fedsight.report.read import Run
from fedsight.report.words import several

UNITS = {"client": "a client, with all its {modalities}", "example": "a single {modality}"}
NEIGHBOURS = {
    "add_remove": "one more or one fewer (add/remove)",
    "replace_one": "one in the place of another (replace-one)",
}


def spent(run: Run) -> str:
    """Epsilon, or nothing where nothing is protected."""
    found = run.summary.privacy if run.summary is not None else None
    if found is None or found.epsilon is None:
        return ""
    return f"ε {found.epsilon:.3g} at δ {found.delta:g}"


def rows(run: Run) -> list[tuple[str, str]]:
    """What a reader must know to judge the epsilon, as (name, value)."""
    found = run.summary.privacy if run.summary is not None else None
    if found is None:
        return []
    known = UNITS.get(found.unit, "")
    unit = known.format(modality=run.modality, modalities=run.modalities) or found.unit
    noise = (
        "each site its own" if found.noise_multiplier is None else f"{found.noise_multiplier:.4g}"
    )
    table = [
        ("Spent", spent(run)),
        ("Target", "none" if found.target is None else f"ε {found.target:g}"),
        ("Protects", f"{unit}: {found.covers}"),
        ("Neighbours", NEIGHBOURS.get(found.neighbours, found.neighbours)),
        ("Mechanism", found.mechanism),
        ("Who takes part", found.sampling),
        ("Noise multiplier", noise),
        ("Noise comes from", found.noise_from),
        ("Must be trusted", found.trusts),
        ("Not covered", "; ".join(found.not_covered)),
    ]
    return [(name, value) for name, value in table if value]


def stopped(run: Run) -> str:
    """One sentence where the target ended the run."""
    found = run.summary.privacy if run.summary is not None else None
    if found is None or not found.stopped or found.target is None:
        return ""
    return (
        f"Training stopped after {several(found.rounds, 'round')} of {found.rounds_planned}: one "
        f"more would have exceeded the target of ε {found.target:g}."
    )
