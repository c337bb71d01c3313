"""A series: one program with several seeds, each a run in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsight.coordinator.callbacks import Callback
from fedsight.coordinator.folders import LOCK, claimed
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import ConfigError, Interrupted, Paused, Problem, StoreError
from fedsight.core.files import refuse_links, remove
from fedsight.evaluation.conclusion import Command
from fedsight.evaluation.shared import FILE as POOLED
from fedsight.evaluation.spread import Repeat, together
from fedsight.program import config
from fedsight.program.program import Program, Speed
from fedsight.runs import lifecycle
from fedsight.runs.progress import Screen
from fedsight.runs.result import SERIES as FILE

PROGRAM = "series.toml"  # the program with the first seed

Work = Callable[[Sequence[Callback]], Mapping[str, Any]]
Attend = Callable[[Path, Work], object]  # does the work of a run, with callbacks of its own


@dataclass(frozen=True)
class SeriesPlan:
    """What to repeat: a program with the `seeds`, by which command, and in which folder."""

    program: Program
    speed: Speed
    seeds: tuple[int, ...]
    folder: Path
    command: Command

    @classmethod
    def read(cls, folder: Path) -> SeriesPlan:
        """The series in `folder`; StoreError if there is none or its files are broken."""
        facts = RunStore(folder).read_json(FILE)
        program, speed = config.load(folder / PROGRAM)
        try:
            seeds = tuple(map(int, facts["seeds"]))
            command: Command = "compare" if facts["command"] == "compare" else "run"
            changed = facts["fingerprint"] != program.fingerprint
        except (KeyError, TypeError, ValueError) as error:
            cure = "start the series again with another --out"
            raise StoreError(f"{folder / FILE} is broken: {error!r}", cure) from error
        if changed:
            raise StoreError(
                f"{folder / PROGRAM} is not the program that this series started with",
                "restore the file, or start a new series with another --out",
            )
        return cls(program, speed, seeds, folder, command)

    @property
    def folders(self) -> list[Path]:
        """The run folders, in the order of the seeds."""
        return [self.folder / f"seed-{seed}" for seed in self.seeds]

    @property
    def missing(self) -> list[int]:
        """The seeds that are not finished."""
        pairs = zip(self.seeds, self.folders, strict=True)
        return [seed for seed, folder in pairs if not (folder / "summary.json").is_file()]


def seeds_of(program: Program, count: int) -> tuple[int, ...]:
    """`count` seeds, from the program's on.

    Raises ConfigError for fewer than two, and for a program in which nothing follows its seed.
    """
    if count < 2:
        cause = f"{count} seed{'' if count == 1 else 's'} cannot show a spread"
        raise ConfigError([Problem("--seeds", cause, "give at least 2, better 5 or more")])
    require_seeded(program)
    return tuple(range(program.seed, program.seed + count))


def require_seeded(program: Program) -> None:
    """ConfigError for a program in which nothing follows its seed."""
    if not program.follows_seed:
        cause = "split, model and training would be the same with every seed"
        cure = "leave one of split.seed, model.seed and train.seed out, so that it follows seed"
        raise ConfigError([Problem("--seeds", cause, cure)])


def start(series: SeriesPlan, attend: Attend, force: bool = False) -> dict[str, Any]:
    """Run the seeds one after the other; returns what `series.json` then says.

    If an unfinished series of the same program is in the folder, it is continued: finished seeds
    stay, and there may be more seeds than before. Raises StoreError if anything else is there;
    with `force` a series is replaced.
    """
    with claimed(series.folder):
        _require_place(series, force)
        config.check(series.program, series.speed)
        if force and (series.folder / FILE).is_file():
            _clear(SeriesPlan.read(series.folder))
        store = RunStore(series.folder)
        store.write_program(series.program, series.speed, PROGRAM)
        store.write_json(FILE, _facts(series))
        try:
            return _repeat(series, attend)
        except Interrupted:
            raise
        except BaseException:
            # Nothing has been trained, for example because the data cannot be opened.
            if not any((run / "run.json").is_file() for run in series.folders):
                _clear(series)
            raise


def resume(
    folder: Path, workers: int | None, attend: Attend, device: str | None = None
) -> dict[str, Any]:
    """Continue the series in `folder`; a finished one is only read. Returns `series.json`."""
    series = SeriesPlan.read(folder)
    if not series.missing and "figures" in (found := RunStore(folder).read_json(FILE)):
        return found
    changes = {"workers": workers, "device": device}
    changes = {name: value for name, value in changes.items() if value is not None}
    series = replace(series, speed=series.speed.model_copy(update=changes))
    with claimed(folder):
        return _repeat(series, attend)


def is_series(folder: Path) -> bool:
    """Whether a series was started in `folder`."""
    return (folder / FILE).is_file()


def _repeat(series: SeriesPlan, attend: Attend) -> dict[str, Any]:
    store, total, say = RunStore(series.folder), len(series.seeds), Screen().say
    for number, (seed, folder) in enumerate(zip(series.seeds, series.folders, strict=True), 1):
        program = replace(series.program, seed=seed)
        refuse_links(series.folder, folder.name)
        refuse_other(folder, program, series.command)
        if (folder / "summary.json").is_file():
            say(f"seed {seed} ({number} of {total}): finished before")
        else:
            say(f"seed {seed} ({number} of {total})")
            try:
                attend(folder, _work(series, program, folder))
            except (Interrupted, KeyboardInterrupt) as end:
                done = total - len(series.missing)
                cure = f"continue with: fedsight resume {series.folder}"
                if isinstance(end, Paused):
                    raise Paused(
                        f"paused, as asked; {done} of {total} seeds are finished", cure
                    ) from None
                raise Interrupted(f"stopped; {done} of {total} seeds are finished", cure) from None
        refuse_changed(series.folders[0], folder)
    found = _facts(series) | together(_repeats(series), _once(series))
    store.write_json(FILE, found)
    return store.read_json(FILE)


def _work(series: SeriesPlan, program: Program, folder: Path) -> Work:
    store = RunStore(folder, series.folder)
    if (folder / "run.json").is_file():
        speed = series.speed
        return lambda callbacks: lifecycle.resume(
            store, speed.workers, callbacks, device=speed.device
        )
    what = lifecycle.Start(program, series.speed, store, series.command)
    return lambda callbacks: lifecycle.start(what, callbacks)


def _facts(series: SeriesPlan) -> dict[str, Any]:
    return {
        "command": series.command,
        "name": series.program.name,
        "headline": series.program.task.headline_title,
        "fingerprint": series.program.fingerprint,
        "seeds": list(series.seeds),
        "runs": [folder.name for folder in series.folders],
    }


def _repeats(series: SeriesPlan) -> list[Repeat]:
    found = []
    for folder in series.folders:
        store = RunStore(folder)
        compared = store.read_json("comparison.json") if series.command == "compare" else None
        found.append(Repeat(store.read_json("run.json"), store.read_json("summary.json"), compared))
    return found


def _once(series: SeriesPlan) -> list[str]:
    """The arms that were trained for one seed and serve all."""
    if series.command != "compare":
        return []
    arms = [RunStore(folder).read_json("comparison.json")["pooled"] for folder in series.folders]
    return ["pooled"] if sum(bool(arm.get("shared")) for arm in arms) == len(arms) - 1 else []


def _require_place(series: SeriesPlan, force: bool) -> None:
    """StoreError unless the series may be started or continued in its folder."""
    folder = series.folder
    if not is_series(folder):
        if {path.name for path in folder.iterdir()} - {LOCK, PROGRAM}:
            raise StoreError(f"{folder} is not empty and not a series", "choose another --out")
        return
    if force:
        return
    before = SeriesPlan.read(folder)
    if (before.program.fingerprint, before.command) != (series.program.fingerprint, series.command):
        raise StoreError(
            f"{folder} holds a series of another program or command",
            "choose another --out, or replace it with --force",
        )
    if len(series.seeds) < len(before.seeds):
        raise StoreError(
            f"{folder} holds a series of {len(before.seeds)} seeds",
            "give as many or more, choose another --out, or replace it with --force",
        )
    if not series.missing:
        raise StoreError(
            f"{folder} holds a series that is finished",
            "give more seeds to continue it, choose another --out, or replace it with --force",
        )


def _clear(series: SeriesPlan) -> None:
    """Remove the runs and files of a series, and nothing else that is in its folder."""
    for run in series.folders:
        if run.is_symlink() or (run / "run.toml").is_file():
            remove(run)
    for name in (POOLED, PROGRAM, FILE, "report.html"):
        (series.folder / name).unlink(missing_ok=True)


def refuse_other(folder: Path, program: Program, command: Command) -> None:
    """StoreError for a run in `folder` that is not of the program that belongs there."""
    if not (folder / "run.json").is_file():
        return
    facts = RunStore(folder).read_json("run.json")
    if (facts.get("fingerprint"), facts.get("command")) != (program.fingerprint, command):
        raise StoreError(
            f"the run in {folder} is not of the program that belongs there",
            "move it elsewhere, then give the command again: the one that is missing is trained",
        )


def _contents(run: Path) -> Any:
    """What a run's images and labels were, by their hashes; StoreError if it does not say so."""
    facts = RunStore(run).read_json("run.json").get("data")
    if not isinstance(facts, dict) or "contents" not in facts:
        raise StoreError(
            f"{run / 'run.json'} does not say what its images and labels were",
            "remove that run's folder, and start again: the run begins anew",
        )
    return facts["contents"]


def refuse_changed(first: Path, folder: Path) -> None:
    """StoreError if two runs have not seen the same images."""
    one, other = (_contents(run) for run in (first, folder))
    if one != other:
        raise StoreError(
            f"the images or labels of {folder} are not those of {first}: the data have changed",
            "restore them and remove that run's folder, or start a new series with another --out",
        )
