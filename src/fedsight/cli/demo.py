"""`fedsight federation demo`: a whole federation on this machine, in about a minute."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fedsight.core.errors import Interrupted, StoreError
from fedsight.core.files import is_taken
from fedsight.language.message import message


def demo_command(
    sites: Annotated[int, typer.Option(min=2, max=16, help="How many sites.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to train.")] = 8,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep the federation and the sites in this new folder; otherwise only the run "
            "is kept, in runs/.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Try a federation on this machine, with real processes and certificates.

    Example: fedsight federation demo --sites 3 --keep trial
    """
    from fedsight.deploy.requirements import need_engine

    need_engine()
    from fedsight.deploy.processes import supervisor

    # It imports what the federation's processes need while this one imports its own.
    with _folder(keep) as folder, supervisor.prefork_process():
        _demonstrate(folder, keep, sites, rounds)


def _demonstrate(folder: Path, keep: Path | None, sites: int, rounds: int) -> None:
    """Create the federation in `folder`, run it, and show what came of it."""
    from fedsight.cli.members import show_departures
    from fedsight.cli.screen import show_summary
    from fedsight.coordinator.folders import free_folder
    from fedsight.coordinator.store import RunStore
    from fedsight.deploy import demo
    from fedsight.deploy.server import scheduler
    from fedsight.program import config
    from fedsight.report.page import build
    from fedsight.runs.progress import Screen

    program, speed = config.example("fashion", demo.changes(sites, rounds))
    screen = Screen()
    screen.say(message("creating keys, certificates and kits for a server and {n} sites", n=sites))
    try:
        with demo.started(folder, sites) as ((federation, members), running):
            screen.say(
                message("started the server and {n} sites; waiting for them to connect", n=sites)
            )
            demo.wait_for(federation, [site.name for site in members], running)
            store = RunStore(federation.runs / program.name)
            scheduler.prepare(federation, program, speed, store)
            summary = scheduler.resume(federation, store, [screen], screen.say)
    except Interrupted:
        cure = "start it again" + (
            f"; its files are in {keep}, so choose another --keep" if keep else ""
        )
        raise Interrupted("the demo was stopped by Ctrl-C", cure) from None
    finally:
        screen.close()
    run = store.folder
    if keep is None:
        run = free_folder(Path("runs"), program.name)
        unneeded = shutil.ignore_patterns(".*", "job.json")
        shutil.copytree(store.folder, run, ignore=unneeded, dirs_exist_ok=True)
    else:
        run = keep / demo.NAME / "runs" / program.name
    build([run])
    show_departures({site.name: site.log.read() for site in members})
    show_summary(summary, str(run))


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """The demo's folder: `keep`, or a temporary one. StoreError if `keep` is not empty."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="fedsight-demo-") as scratch:
            yield Path(scratch)
        return
    if is_taken(keep):
        raise StoreError(f"{keep} is not an empty folder", "choose another --keep")
    yield keep
