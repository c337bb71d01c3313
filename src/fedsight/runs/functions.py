"""What a user calls: run, compare, check, resume, load."""

from __future__ import annotations

from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, overload

from fedsight.coordinator.folders import free_folder
from fedsight.coordinator.protection import Protection
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import (
    ConfigError,
    DataError,
    FedSightError,
    ModelError,
    Problem,
    StoreError,
)
from fedsight.core.progress import listening
from fedsight.evaluation.conclusion import Command, require_score
from fedsight.program import config as configs
from fedsight.program import keywords
from fedsight.program.federation import federate
from fedsight.program.keywords import Config
from fedsight.program.program import Program, Speed
from fedsight.runs import lifecycle, series
from fedsight.runs.extension import Extension
from fedsight.runs.progress import Screen
from fedsight.runs.result import Run, Series

# The section that an error refers to if it does not name a key.
WHERE: dict[type[FedSightError], str] = {DataError: "data", ModelError: "model"}
_UNFINISHED: dict[Path, Program] = {}  # keeps the objects of interrupted runs, so that they resume


@overload
def run(
    config: Config | None = None,
    *,
    out: str | PathLike[str] | None = None,
    workers: int | None = None,
    force: bool = False,
    seeds: None = None,
    **overrides: Any,
) -> Run: ...


@overload
def run(
    config: Config | None = None,
    *,
    out: str | PathLike[str] | None = None,
    workers: int | None = None,
    force: bool = False,
    seeds: int,
    **overrides: Any,
) -> Series: ...


def run(
    config: Config | None = None,
    *,
    out: str | PathLike[str] | None = None,
    workers: int | None = None,
    force: bool = False,
    seeds: int | None = None,
    **overrides: Any,
) -> Run | Series:
    """Train one model over all sites.

    `config` is the path of a TOML file, a mapping as such a file has it, or a `Program`. With no
    config the keywords give everything. Each keyword is a top-level key of the file: `seed=1`,
    `train={"lr": 0.1}`, `algorithm="scaffold"`, or an object of your own: `model=MyNet`,
    `data=fedsight.sites({...})`, `task=fedsight.task(loss=...)`, `algorithm=MyAlgorithm(...)`.
    `out` is the run folder (default: `runs/NAME`), `workers` the number of processes (default: one
    for each core). With `force` a run that is in the folder is replaced.

    With `seeds`, at least 2, it is repeated with so many seeds, from the program's on, each a run
    in a folder inside; the result is then a `Series` with mean and spread. Calling it again with
    the same `out` continues an interrupted series.

    Raises a FedSightError that says what is wrong and what to do. Interrupted (Ctrl-C, a
    notebook's stop button), it raises `Interrupted` and leaves a folder that `resume` can continue.
    """
    where = _Where(out, workers, force)
    if seeds is not None:
        return _begin_series("run", config, where, seeds, overrides)
    return _begin("run", config, where, overrides)


@overload
def compare(
    config: Config | None = None,
    *,
    out: str | PathLike[str] | None = None,
    workers: int | None = None,
    force: bool = False,
    seeds: None = None,
    **overrides: Any,
) -> Run: ...


@overload
def compare(
    config: Config | None = None,
    *,
    out: str | PathLike[str] | None = None,
    workers: int | None = None,
    force: bool = False,
    seeds: int,
    **overrides: Any,
) -> Series: ...


def compare(
    config: Config | None = None,
    *,
    out: str | PathLike[str] | None = None,
    workers: int | None = None,
    force: bool = False,
    seeds: int | None = None,
    **overrides: Any,
) -> Run | Series:
    """As `run`, and then train each site alone and all pooled, on the same data and budget.

    `Run.comparison` has the figures, `Run.summary` the main ones. With `seeds`, a `Series`, as
    `run` has it; its `differences` are taken within each seed.
    """
    where = _Where(out, workers, force)
    if seeds is not None:
        return _begin_series("compare", config, where, seeds, overrides)
    return _begin("compare", config, where, overrides)


def check(config: Config | None = None, **overrides: Any) -> list[Problem]:
    """Every problem of a program, each with its cure; an empty list if it can run.

    Takes what `run` takes, except `out`, `workers` and `force`. Opens the data and builds the
    network, and trains nothing.
    """
    try:
        program, speed = keywords.read(config, overrides)
        configs.check(program, speed)
        Protection(federate(program)).facts()
    except ConfigError as error:
        return list(error.problems)
    except FedSightError as error:
        return [Problem(WHERE.get(type(error), "run"), error.cause, error.cure)]
    return []


