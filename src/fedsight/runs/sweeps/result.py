"""A sweep in Python: the function that runs one, and what it has found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from fedsight.coordinator.folders import free_folder
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import ConfigError, Problem, StoreError
from fedsight.program import keywords
from fedsight.program.grid import Axis, Configuration, Value, seeds_in, values_of
from fedsight.program.keywords import Config
from fedsight.program.program import Program, Speed
from fedsight.runs.result import Run
from fedsight.runs.sweeps.plan import FILE, REPORT, SweepPlan, cells_of
from fedsight.runs.sweeps.sweep import start

Seeds = int | str | Iterable[int]


class Sweep:
    """A sweep that has ended: its runs, and what they show."""

    def __init__(self, folder: str | PathLike[str]) -> None:
        """Raises StoreError if `folder` holds no sweep, or one that has not ended."""
        self._folder = Path(folder)
        self._kept: object = None
        self._facts = RunStore(self._folder).read_json(FILE)
        if "differences" not in self._facts:
            raise StoreError(
                f"the sweep in {folder} is not finished", f"finish it: fedsight resume {folder}"
            )

    def __repr__(self) -> str:
        configurations, runs = len(self.configurations), len(self._facts["cells"])
        best = "" if self.best is None else f", best {self.best!r}"
        return (
            f"<Sweep {self._facts['name']!r}: {configurations} configurations, "
            f"{self._facts['finished']} of {runs} runs{best}, {self._folder}>"
        )

    @property
    def folder(self) -> Path:
        """The folder that holds the runs and `sweep.json`."""
        return self._folder

    @property
    def configurations(self) -> Sequence[Mapping[str, Any]]:
        """In the order of the grid: `label`, `settings`, `seeds`, `figure` (`mean`, standard
        `deviation`, `low` and `high`, the 95 % interval of the mean, and `values` by seed), and the
        means of `bytes_up`, `bytes_down` and `seconds`."""
        found: Sequence[Mapping[str, Any]] = self._facts["configurations"]
        return found

    @property
    def differences(self) -> Sequence[Mapping[str, Any]]:
        """For each two configurations the mean of `first` minus `second` within each seed, with
        `deviation`, `low`, `high`, the p value `p` of the paired t test, and `p_adjusted` for the
        number of pairs (Holm)."""
        found: Sequence[Mapping[str, Any]] = self._facts["differences"]
        return found

    @property
    def best(self) -> str | None:
        """The label of the configuration with the highest mean."""
        found: str | None = self._facts["best"]
        return found

    @property
    def failed(self) -> Sequence[Mapping[str, str]]:
        """The runs that failed: `run`, its folder, with `cause` and `cure`."""
        found: Sequence[Mapping[str, str]] = self._facts["failed"]
        return found

    @cached_property
    def runs(self) -> dict[tuple[str, int], Run]:
        """The finished runs, by the label of the configuration and the seed."""
        found = {}
        for cell in self._facts["cells"]:
            folder = self._folder / cell["run"]
            if (folder / "summary.json").is_file():
                run = found[cell["configuration"], cell["seed"]] = Run(folder)
                run._kept = self._kept
        return found

    def report(self) -> Path:
        """Write the report of all finished runs side by side, one HTML page; returns its path."""
        from fedsight.report.page import build

        return build([run.folder for run in self.runs.values()], self._folder / REPORT)


def sweep(
    config: Config | None = None,
    grid: Mapping[str, Iterable[Any]] | None = None,
    *,
    seeds: Seeds | None = None,
    out: str | PathLike[str] | None = None,
    jobs: int | None = None,
    **overrides: Any,
) -> Sweep:
    """Run every combination of the values in `grid` with every seed, several runs side by side.

    `config` and the keywords are as for `run`. `grid` gives the values of settings by their dotted
    keys, `{"train.lr": [0.1, 0.05]}`, or of whole sections, `{"algorithm": ["fedavg", {"name":
    "fedprox", "mu": 0.1}]}`, which may be parts and objects as in `run`. `seeds` are the seeds, or
    a number of seeds from the program's on. `jobs` runs go on at once (default: as many as keep all
    cores busy).

    All runs are checked before the first one begins. Calling it again with the same `out` finishes
    what is missing. A run that fails does not stop the others; it is in `failed`. Raises
    ConfigError with the problems of all runs, and Interrupted by Ctrl-C.
    """
    axes = [Axis(str(key), _values(key, values)) for key, values in (grid or {}).items()]
    named = seeds_in(seeds) if isinstance(seeds, str) else seeds
    kept: list[Program] = []

    def read(one: Configuration) -> tuple[Program, Speed]:
        changes = {key: value.value for key, value in one.chosen.items()}
        program, speed = keywords.read(config, overrides, changes=changes)
        kept.append(program)  # objects of the user are known while their program is
        return program, speed

    name, cells = cells_of(axes, named, read)
    folder = free_folder(Path("runs"), f"{name}-sweep") if out is None else Path(out)
    start(SweepPlan(name, tuple(cells), folder), jobs)
    found = Sweep(folder)
    found._kept = kept
    return found


def _values(key: str, values: Any) -> tuple[Value, ...]:
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        cause = f"expected a list of values, got {values!r:.80}"
        raise ConfigError([Problem(key, cause, f'write grid={{"{key}": [A, B]}}')])
    return values_of(values)
