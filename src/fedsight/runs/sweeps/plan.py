"""The plan of a sweep: one cell for each configuration and seed, and the folder that holds them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsight.coordinator.folders import LOCK
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import ConfigError, Problem, StoreError
from fedsight.core.files import link_on_the_way, refuse_links, remove
from fedsight.core.settings import without_none
from fedsight.program import config
from fedsight.program.grid import Axis, Configuration, configurations, distinct, refuse_many
from fedsight.program.program import Program, Speed
from fedsight.runs.series import refuse_other, require_seeded, seeds_of

FILE = "sweep.json"  # the cells; once the sweep is finished, its figures
REPORT = "report.html"
SHOWN = 3  # configurations that a problem names
# What changes the rounding of a run, so that cells with other values cannot be compared.
ROUNDING = ("threads", "precision", "together")

Read = Callable[[Configuration], tuple[Program, Speed]]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep; `place` is its folder within that of the sweep."""

    label: str  # of its configuration
    settings: Mapping[str, str]  # what the configuration varies
    place: str
    program: Program
    speed: Speed

    @property
    def seed(self) -> int:
        """The seed."""
        return self.program.seed

    def plain(self) -> dict[str, Any]:
        """What `sweep.json` says of the cell before it is run."""
        return {
            "run": self.place,
            "configuration": self.label,
            "seed": self.seed,
            "fingerprint": self.program.fingerprint,
        }


@dataclass(frozen=True)
class SweepPlan:
    """The cells of a sweep, configuration by configuration, and its folder."""

    name: str
    cells: tuple[Cell, ...]
    folder: Path

    def run(self, cell: Cell) -> Path:
        """The cell's run folder."""
        return self.folder / cell.place

    def finished(self, cell: Cell) -> bool:
        """Whether the cell's run is complete."""
        return (self.run(cell) / "summary.json").is_file()

    @property
    def missing(self) -> list[Cell]:
        """The cells whose runs are not complete."""
        return [cell for cell in self.cells if not self.finished(cell)]

    @property
    def by_configuration(self) -> dict[str, list[Cell]]:
        """The cells of each configuration, by its label."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(cell.label, []).append(cell)
        return found

    def plain(self) -> dict[str, Any]:
        """What `sweep.json` says before anything is run; a program is that of its first seed."""
        firsts = [cells[0] for cells in self.by_configuration.values()]
        return {
            "name": self.name,
            "configurations": [
                {
                    "label": cell.label,
                    "settings": dict(cell.settings),
                    "program": without_none(table_of(cell.program, cell.speed)),
                }
                for cell in firsts
            ],
            "cells": [cell.plain() for cell in self.cells],
        }

    @classmethod
    def read(cls, folder: Path) -> SweepPlan:
        """The sweep in `folder`; StoreError if there is none or its files are broken."""
        facts = RunStore(folder).read_json(FILE)
        try:
            programs = {
                one["label"]: (
                    dict(one["settings"]),
                    *config.parse(without_none(one["program"]), folder),
                )
                for one in facts["configurations"]
            }
            cells = tuple(_cell(entry, programs) for entry in facts["cells"])
            return cls(str(facts["name"]), cells, folder)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            cure = "start the sweep again with another --out"
            raise StoreError(f"{folder / FILE} is broken: {error!r}", cure) from error


def _cell(
    entry: Mapping[str, Any], programs: Mapping[str, tuple[Mapping[str, str], Program, Speed]]
) -> Cell:
    """A cell of `sweep.json`; ValueError if its program or its place has been changed."""
    settings, program, speed = programs[entry["configuration"]]
    parts = Path(entry["run"]).parts
    if Path(entry["run"]).is_absolute() or ".." in parts or not parts:
        raise ValueError(f"the run {entry['run']} is not in the sweep's folder")
    program = replace(program, seed=entry["seed"])
    if program.fingerprint != entry["fingerprint"]:
        raise ValueError(f"the program of {entry['run']} is not the one that was started")
    return Cell(entry["configuration"], settings, entry["run"], program, speed)


def cells_of(
    axes: Sequence[Axis], seeds: int | Iterable[int] | None, read: Read
) -> tuple[str, list[Cell]]:
    """The name of the program, and a cell for each combination of the axes' values and each seed.

    `read` gives the program of a configuration; `seeds` are a number of seeds from the program's
    on, the seeds, or None: the program's own. Raises ConfigError with every problem that can be
    found without reading data.
    """
    grid = configurations(axes)
    found, programs = Problems(len(grid)), []
    for one in grid:
        try:
            programs.append((one, *read(one)))
        except ConfigError as error:
            found.add(one.label, error.problems)
    if not programs:
        found.raise_any()
    first = programs[0][1]
    given: tuple[int, ...] | None = None
    try:
        if isinstance(seeds, int):
            refuse_many(len(grid) * seeds)  # before they are written out
        given = _seeds(first, seeds, axes)
        _refuse_size(len(grid) * len(given or (0,)))
    except ConfigError as error:
        found.add("", error.problems)
    cells = []
    for one, program, speed in programs:
        try:
            if given is not None and len(given) > 1:
                require_seeded(program)
        except ConfigError as error:
            found.add(one.label, error.problems)
        cells += list(_cells(one, program, speed, given or (program.seed,)))
    _check(cells, found)
    return first.name, cells


def _seeds(
    program: Program, seeds: int | Iterable[int] | None, axes: Sequence[Axis]
) -> tuple[int, ...] | None:
    """The seeds; None: each program's own."""
    if seeds is None:
        return None
    if any(axis.key == "seed" for axis in axes):
        cause = "the seed is given twice, as a setting and by --seeds"
        raise ConfigError([Problem("seed", cause, "leave one of the two out")])
    return seeds_of(program, seeds) if isinstance(seeds, int) else distinct(seeds)