def resume(
    folder: str | PathLike[str],
    *,
    workers: int | None = None,
    device: str | None = None,
    rounds: int | None = None,
    restart: bool = False,
    **objects: Any,
) -> Run:
    """Continue an interrupted run from its last checkpoint; a finished one is only loaded.

    `workers` and `device` replace those that it was started with, for example when a GPU is gone.
    With `rounds`, more than were planned, it is trained on until it has so many; `restart` begins
    the learning rate's schedule again. The results so far are kept in a folder inside.

    A run that was started with objects from Python needs them again, unless this process started
    it: `objects` are the same keywords that `run` got. Raises StoreError if the folder holds no
    run, or if the program or the data have changed.
    """
    kept = keywords.own(objects)
    path = _path(folder, "folder")
    if series.is_series(path):
        raise StoreError(
            f"{path} is a series of seeds, not a run",
            "call run or compare again with the same `out` and `seeds`: it continues",
        )
    if workers is not None:
        _count(workers, "workers")
    _refuse_other(RunStore(path), objects)
    longer = _extension(RunStore(path), rounds, restart)
    if longer is not None or not (path / "summary.json").is_file():
        screen = Screen()
        try:
            with listening(screen.progressed):
                summary = lifecycle.resume(RunStore(path), workers, [screen], longer, device)
        finally:
            screen.close()
        require_score(summary, str(path))
    found = Run(path)
    found._kept = (kept, _UNFINISHED.pop(path.resolve(), None))
    return found


def load(folder: str | PathLike[str], **objects: Any) -> Run:
    """A finished run. `objects` are as for `resume`; only `model` and `task` matter.

    Raises StoreError if the folder holds no finished run.
    """
    kept = keywords.own(objects)
    path = _path(folder, "folder")
    found = Run(path)
    _refuse_other(RunStore(path), objects)
    found._kept = kept
    return found


def _refuse_other(store: RunStore, given: dict[str, Any]) -> None:
    """Raise StoreError for keywords that say something else than the run's own program."""
    meant = {key: value for key, value in given.items() if key not in ("plugins", "speed")}
    if not meant:
        return
    program, _ = store.program()
    other, _ = keywords.read(program, meant)
    wrong = [key for key in meant if getattr(other, key) != getattr(program, key)]
    if wrong:
        raise StoreError(
            f"{', '.join(wrong)}: not what the run in {store.folder} was begun with",
            "give what it was begun with, leave it out, or start a new run",
        )


def _extension(store: RunStore, rounds: int | None, restart: bool) -> Extension | None:
    if rounds is None or _count(rounds, "rounds") == store.program()[0].rounds.rounds:
        return None
    return Extension(rounds, restart)


def _count(given: Any, where: str) -> int:
    if type(given) is not int or given < 1:
        cause = f"expected a number of {'processes' if where == 'workers' else where} from 1, got "
        raise ConfigError([Problem(where, f"{cause}{given!r}", "leave it out, or correct it")])
    return given


def _path(given: Any, where: str) -> Path:
    if not isinstance(given, str | PathLike):
        cause = f"expected the path of a folder, got {given!r:.80}"
        raise ConfigError([Problem(where, cause, 'write for example "runs/first"')])
    return Path(given)


class _Where(NamedTuple):
    """Where a run goes, with how many processes, and whether it may replace another."""

    out: str | PathLike[str] | None
    workers: int | None
    force: bool

    def folder(self, name: str) -> Path:
        """The folder that was asked for, or a new one."""
        return free_folder(Path("runs"), name) if self.out is None else _path(self.out, "out")


def _begin(
    command: Command, config: Config | None, where: _Where, overrides: dict[str, Any]
) -> Run:
    program, speed = _read(config, overrides, where.workers)
    folder = where.folder(program.name)
    what = lifecycle.Start(program, speed, RunStore(folder), command, where.force)
    _attend(folder, lambda callbacks: lifecycle.start(what, callbacks), program)
    found = Run(folder)
    found._kept = program
    return found


def _begin_series(
    command: Command, config: Config | None, where: _Where, count: int, overrides: dict[str, Any]
) -> Series:
    program, speed = _read(config, overrides, where.workers)
    seeds = series.seeds_of(program, _count(count, "seeds"))
    folder = where.folder(f"{program.name}-seeds")
    plan = series.SeriesPlan(program, speed, seeds, folder, command)
    series.start(plan, partial(_attend, program=program), where.force)
    found = Series(folder)
    found._kept = program
    return found


def _read(
    config: Config | None, overrides: dict[str, Any], workers: int | None
) -> tuple[Program, Speed]:
    if config is None and "data" not in overrides:
        cause = "no data are given to train on"
        cure = 'give a config file, or for a first try data="fashion-mnist-12k"'
        raise ConfigError([Problem("data", cause, cure)])
    return keywords.read(config, overrides, workers)


def _attend(folder: Path, work: series.Work, program: Program) -> None:
    """Do the work of a run and show its progress."""
    screen = Screen()
    try:
        with listening(screen.progressed):
            summary = work([screen])
    except BaseException:
        if (folder / "run.toml").is_file():
            _UNFINISHED[folder.resolve()] = program
        raise
    finally:
        screen.close()
    require_score(summary, str(folder))
