"""`--seeds`: a program repeated with several seeds, and its mean and spread on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.markup import escape

from fedsight.cli.attend import LogFormat, attended
from fedsight.cli.tables import PrintableTable, print_line, show
from fedsight.language.english import from_english
from fedsight.language.message import Text, message
from fedsight.report.words import word

if TYPE_CHECKING:
    from fedsight.cli.train import Target
    from fedsight.coordinator.callbacks import Callback
    from fedsight.evaluation.conclusion import Command
    from fedsight.program.program import Program, Speed
    from fedsight.runs.series import Attend, Work

_ROWS = {
    "federated": message("federated"),
    "alone": message("alone (mean of the sites)"),
    "pooled": message("pooled"),
    "federated_minus_alone": message("federated - alone"),
    "federated_minus_pooled": message("federated - pooled"),
    "own_federated": message("each site's figure: federated"),
    "own_alone": message("each site's figure: alone"),
    "own_federated_minus_alone": message("each site's: federated - alone"),
}


class Repeats(NamedTuple):
    """What is repeated, and how often."""

    command: Command
    program: Program
    speed: Speed
    seeds: int


def begin_series(what: Repeats, target: Target, log: list[LogFormat] | None) -> None:
    """Run a series in the target, or in a new folder below `runs`, and show it."""
    from fedsight.coordinator.folders import free_folder
    from fedsight.runs.series import SeriesPlan, seeds_of, start

    seeds = seeds_of(what.program, what.seeds)
    folder = target.out or free_folder(Path("runs"), f"{what.program.name}-seeds")
    plan = SeriesPlan(what.program, what.speed, seeds, folder, what.command)
    _show(folder, start(plan, _attend(log), target.force))


def resume_series(
    folder: Path, workers: int | None, log: list[LogFormat] | None, device: str | None
) -> None:
    """Continue the series in `folder`, and show it."""
    from fedsight.runs.series import resume

    _show(folder, resume(folder, workers, _attend(log), device))


def _attend(log: list[LogFormat] | None) -> Attend:
    def attend(folder: Path, work: Work) -> None:
        from fedsight.evaluation.conclusion import require_score

        def go(reporters: Sequence[Callback], say: Any) -> Mapping[str, Any]:
            return work(reporters)

        require_score(attended(folder, log, go), str(folder))

    return attend


def _show(folder: Path, found: Mapping[str, Any]) -> None:
    from fedsight.report.page import build

    page = build([folder / run for run in found["runs"]], folder / "report.html")
    seeds = found["seeds"]
    print_line(
        message(
            "{n} seeds ({first} to {last}), {figure}",
            n=len(seeds),
            first=seeds[0],
            last=seeds[-1],
            figure=from_english(word(found["headline"])),
        )
    )
    table, figures = _table(""), {**found["figures"], **found["differences"]}
    for name, title in _ROWS.items():
        if name in figures:
            table.add_row(title, *_cells(figures[name], difference="minus" in name))
    show(table)
    if found["sites"] is not None and found["command"] == "compare":
        _show_sites(found["sites"])
    if found["differences"]:
        print_line(message("Differences are in percentage points, taken within each seed."))
    print_line(message("Figures: {path}", path=f"{folder}/series.json"))
    print_line(message("Report: {page}", page=page))


def _show_sites(sites: Mapping[str, Any]) -> None:
    """Each site's gain; only series in which the sites have the same images have them."""
    table = _table(message("federated - alone at"))
    for site, figures in sites.items():
        if "federated_minus_alone" in figures:
            table.add_row(escape(site), *_cells(figures["federated_minus_alone"], difference=True))
    if table.row_count:
        show(table)


def _table(title: Text | str) -> PrintableTable:
    table = PrintableTable(box=None, padding=(0, 2, 0, 0))
    table.add_column(str(title))
    for column in (message("mean"), message("std. dev."), message("95 % interval")):
        table.add_column(str(column), justify="right")
    return table


def _cells(figure: Mapping[str, Any], difference: bool) -> tuple[str, Text | str, Text | str]:
    """A share in percent; a difference between two in percentage points."""

    def shown(share: float, sign: str = "+" if difference else "") -> str:
        return f"{share * 100:{sign}.2f}{'' if difference else '%'}"

    if figure["deviation"] is None:
        return shown(figure["mean"]), message("trained once"), ""
    low, high = shown(figure["low"]), shown(figure["high"])
    interval = message("{low} to {high}", low=low, high=high)
    return shown(figure["mean"]), shown(figure["deviation"], ""), interval
