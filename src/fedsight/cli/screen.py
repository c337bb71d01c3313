"""What the command line shows at the end: an error, or the final figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from fedsight.cli.tables import PrintableTable
from fedsight.core.errors import ConfigError, FedSightError
from fedsight.core.text import printable_lines
from fedsight.report.words import word
from fedsight.runs.progress import size


def show_error(error: FedSightError) -> None:
    """Cause and cure, on the error stream; they may quote what another machine sent."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    console.print(f"[bold red]Error:[/] {_shown(error.cause)}")
    if isinstance(error, ConfigError):
        for problem in error.problems:
            console.print(f"  [bold]{_shown(problem.where)}[/]: {_shown(problem.cause)}")
            console.print(f"      [green]{_shown(problem.cure)}[/]")
    elif error.cure:
        console.print(f"  [green]{_shown(error.cure)}[/]")


def _shown(text: str) -> str:
    """The text without markup and without unsafe characters."""
    return escape(printable_lines(text))


def show_summary(summary: Mapping[str, Any], folder: str) -> None:
    """The final figures as a table."""
    table = PrintableTable(show_header=False, box=None, padding=(0, 2, 0, 0))
    score = summary["score"]
    figure = "no figures were released" if score is None else f"[bold]{score:.2%}[/]"
    table.add_row("federated", f"{figure} {'' if score is None else word(summary['headline'])}")
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
    console.print(f"Report: {_shown(folder)}/report.html", soft_wrap=True)


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
