"""Two consoles that stay open beside a run, each with a visitor, and that are opened anew when
they were killed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loopback import Loopback, Seen
from visitor import ConsoleProcess, Visitor, told

OPERATOR, OWNER = "operator's console", "site owner's console"
CONSOLES = (OPERATOR, OWNER)
LOOK_EVERY = 1.0  # seconds between two pages that a visitor looks at


class OpenConsole:
    """A console with a visitor."""

    def __init__(self, words: Sequence[str], place: Path, page: str, pages: Sequence[str]) -> None:
        self._words, self._place, self._page, self._pages = words, place, page, pages
        self._visits: list[Visitor] = []
        self._life = contextlib.ExitStack()
        self._console: ConsoleProcess | None = None

    def open(self) -> None:
        """Start it, and let a visitor look at it."""
        self._console = ConsoleProcess(self._words, self._place)
        self._life.callback(self._console.close)
        self._visits.append(Visitor(self._console, self._page, self._pages, LOOK_EVERY))
        self._life.enter_context(self._visits[-1].looking())

    def kill(self) -> None:
        """End its process at once. What its visitor sees of that is no problem."""
        assert self._console is not None
        self._visits[-1].over.set()
        self._console.process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """End the visit, and the console if it is still there."""
        self._console = None
        self._life.close()

    def process(self) -> Seen | None:
        """Its process now."""
        console = self._console
        return None if console is None else Seen.of(console.process.pid, "console")

    def found(self) -> dict[str, Any]:
        """What its visitors saw."""
        seconds: dict[str, list[float]] = {}
        for visit in self._visits:
            for what, values in visit.seconds.items():
                seconds.setdefault(what, []).extend(values)
        return {
            "opened": len(self._visits),
            "events": sum(visit.events for visit in self._visits),
            "answers": {what: told(sorted(values)) for what, values in seconds.items()},
            "problems": [text for visit in self._visits for text in visit.problems],
        }


class Consoles:
    """The operator's console and that of one site's owner."""

    def __init__(self, loopback: Loopback, run: str) -> None:
        federation, site = loopback.federation.folder, loopback.sites[0].folder
        page = f"/run/{run}"
        self._lock = threading.Lock()
        self._all = {
            OPERATOR: OpenConsole(
                ["console", "--federation", str(federation)],
                federation,
                page,
                ["/", page, "/sites", "/new"],
            ),
            OWNER: OpenConsole(
                ["site", "console", str(site)],
                site,
                "/",
                ["/", "/left", "/ledger", "/programs", "/contract", "/health"],
            ),
        }

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Both open, and looked at, while the block runs."""
        with contextlib.ExitStack() as stack:
            for one in self._all.values():
                stack.callback(one.close)
                one.open()
            yield

    def kill_and_reopen(self, name: str) -> None:
        """End one, and open it again, as its user would."""
        self._all[name].kill()
        self._all[name].open()

    def processes(self) -> dict[str, Seen]:
        """Those that are there now, by name."""
        found = {name: one.process() for name, one in self._all.items()}
        return {name: one for name, one in found.items() if one is not None}

    def found(self) -> dict[str, dict[str, Any]]:
        """What the visitors saw, by console."""
        return {name: one.found() for name, one in self._all.items()}
