"""What the command line shows at the end: an error, or the final figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from fedsight.cli.tables import PrintableTable
from fedsight.core.errors import ConfigError, FedSightError
from fedsight.core.text import printable_lines
from fedsight.language.english import from_english
from fedsight.language.message import Text, message, plural
from fedsight.report.words import estimate, word
from fedsight.runs.progress import size


def show_error(error: FedSightError) -> None:
    """Cause and cure, on the error stream; they may quote what another machine sent."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    console.print(f"[bold red]{message('Error: ')}[/]{_shown(error.cause)}")
    if isinstance(error, ConfigError):
        for problem in error.problems:
            console.print(f"  [bold]{_plain(problem.where)}[/]: {_shown(problem.cause)}")
            console.print(f"      [green]{_shown(problem.cure)}[/]")
    elif error.cure:
        console.print(f"  [green]{_shown(error.cure)}[/]")


def _plain(text: str) -> str:
    """The text without markup and without unsafe characters."""
    return escape(printable_lines(text))


def _shown(text: str) -> str:
    """The same of a text of our own, in the current language."""
    return _plain(str(from_english(text)))


def show_summary(summary: Mapping[str, Any], folder: str) -> None:
    """The final figures as a table."""
    table = PrintableTable(show_header=False, box=None, padding=(0, 2, 0, 0))
    score = summary["score"]
    if score is None:
        table.add_row(message("federated"), message("no figures were released"))
    else:
        figure = f"[bold]{share(score, summary.get('score_error'))}[/]"
        headline = from_english(word(summary["headline"]))
        table.add_row(message("federated"), f"{figure} {headline}{_interval(summary)}")
    if missing := summary.get("not_measured"):
        names = escape(", ".join(sorted(missing)))
        table.add_row(message("figures"), message("without {names}", names=names))
    if summary.get("macro_f1") is not None and "score_error" not in summary:
        balanced, f1 = f"{summary['balanced_accuracy']:.2%}", f"{summary['macro_f1']:.2%}"
        averages = message("{share} balanced accuracy, {f1} macro F1", share=balanced, f1=f1)
        table.add_row(message("by class"), averages)
    if kept := summary.get("kept"):
        table.add_row(message("round kept"), _kept(kept, summary["rounds"]))
    if "model" in summary:
        table.add_row(message("model"), message("moving average of the rounds’ models"))
    if "pooled" in summary:
        pooled, alone = f"{summary['pooled']:.2%}", f"{summary['alone_mean']:.2%}"
        table.add_row(message("pooled"), message("{share} (all data at one place)", share=pooled))
        table.add_row(message("alone"), message("{share} (mean of the sites)", share=alone))
        better = message(
            "{better} of {all} sites, with the model that they get, than alone",
            better=summary["sites_better"],
            all=summary["sites"],
        )
        table.add_row(message("better off"), better)
        if worse := summary["sites_worse"]:
            names = escape(", ".join(worse))
            table.add_row(message("worse off"), message("beyond chance: {names}", names=names))
    if summary["worst_site"]:
        worst = summary["worst_site"]
        reached = share(worst["score"], summary.get("site_errors", {}).get(worst["name"]))
        name = escape(worst["name"])
        table.add_row(
            message("worst site"), message("{site} with {share}", site=name, share=reached)
        )
    if protected := summary.get("privacy"):
        table.add_row(message("privacy"), escape(str(_spent(protected))))
    sent, received = size(summary["bytes_up"]), size(summary["bytes_down"])
    moved = message("{sent} sent, {received} received by sites", sent=sent, received=received)
    table.add_row(message("bytes"), moved)
    seconds = f"{summary['seconds']:.1f} s"
    lasted = plural(
        "{seconds} for {n} round", "{seconds} for {n} rounds", summary["rounds"], seconds=seconds
    )
    table.add_row(message("time"), lasted)
    console = Console(highlight=False, emoji=False)
    console.print(table)
    page = message("Report: {page}", page=f"{folder}/report.html")
    console.print(_plain(str(page)), soft_wrap=True)


def _interval(summary: Mapping[str, Any]) -> str:
    """The 95 % interval of the score, if it is known and noise gives no margin."""
    bounds = summary.get("score_interval")
    if not bounds or summary.get("score_error"):
        return ""
    low, high = (f"{one:.2%}" for one in bounds)
    return " " + str(message("(95 % interval {low} to {high})", low=low, high=high))


def _kept(kept: Mapping[str, Any], trained: int) -> Text:
    """Which round's model the run ends with, and why."""
    values = {"round": kept["round"], "trained": trained, "figure": kept["by"]}
    if kept["stopped"]:
        return message(
            "{round} of {trained}; training ended early, as {figure} on validation did not improve",
            **values,
        )
    if kept["keep"] == "best":
        return message("{round} of {trained}, the best {figure} on validation", **values)
    return message("{round} of {trained}, the last", **values)


def share(value: float, error: float | None) -> str:
    """A share in percent; with the standard error of its noise, the digits that it carries."""
    return str(estimate(value, error)) if error else f"{value:.2%}"


def _spent(protected: Mapping[str, Any]) -> Text:
    """What protection cost, and whether it ended the run early."""
    spent = message(
        "epsilon {epsilon} at delta {delta} for each {unit} ({mechanism}; {sampling})",
        epsilon=f"{protected['epsilon']:.3g}",
        delta=f"{protected['delta']:g}",
        unit=from_english(protected["unit"]),
        mechanism=protected["mechanism"],
        sampling=from_english(protected["sampling"]),
    )
    if not protected["stopped"]:
        return spent
    return message(
        "{spent}; stopped after {done} of {planned} rounds: one more would exceed epsilon {target}",
        spent=spent,
        done=protected["rounds"],
        planned=protected["rounds_planned"],
        target=f"{protected['target']:g}",
    )
