"""`fedsight runs`: the runs in a folder; pause one, or stop it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsight.cli.complete import run_folders
from fedsight.cli.output import JsonOption, echo
from fedsight.language.message import Text, message

if TYPE_CHECKING:
    from fedsight.runs.listing import Control, Listed

app = typer.Typer(no_args_is_help=True, help="List runs; pause or stop one that is going on.")

RunFolder = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="A run folder.", show_default=False, autocompletion=run_folders
    ),
]


@app.command("list")
def list_command(
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="The folder that holds the run folders.")
    ] = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """List the runs in a folder, the newest first: state, rounds, main figure.

    Example: fedsight runs list --json
    """
    from fedsight.runs.listing import listed

    found = listed(runs)
    if as_json:
        echo(json.dumps([one.table() for one in found], indent=1))
    elif found:
        _show(found, runs)
    else:
        echo(message("There are no runs in {folder} yet.", folder=runs))


@app.command("pause")
def pause_command(run: RunFolder, as_json: JsonOption = False) -> None:
    """End a run after the round in progress; `fedsight resume` goes on from there.

    Example: fedsight runs pause runs/first
    """
    _ask(run, "pause", message("{run} will pause after the round in progress", run=run), as_json)


@app.command("stop")
def stop_command(run: RunFolder, as_json: JsonOption = False) -> None:
    """End a run now; `fedsight resume` repeats the round in progress, with the same bits.

    Example: fedsight runs stop runs/first
    """
    _ask(run, "stop", message("{run} is told to stop", run=run), as_json)


def _ask(run: Path, request: Control, said: Text, as_json: bool) -> None:
    from fedsight.runs.listing import control

    control(run, request)
    echo(json.dumps({"folder": str(run), "asked": request}) if as_json else said)


def _show(found: list[Listed], root: Path) -> None:
    from rich.markup import escape

    from fedsight.cli.members import format_time
    from fedsight.cli.tables import make_table, show
    from fedsight.runs.listing import state_words

    table = make_table(
        *("run", "state", "began", "rounds", "score", "sites"),
        right=("rounds", "score", "sites"),
        whole=("began", "rounds"),
    )
    for one in found:
        table.add_row(
            escape(str(one.folder.relative_to(root))),
            state_words(one),
            format_time(one.created)[:16],
            message(
                "{done} of {all}", done=one.round, all="?" if one.rounds is None else one.rounds
            ),
            "" if one.score is None else f"{one.score:.2%}",
            "" if one.sites is None else f"{one.sites:,}",
        )
    show(table)