def _refuse_size(runs: int) -> None:
    """ConfigError for a sweep of a single run, and for one of too many."""
    refuse_many(runs)
    if runs == 1:
        cause = "there is nothing to compare: one configuration and one seed are a single run"
        cure = "give several values (--set train.lr=0.1,0.05) or seeds (--seeds 0-4), or use run"
        raise ConfigError([Problem("grid", cause, cure)])


def _cells(
    one: Configuration, program: Program, speed: Speed, seeds: Sequence[int]
) -> Iterator[Cell]:
    name = one.label.replace("/", "_").replace("\0", "_")
    name = name if name.strip(". ") else program.name
    for seed in seeds:
        place = str(Path(one.folder) / f"seed-{seed}")
        run = replace(program, seed=seed, name=name)
        yield Cell(one.label, one.settings, place, run, speed)


def _check(cells: Sequence[Cell], found: Problems) -> None:
    """Raise ConfigError with what is wrong with any cell, and for cells that are the same run."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        try:
            config.check(cell.program, cell.speed)
        except ConfigError as error:
            found.add(cell.label, error.problems)
        meant = {**table_of(cell.program, cell.speed), "name": ""}
        same = seen.setdefault(json.dumps(meant, sort_keys=True, default=str), cell)
        if same is not cell:
            cause = f"'{same.label}' and '{cell.label}' are the same program"
            where = ", ".join(cell.settings)
            found.add("", [Problem(where, cause, "leave one of them out")])
    found.raise_any()


def table_of(program: Program, speed: Speed) -> dict[str, Any]:
    """The program and its speed as plain values."""
    return {**program.table(), "speed": speed.table()}


@dataclass
class Problems:
    """The problems of several configurations; one that many have is told once."""

    total: int
    _found: dict[Problem, list[str]] = field(default_factory=dict)

    def add(self, label: str, problems: Iterable[Problem]) -> None:
        """A configuration has these problems; without a label, the whole grid has."""
        for problem in problems:
            labels = self._found.setdefault(problem, [])
            if label and label not in labels:
                labels.append(label)

    def raise_any(self) -> None:
        """Raise ConfigError with all problems, if there are any."""
        if self._found:
            raise ConfigError([self._told(*found) for found in self._found.items()])

    def _told(self, problem: Problem, labels: Sequence[str]) -> Problem:
        if not labels or len(labels) == self.total:
            return problem
        names = "; ".join(labels[:SHOWN]) + ("; ..." if len(labels) > SHOWN else "")
        cause = (
            f"{problem.cause} (in {len(labels)} of {self.total} configurations of the grid: "
            f"{names})"
        )
        return Problem(problem.where, cause, problem.cure)


def require_place(plan: SweepPlan, force: bool) -> None:
    """StoreError unless the sweep may be started or continued in its folder.

    One that is there is continued by the same sweep, or by one that has more cells besides.
    """
    folder = plan.folder
    if not is_sweep(folder):
        if {path.name for path in folder.iterdir()} - {LOCK}:
            raise StoreError(f"{folder} is not empty and not a sweep", "choose another --out")
        return
    if force:
        return
    now = {cell.place: cell for cell in plan.cells}
    for before in SweepPlan.read(folder).cells:
        if (cell := now.get(before.place)) is None:
            raise StoreError(
                f"{folder} holds a sweep with the run '{before.place}', which this one lacks",
                "give the settings and seeds of that sweep, or more of them; choose another --out, "
                "or replace it with --force",
            )
        if changed := _changes(before, cell):
            raise StoreError(
                f"{folder} holds a sweep of another program: {changed}",
                "set it as before, choose another --out, or replace the sweep with --force",
            )


def refuse_others(plan: SweepPlan) -> None:
    """StoreError for a run in a cell's folder that is not the cell's, for example an extended one,
    and for a link on the way there."""
    refuse_links(plan.folder, *(cell.place for cell in plan.cells))
    for cell in plan.cells:
        refuse_other(plan.run(cell), cell.program, "run")


def _changes(before: Cell, now: Cell) -> str:
    """The first setting in which two cells differ in more than speed; empty if they do not."""
    was, new = (_meant(cell) for cell in (before, now))
    for key in sorted({*was, *new}):
        if was.get(key) != new.get(key):
            return f"{key} was {was.get(key, 'not set')} and is now {new.get(key, 'not set')}"
    return "" if before.program.fingerprint == now.program.fingerprint else "it has changed"


def _meant(cell: Cell) -> dict[str, str]:
    """What decides the cell's result, as dotted keys with their values as text."""
    speed = {key: value for key, value in cell.speed.table().items() if key in ROUNDING}
    return dict(_flat({**cell.program.table(), "name": "", "speed": speed}, ""))


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:  # as in a file, where it is left out
            yield prefix + key, json.dumps(value, default=str)


def is_sweep(folder: Path) -> bool:
    """Whether a sweep was started in `folder`."""
    return (folder / FILE).is_file()


def clear(plan: SweepPlan) -> None:
    """Remove the runs and files of a sweep, and nothing else that is in its folder.

    Of a link, the link alone: in a folder from somebody else, it may lead to a run of the user's.
    """
    for cell in plan.cells:
        run = plan.run(cell)
        if link := link_on_the_way(plan.folder, cell.place):
            remove(link)
            continue
        if (run / "run.toml").is_file():
            shutil.rmtree(run)
        if run.parent != plan.folder and run.parent.is_dir() and not any(run.parent.iterdir()):
            run.parent.rmdir()
    for name in (FILE, REPORT):
        (plan.folder / name).unlink(missing_ok=True)
