"""What three people see of a federation, line by line, as it changes: a process that `faults.py`
starts once for each machine, so that it has that machine's clock.

    python benchmarks/fault_watch.py server FEDERATION RUN
    python benchmarks/fault_watch.py site FOLDER
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import NamedTuple

from fedsight.cli.members import show_status
from fedsight.console import site_view
from fedsight.deploy import demo, health
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.runs import listing

INTERVAL = 0.2  # seconds
NUMBERED = "#:"  # behind the number of a line


class Told(NamedTuple):
    """A line that was not there before."""

    at: float  # of time.monotonic(), which is the same for all processes
    place: str
    line: str


Look = Callable[[], Iterator[str]]


def printed(path: Path) -> Look:
    """What a process has printed."""

    def look() -> Iterator[str]:
        with contextlib.suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
            for number, line in enumerate(text.splitlines()):
                yield f"{number}{NUMBERED}{line}"  # the same may be said again

    return look


def status(folder: Path) -> Look:
    """`fedsight federation status`."""

    def look() -> Iterator[str]:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            show_status(FederationFolder.open(folder))
        yield from text.getvalue().splitlines()

    return look


def of_run(folder: Path) -> Look:
    """`fedsight runs list`, and what the console says of the sites of a run."""

    def look() -> Iterator[str]:
        run = listing.look(folder)
        yield f"{folder.name}: {listing.state_words(run)}"
        for key in ("absent", "refused"):
            for site, why in run.live.get(key, {}).items():
                yield f"{site}: {why}"

    return look


def healthy(folder: Path) -> Look:
    """`fedsight health --connected`."""
    return lambda: (f"{one.what}: {one.fault or 'works'}" for one in health.look(folder, True))


def owners(folder: Path) -> Look:
    """The first lines of `fedsight site console`."""

    def look() -> Iterator[str]:
        now = site_view.now(folder)
        yield str(now.words)
        if now.drained:
            yield "drained"

    return look


def looks(what: str, folder: Path, rest: list[str]) -> dict[str, Look]:
    """Where a person at one machine can look."""
    if what == "site":
        return {
            "fedsight site start": printed(folder / demo.OUTPUT),
            "fedsight site console": owners(folder),
            "fedsight health": healthy(folder),
        }
    found = {
        "fedsight server start": printed(folder / "server" / demo.OUTPUT),
        "fedsight federation status": status(folder),
        "fedsight health": healthy(folder),
    }
    for run in map(Path, rest):
        found["fedsight run"] = printed(run.with_suffix(".said"))
        found["fedsight runs list"] = of_run(folder / "runs" / run.name)
    return found


def follow(places: Mapping[str, Look], tell: Callable[[Told], None], over: Event) -> None:
    """Tell each line that was not there at the last look, and when it was seen."""
    before: dict[str, list[str]] = {place: [] for place in places}
    while not over.wait(INTERVAL):
        for place, look in places.items():
            try:
                now = [" ".join(line.split()) for line in look()]
            except Exception as error:  # what a person would see is a fault, too
                now = [f"{type(error).__name__}: {error}"]
            for line in now:
                if line and line not in before[place]:
                    tell(Told(time.monotonic(), place, line.rpartition(NUMBERED)[2].strip()))
            before[place] = now


def main() -> None:
    """Print what is told."""
    what, folder, *rest = sys.argv[1:]

    def tell(told: Told) -> None:
        print(json.dumps(told), flush=True)

    follow(looks(what, Path(folder), rest), tell, Event())


if __name__ == "__main__":
    main()
