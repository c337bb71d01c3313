"""What a sweep has found, from the files of its runs: `sweep.json`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import DataError, FedSightError, StoreError
from fedsight.evaluation.conclusion import require_score
from fedsight.evaluation.configurations import COSTS, Arm, best_of, differences
from fedsight.evaluation.spread import Repeat
from fedsight.runs.series import refuse_changed
from fedsight.runs.sweeps.plan import Cell, SweepPlan

Failures = Mapping[str, FedSightError]  # by the place of the cell
LARGEST = sys.float_info.max


def outcome(plan: SweepPlan, failures: Failures) -> dict[str, Any]:
    """The content of `sweep.json` at the end of a sweep.

    A cell that is not finished counts for nothing; why, `failed` says. Raises StoreError if runs
    of the same data section have not seen the same images.
    """
    _refuse_changed(plan)
    arms = [Arm(label, _repeats(plan, cells)) for label, cells in plan.by_configuration.items()]
    found, best = plan.plain(), best_of(arms)
    for entry, arm in zip(found["configurations"], arms, strict=True):
        entry |= arm.plain()
    failed = {**unmeasured(plan), **failures}
    return found | {
        "best": None if best is None else best.label,
        "differences": differences(arms),
        "finished": len(plan.cells) - len(plan.missing),
        "failed": [
            {"run": place, "cause": error.cause, "cure": error.cure}
            for place, error in failed.items()
        ],
    }


def unmeasured(plan: SweepPlan) -> dict[str, FedSightError]:
    """Finished cells whose figure is not a number, and why."""
    found: dict[str, FedSightError] = {}
    for cell in plan.cells:
        if plan.finished(cell):
            try:
                require_score(RunStore(plan.run(cell)).read_json("summary.json"), cell.place)
            except DataError as error:
                found[cell.place] = error
    return found


def _repeats(plan: SweepPlan, cells: list[Cell]) -> dict[int, Repeat]:
    found = {}
    for cell in cells:
        if plan.finished(cell):
            store = RunStore(plan.run(cell))
            summary = store.read_json("summary.json")
            _require_numbers(summary, store.folder)
            found[cell.seed] = Repeat(store.read_json("run.json"), summary)
    return found


def _require_numbers(summary: Mapping[str, Any], run: Path) -> None:
    """StoreError if what is compared is not what a run writes: the folder may be anybody's."""
    score = summary.get("score")
    numbers = [summary.get(key) for key in COSTS] + ([] if score is None else [score])
    sound = all(
        isinstance(one, int | float) and type(one) is not bool and -LARGEST <= one <= LARGEST
        for one in numbers
    )
    if not sound or type(summary.get("headline")) is not str:
        raise StoreError(
            f"{run / 'summary.json'} holds what no run writes: its headline, its score or what it "
            "cost is not what it should be",
            "remove that run's folder, and continue the sweep: the run begins anew",
        )


def _refuse_changed(plan: SweepPlan) -> None:
    first: dict[str, Cell] = {}
    for cell in plan.cells:
        if plan.finished(cell):
            one = first.setdefault(repr(cell.program.data), cell)
            refuse_changed(plan.run(one), plan.run(cell))
