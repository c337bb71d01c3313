"""What a user sees while a run goes on, when it ends, and when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fedsight.coordinator.callbacks import Callback
from fedsight.core.errors import ConfigError, FedSightError
from fedsight.report.words import word

if TYPE_CHECKING:
    from fedsight.program.federation import Federation

_UNITS = ("B", "kB", "MB", "GB", "TB")


def show_error(error: FedSightError) -> None:
    """Cause and cure, on the error stream."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    if isinstance(error, ConfigError):
        console.print(f"[bold red]Error:[/] {escape(error.cause)}")
        for problem in error.problems:
            console.print(f"  [bold]{escape(problem.where)}[/]: {escape(problem.cause)}")
            console.print(f"      [green]{escape(problem.cure)}[/]")
        return
    console.print(f"[bold red]Error:[/] {escape(error.cause)}")
    if error.cure:
        console.print(f"  [green]{escape(error.cure)}[/]")


def size(count: float) -> str:
    """Bytes for people: 1.6 MB."""
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {_UNITS[-1]}"


class Screen(Callback):
    """The progress bar; on a pipe, a line a round instead."""

    def __init__(self) -> None:
        self._console = Console(
            stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False, emoji=False
        )
        self._live = self._console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not self._live,
        )
        self._task: TaskID | None = None
        self._cohort = 1
        self._rounds = 1
        self._bytes = 0
        self._headline = ""
        self._modalities = "images"

    def begin(self, federation: Federation, done: int) -> None:
        """Training starts, with `done` rounds behind it."""
        program = federation.program
        self._cohort = program.rounds.cohort or federation.population
        self._rounds = program.rounds.rounds
        self._headline = word(program.task.headline_title)
        self._modalities = federation.dataset.preprocess.modalities
        name = program.algorithm.registered
        self.say(
            f"{program.name}: {name}, {federation.population:,} "
            f"site{'s' if federation.population > 1 else ''}, "
            f"{len(federation.dataset.train):,} training {self._modalities}, {self._rounds} rounds"
            + (f", going on after round {done}" if done else "")
        )
        self._progress.start()
        # The bar counts client steps: it moves within a round too.
        self._task = self._progress.add_task(
            "federated", total=self._rounds * self._cohort, completed=done * self._cohort, status=""
        )

    def reply(self) -> None:
        """A client of the round is done."""
        self._advance()

    def round(self, line: Mapping[str, Any]) -> None:
        """A round is done: its figures."""
        self._bytes += line["bytes_up"] + line["bytes_down"]
        status = " ".join(
            part
            for part in (
                f"round {line['round']}/{self._rounds}",
                "" if line["score"] is None else f"{self._headline} {line['score']:.3f}",
                "" if line["loss"] is None else f"loss {line['loss']:.3f}",
                size(self._bytes),
                f"{len(line['rejected'])} rejected" if line["rejected"] else "",
            )
            if part
        )
        if self._live and self._task is not None:
            # Where sites are elsewhere, nobody tells of single replies: the round counts for all.
            done = line["round"] * self._cohort
            self._progress.update(self._task, status=status, completed=done)
        else:
            self.say(status)

    def begin_baselines(self, rounds: int) -> None:
        """The baselines start."""
        self.say(f"For comparison: each site alone, and all {self._modalities} pooled")
        self._task = self._progress.add_task("alone, pooled", total=rounds, status="")

    def baseline_round(self) -> None:
        """A round of a baseline is done."""
        self._advance()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Everything is done."""
        self.close()

    def close(self) -> None:
        """Take the bar off the screen."""
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line of its own; above the bar while there is one."""
        self._console.print(escape(text))

    def _advance(self) -> None:
        if self._task is not None:
            self._progress.advance(self._task)


def show_summary(summary: Mapping[str, Any], folder: str) -> None:
    """The final figures as a table."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("federated", f"[bold]{summary['score']:.2%}[/] {word(summary['headline'])}")
    if "pooled" in summary:
        table.add_row("pooled", f"{summary['pooled']:.2%} (all data at one place)")
        table.add_row("alone", f"{summary['alone_mean']:.2%} (mean of the sites)")
    if summary["worst_site"]:
        worst = summary["worst_site"]
        table.add_row("worst site", f"{escape(worst['name'])} with {worst['score']:.2%}")
    if protected := summary.get("privacy"):
        table.add_row("privacy", escape(_spent(protected)))
    sent = f"{size(summary['bytes_up'])} sent, {size(summary['bytes_down'])} received by sites"
    table.add_row("bytes", sent)
    table.add_row("time", f"{summary['seconds']:.1f} s for {summary['rounds']} rounds")
    console = Console(highlight=False, emoji=False)
    console.print(table)
    console.print(f"Report: {escape(folder)}/report.html", soft_wrap=True)


def _spent(protected: Mapping[str, Any]) -> str:
    """What protection cost, and whether it ended the run early."""
    words = (
        f"epsilon {protected['epsilon']:.3g} at delta {protected['delta']:g} for each "
        f"{protected['unit']} ({protected['mechanism']}; {protected['sampling']})"
    )
    if protected["stopped"]:
        words += (
            f"; stopped after {protected['rounds']} of {protected['rounds_planned']} rounds: one "
            f"more would exceed epsilon {protected['target']:g}"
        )
    return words
