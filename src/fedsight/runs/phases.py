"""Shows phases that take long (images read, measuring): a bar on a terminal, else a few lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from fedsight.core.progress import listening
from fedsight.language.english import from_english
from fedsight.language.message import Text, message

QUIET = 0.5  # seconds: a phase that is over by then is not worth a line
EVERY = 5.0  # seconds between two lines of a phase on a pipe
Clock = Callable[[], float]


@dataclass
class Phases:
    """Hears how far each phase is, and shows it unless it is over at once.

    On a terminal a bar moves and then goes; elsewhere there is a line soon after the beginning, one
    every few seconds, and one at the end. A phase that comes again (measuring, after each round)
    must take some seconds to get a line.
    """

    say: Callable[[str], None]
    bars: Progress | None = None
    clock: Clock = time.monotonic
    _phase: str = ""
    _begun: float = 0.0
    _said: float | None = field(default=None)
    _seen: set[str] = field(default_factory=set)
    _bar: TaskID | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        """`done` of `total` are done in `phase`."""
        now = self.clock()
        if phase != self._phase:
            self.close()
            self._phase, self._begun, self._said = phase, now, None
        if self.bars is not None:
            self._move(self.bars, phase, done, total, now)
            return
        over = done >= total and self._said is not None
        wait = QUIET if self._said is None and phase not in self._seen else EVERY
        due = now - (self._begun if self._said is None else self._said) >= wait
        if over or (due and done < total):
            self._said = now
            self.say(str(said(phase, done, total)))
        if done >= total:
            self._seen.add(phase)
            self._phase = ""

    def _move(self, bars: Progress, phase: str, done: int, total: int, now: float) -> None:
        if self._bar is None:
            if now - self._begun < QUIET:
                return
            bars.start()
            self._bar = bars.add_task(escape(str(from_english(phase))), total=total, completed=done)
        bars.update(self._bar, completed=done, total=total)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self.bars is not None and self._bar is not None:
            self.bars.stop()
            self.bars.remove_task(self._bar)
        self._bar, self._phase = None, ""


def said(phase: str, done: int, total: int) -> Text:
    """How far a phase is: `images read: 12 of 2,000`."""
    return message(
        "{phase}: {done:,} of {total:,}", phase=from_english(phase), done=done, total=total
    )


def bars(console: Console) -> Progress:
    """Bars of phases, which go when they are done."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    return Progress(*columns, console=console, transient=True)


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Meanwhile, work in this context shows its phases on the error stream."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    live = console.is_terminal
    phases = Phases(lambda text: console.print(escape(text)), bars(console) if live else None)
    try:
        with listening(phases):
            yield
    finally:
        phases.close()
