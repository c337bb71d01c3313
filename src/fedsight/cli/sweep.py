"""`fedsight sweep`: a grid of settings and seeds, several runs side by side, and then a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fedsight.cli.fetch import fetch_needed
from fedsight.cli.machines import alone
from fedsight.cli.output import echo
from fedsight.cli.plugin_files import PluginFiles
from fedsight.cli.tables import PrintableTable, print_line, show
from fedsight.cli.train import ConfigFile, ExampleOption, read_program
from fedsight.language.english import from_english
from fedsight.language.message import Text, message
from fedsight.report.words import NOTHING, duration, word

if TYPE_CHECKING:
    from fedsight.program.grid import Configuration
    from fedsight.program.program import Program, Speed

Lists = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=V1,V2,...",
        help="Values of a setting, e.g. train.lr=0.1,0.05; repeatable. Commas inside brackets, "
        "braces and quotes do not separate values: size=[32,48],[64,96] are two lists.",
    ),
]
SeedList = Annotated[
    str | None,
    typer.Option(
        "--seeds",
        metavar="SEEDS",
        help="Seeds such as 0-4 or 0,3,7, or a number of seeds from the program's on "
        "(default: the program's seed).",
        show_default=False,
    ),
]
SweepFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="The sweep's folder (default: runs/NAME-sweep).", show_default=False
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        help="Runs at once (default: as many as keep all cores busy).",
        show_default=False,
    ),
]
RunWorkers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Worker processes of each run (default: its share of the cores).",
        show_default=False,
    ),
]
ForceSweep = Annotated[bool, typer.Option("--force", help="Replace the sweep in the folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print sweep.json in place of the table.")]


def sweep_command(
    config: ConfigFile = None,
    example: ExampleOption = None,
    sets: Lists = None,
    seeds: SeedList = None,
    out: SweepFolder = None,
    jobs: Jobs = None,
    workers: RunWorkers = None,
    plugin: PluginFiles = None,
    force: ForceSweep = False,
    as_json: AsJson = False,
) -> None:
    """Run every combination of settings and seeds, several side by side, and compare them.

    The same command with the same --out finishes what is missing.

    Example: fedsight sweep my.toml --set algorithm.name=fedavg,scaffold --seeds 0-4 --out runs/two
    """
    from fedsight.coordinator.folders import free_folder
    from fedsight.program.grid import grid_of
    from fedsight.runs.sweeps.plan import SweepPlan, cells_of
    from fedsight.runs.sweeps.sweep import start

    alone("sweep")
    more = [] if workers is None else [f"speed.workers={workers}"]

    def read(one: Configuration) -> tuple[Program, Speed]:
        changes = [f"{key}={value.text}" for key, value in one.chosen.items()]
        program, speed = read_program(config, example, [*changes, *more], plugin)
        if example is not None:
            fetch_needed(program.needs())
        return program, speed

    axes, named = grid_of(sets or [], seeds)
    name, cells = cells_of(axes, named, read)
    folder = out or free_folder(Path("runs"), f"{name}-sweep")
    plan = SweepPlan(name, tuple(cells), folder)
    show_sweep(folder, start(plan, jobs, force), as_json)


def resume_sweep(folder: Path, workers: int | None, device: str | None) -> None:
    """Continue the sweep in `folder`, and show it."""
    from fedsight.runs.sweeps.sweep import resume

    show_sweep(folder, resume(folder, None, workers, device), False)


def show_sweep(folder: Path, found: Mapping[str, Any], as_json: bool) -> None:
    """Write the report and print the table, or `sweep.json`; raises an error if a run failed."""
    from fedsight.report.page import build
    from fedsight.runs.sweeps.plan import FILE, REPORT
    from fedsight.runs.sweeps.sweep import require_all

    runs = [folder / cell["run"] for cell in found["cells"]]
    finished = [run for run in runs if (run / "summary.json").is_file()]
    page = build(finished, folder / REPORT) if finished else None
    if as_json:
        echo(json.dumps(found, indent=1))
    else:
        _show_tables(found)
        print_line(message("Figures: {path}", path=f"{folder}/{FILE}"))
        if page is not None:
            print_line(message("Report: {page}", page=page))
        _show_failed(found)
    require_all(found, folder)


def _show_tables(found: Mapping[str, Any]) -> None:
    """The configurations, those with the highest mean first, and how far they are behind it."""
    ranked = sorted(found["configurations"], key=_rank)
    headlines = [word(one["headline"]) for one in ranked if one["headline"]]
    for headline in dict.fromkeys(headlines):
        print_line(message("Figure: {headline}", headline=from_english(headline)))
    table = _table(
        message("configuration"), message("seeds"), message("mean"), message("std. dev."),
        message("95 % interval"), message("traffic"), message("time"),
    )  # fmt: skip
    for one in ranked:
        table.add_row(escape(one["label"] or found["name"]), *_figure(one), *_cost(one))
    show(table)
    behind = [(one, _behind(found, one["label"])) for one in ranked]
    if not any(cells for _, cells in behind):
        return
    table = _table(
        message("minus {best}", best=found["best"]),
        message("mean"), message("95 % interval"), message("p, adjusted"),
    )  # fmt: skip
    for one, cells in behind:
        if cells is not None:
            table.add_row(escape(one["label"]), *cells)
    show(table)
    print_line(message("Differences are in percentage points, taken within each seed."))
    if all(one["p"] is None for one in found["differences"]):
        return
    if len(found["differences"]) == 1:
        print_line(message("p is that of the paired t test."))
        return
    print_line(
        message(
            "p is that of the paired t test, adjusted for {n} pairs of configurations (Holm).",
            n=sum(one["p"] is not None for one in found["differences"]),
        )
    )


def _table(title: Text, *columns: Text) -> PrintableTable:
    """Figures to the right of names; only the names are broken into lines."""
    table = PrintableTable(box=None, padding=(0, 2, 0, 0))
    table.add_column(escape(str(title)), overflow="fold")
    for column in columns:
        table.add_column(str(column), justify="right", no_wrap=True)
    return table


def _rank(one: Mapping[str, Any]) -> float:
    return math.inf if one["figure"] is None else -one["figure"]["mean"]


def _figure(one: Mapping[str, Any]) -> tuple[str, ...]:
    """Seeds, mean, standard deviation and interval of a configuration's figure."""
    figure = one["figure"]
    if figure is None:
        return "0", NOTHING, NOTHING, NOTHING
    mean, count = f"{figure['mean']:.2%}", str(len(one["seeds"]))
    if figure["low"] is None:
        return count, mean, NOTHING, NOTHING
    return count, mean, f"{figure['deviation'] * 100:.2f}", _between(figure, "", "%")


