"""What a run is doing now: a small file in its folder, for whoever looks at it from outside.

`live.json` is a notice, not a record: nothing is computed from it, and it may be missing or old.
Whether a process is at work in the folder is told by the folder's lock alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from fedsight.coordinator.asked import answered, asked
from fedsight.coordinator.callbacks import (
    BaselineRoundEnded,
    BaselinesBegan,
    Callback,
    Event,
    ReplyArrived,
    RoundBegan,
    RoundEnded,
    RunBegan,
    RunEnded,
)
from fedsight.core.errors import FedSightError, Interrupted, Paused

LIVE = "live.json"
INTERVAL = 0.25  # seconds between two writes, at least
NAMED = 200  # sites of a round that are named; beyond, they are only counted
REFUSALS = 20  # that are quoted
LONG_ENOUGH = 3.0  # seconds that a refusal is quoted at least, however short its round is

OPENING = "opening"  # the phase before a run goes on

Ended = Literal["finished", "paused", "stopped", "failed"]


class Live(Callback):
    """Keeps the file up to date, in a thread of its own, so that no round waits for a disk.

    With `stops` it also answers the request to stop (`coordinator/asked.py`), as Ctrl-C would: at
    once if this is the main thread, whose waiting a signal ends, else with the next event.
    """

    def __init__(self, folder: Path, stops: bool) -> None:
        self._folder, self._stops, self.stopping = folder, stops, False
        self._in_main = threading.current_thread() is threading.main_thread()
        self._state: dict[str, Any] = {"process": os.getpid(), "began": time.time()}
        self._state["phase"] = OPENING
        self._waiting: dict[str, None] = {}  # the names of a round's sites, in their order
        self._refused: dict[str, tuple[float, str]] = {}  # when each quoted site was, and why
        self._changed, self._over = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="live", daemon=True)

    def on(self, event: Event) -> None:
        """Note what the event says. Raises KeyboardInterrupt when the run is to stop."""
        if self.stopping:  # nobody was interrupted: the signal is ignored in background jobs
            raise KeyboardInterrupt
        match event:
            case RunBegan():
                rounds = event.federation.program.rounds.rounds
                self._note(phase="training", round=event.done, rounds=rounds)
            case RoundBegan():
                self._round(event)
            case ReplyArrived():
                self._reply(event)
            case RoundEnded():
                self._note(measured=event.line["round"])
            case BaselinesBegan():
                self._note(phase="baselines", baselines=[0, event.rounds])
            case BaselineRoundEnded():
                done, total = self._state["baselines"]
                self._note(baselines=[done + 1, total])
            case RunEnded():
                self.end("finished")

    def absent(self, sites: Mapping[str, str]) -> None:
        """Note which sites of a federation do not take part, and why."""
        self._note(absent=dict(sorted(sites.items())[:REFUSALS]))

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def end(self, how: Ended, error: FedSightError | None = None) -> None:
        """Write how the run ended, and why. Of a finished run its summary says all."""
        self.close()
        answered(self._folder)
        if how == "finished":
            with contextlib.suppress(OSError):
                (self._folder / LIVE).unlink(missing_ok=True)
            return
        ended: dict[str, Any] = {"how": how, "at": time.time()}
        if error is not None:
            ended |= {"cause": error.cause, "cure": error.cure}
        self._note(ended=ended)
        self._write()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the file while the block runs, and note how the run ends if it does not end well. Of
        one that was refused before it went on, the file says what it said."""
        self.begin()
        with self.ending(lambda: self._state["phase"] != OPENING):
            yield

    @contextlib.contextmanager
    def ending(self, goes_on: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Note how the block ends, if it does not end well, and the run then `goes_on` or was told
        to end."""
        try:
            yield
        except Exception as error:
            if goes_on() or isinstance(error, Interrupted):
                self.end(*_how(error))
            self.close()
            answered(self._folder)
            raise

    def _round(self, event: RoundBegan) -> None:
        named, late = len(event.sites) <= NAMED, time.monotonic() - LONG_ENOUGH
        with self._lock:
            self._refused = {site: one for site, one in self._refused.items() if one[0] >= late}
            self._waiting = dict.fromkeys(event.sites) if named else {}
            self._state |= {
                "round": event.round,
                "since": time.time(),
                "asked": len(event.sites),
                "answered": 0,
            }
        self._changed.set()

    def _reply(self, event: ReplyArrived) -> None:
        arrival = event.arrival
        cause = getattr(arrival, "cause", None)
        with self._lock:
            self._waiting.pop(arrival.site, None)
            if cause is None:
                self._state["answered"] += 1
            elif arrival.site in self._refused or len(self._refused) < REFUSALS:
                self._refused[arrival.site] = time.monotonic(), cause
        self._changed.set()

    def _note(self, **what: Any) -> None:
        with self._lock:
            self._state |= what
        self._changed.set()

    def _keep(self) -> None:
        while not self._over.wait(INTERVAL):
            if self._changed.is_set():
                self._write()
            if self._stops and not self.stopping and asked(self._folder) == "stop":
                self.stopping = True
                if self._in_main:
                    os.kill(os.getpid(), signal.SIGINT)

    def _write(self) -> None:
        """Write the file, whole; it has no part in a run, so that it cannot be written ends none.

        It is not forced to the disk: after a crash of the machine nobody is at work here. A folder
        that holds no run yet is left empty.
        """
        self._changed.clear()
        if not (self._folder / "run.json").exists():
            return
        with self._lock:
            refused = {site: why for site, (_, why) in self._refused.items()}
            named = {"waiting": list(self._waiting), "refused": refused}
            text = json.dumps({**self._state, **named})
        partial = self._folder / f".{LIVE}.{os.getpid()}.partial"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with contextlib.suppress(OSError):
            with os.fdopen(os.open(partial, flags, 0o666), "w", encoding="utf-8") as file:
                file.write(text)
            partial.replace(self._folder / LIVE)


def _how(error: Exception) -> tuple[Ended, FedSightError | None]:
    """How a run ended with an error, and why, if that is not what the user asked."""
    if isinstance(error, Interrupted):
        return "paused" if isinstance(error, Paused) else "stopped", None
    if isinstance(error, FedSightError):
        return "failed", error
    return "failed", FedSightError(f"{type(error).__name__}: {error}")
