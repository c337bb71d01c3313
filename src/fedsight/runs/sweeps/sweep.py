"""A sweep from beginning to end: check all cells, run what is missing, write what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsight.coordinator.folders import claimed
from fedsight.coordinator.protection import Protection
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import ConfigError, FedSightError, Interrupted, Problem
from fedsight.core.progress import progress
from fedsight.core.settings import without_none
from fedsight.data.base import Dataset
from fedsight.language.message import Text
from fedsight.program.federation import federate
from fedsight.runs.functions import WHERE
from fedsight.runs.phases import shown
from fedsight.runs.sweeps.jobs import News, Share, side_by_side
from fedsight.runs.sweeps.outcome import outcome
from fedsight.runs.sweeps.plan import (
    FILE,
    Cell,
    Problems,
    SweepPlan,
    clear,
    is_sweep,
    refuse_others,
    require_place,
)
from fedsight.runs.sweeps.screen import SweepScreen


def start(plan: SweepPlan, jobs: int | None = None, force: bool = False) -> dict[str, Any]:
    """Run the cells that are not finished; returns what `sweep.json` then says.

    If the folder holds the same sweep, or one with fewer cells, it is continued. All cells that
    were not begun are checked first, on their data too. `jobs` cells run at once (default: as many
    as keep the cores busy). With `force` a sweep that is there is replaced.

    Raises ConfigError with every problem of any cell, StoreError if something else is in the
    folder or another process works in it, and Interrupted by Ctrl-C. A cell that fails while it
    runs is in `failed`.
    """
    with claimed(plan.folder):
        require_place(plan, force)
        share = Share.of(plan.missing, jobs)
        notes = _check_data([cell for cell in plan.cells if force or not _begun(plan, cell)])
        if force and is_sweep(plan.folder):
            clear(SweepPlan.read(plan.folder))
            share = Share.of(plan.missing, jobs)
        refuse_others(plan)
        RunStore(plan.folder).write_json(FILE, plan.plain())
        return _go(plan, share, notes)


def resume(
    folder: Path, jobs: int | None = None, workers: int | None = None, device: str | None = None
) -> dict[str, Any]:
    """Continue the sweep in `folder`; a finished one is only read. Returns `sweep.json`.

    `workers` and `device` replace those of the programs.
    """
    plan = SweepPlan.read(folder)
    if not plan.missing and "differences" in (found := RunStore(folder).read_json(FILE)):
        return found
    changes = without_none({"workers": workers, "device": device})
    cells = (replace(cell, speed=cell.speed.model_copy(update=changes)) for cell in plan.cells)
    plan = replace(plan, cells=tuple(cells))
    with claimed(folder):
        refuse_others(plan)
        return _go(plan, Share.of(plan.missing, jobs))


def _begun(plan: SweepPlan, cell: Cell) -> bool:
    return (plan.run(cell) / "run.json").is_file()


def _go(plan: SweepPlan, share: Share, notes: Sequence[Text | str] = ()) -> dict[str, Any]:
    failures: dict[str, FedSightError] = {}
    try:
        with SweepScreen(plan, share) as screen:
            for note in notes:
                screen.say(note)

            def hear(cell: Cell, news: News) -> None:
                if isinstance(news, FedSightError):
                    failures[cell.place] = news
                screen.hear(cell, news)

            side_by_side(plan, plan.missing, share, hear)
    except KeyboardInterrupt:
        total = len(plan.cells)
        raise Interrupted(
            f"stopped by Ctrl-C; {total - len(plan.missing)} of {total} runs are finished",
            f"continue with: fedsight resume {plan.folder}",
        ) from None
    store = RunStore(plan.folder)
    store.write_json(FILE, outcome(plan, failures))
    return store.read_json(FILE)


def require_all(found: Mapping[str, Any], folder: Path) -> None:
    """FedSightError if any cell of a sweep that has ended failed."""
    failed = found["failed"]
    if failed:
        places = ", ".join(one["run"] for one in failed[:3]) + (", ..." if failed[3:] else "")
        raise FedSightError(
            f"{len(failed)} of {len(found['cells'])} runs failed: {places}",
            f"each one's cause and cure are in {folder / FILE}; then continue with: fedsight "
            f"resume {folder}; finished runs stay as they are",
        )


def _check_data(cells: Sequence[Cell]) -> list[Text | str]:
    """Open the data, divide them and build the network of every cell; returns what is to be said of
    data and networks. Raises ConfigError with all problems, or the error itself if it is one and
    the same for all cells."""
    notes: dict[str, Text | str] = {}
    found = Problems(len({cell.label for cell in cells}))
    errors: list[FedSightError] = []
    opened: tuple[str, Dataset] | None = None
    # Cells with the same data are checked one after the other, so that these are opened once.
    ordered = sorted(cells, key=lambda cell: repr(cell.program.data))
    with shown():
        for number, cell in enumerate(ordered, 1):
            data = repr(cell.program.data)
            try:
                known = opened[1] if opened is not None and opened[0] == data else None
                federation = federate(cell.program, known)
                opened = (data, federation.dataset)
                Protection(federation).facts()
                said = (*federation.dataset.said, *federation.network.notes)
                notes |= {str(note): note for note in said}
            except ConfigError as error:
                found.add(cell.label, error.problems)
            except FedSightError as error:
                errors.append(error)
                where = WHERE.get(type(error), "run")
                found.add(cell.label, [Problem(where, error.cause, error.cure)])
            progress("runs checked", number, len(ordered))
    if errors and len(errors) == len(cells) and len({str(error) for error in errors}) == 1:
        raise errors[0]
    found.raise_any()
    return list(notes.values())