def _behind(found: Mapping[str, Any], label: str) -> tuple[str, str, str] | None:
    """The difference to the best configuration, its interval and its p value; None for itself."""
    for one in found["differences"]:
        if {one["first"], one["second"]} != {label, found["best"]}:
            continue
        mean, low, high = one["mean"], one["low"], one["high"]
        if one["second"] == label:
            mean, low, high = -mean, None if high is None else -high, None if low is None else -low
        shown = f"{100 * mean:+.2f}"
        if low is None:
            return shown, NOTHING, NOTHING
        return shown, _between({"low": low, "high": high}, "+", ""), f"{one['p_adjusted']:.2g}"
    return None


def _between(figure: Mapping[str, Any], sign: str, unit: str) -> str:
    low, high = (f"{figure[end] * 100:{sign}.2f}{unit}" for end in ("low", "high"))
    return str(message("{low} to {high}", low=low, high=high))


def _cost(one: Mapping[str, Any]) -> tuple[str, Text | str]:
    """The mean traffic and the mean time of a run."""
    from fedsight.runs.progress import size

    if one["seconds"] is None:
        return NOTHING, NOTHING
    return size(one["bytes_up"] + one["bytes_down"]), str(duration(one["seconds"]))


def _show_failed(found: Mapping[str, Any]) -> None:
    for one in found["failed"]:
        cause = from_english(one["cause"])
        print_line(message("{run} failed: {cause}", run=one["run"], cause=cause))
        if one["cure"]:
            print_line(f"  {from_english(one['cure'])}")
