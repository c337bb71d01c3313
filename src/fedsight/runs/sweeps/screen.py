"""Shows the progress of a sweep: a line for each run, and on a terminal a bar over all rounds."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedsight.core.errors import FedSightError
from fedsight.core.text import printable_lines
from fedsight.language.english import from_english
from fedsight.language.message import Text, message, plural
from fedsight.report.words import percent, word
from fedsight.runs.sweeps.cell import Advanced, Finished
from fedsight.runs.sweeps.jobs import News, Share
from fedsight.runs.sweeps.plan import Cell, SweepPlan


class SweepScreen:
    """Hears of the cells of a sweep while they run; a context in which the bar is shown."""

    def __init__(self, plan: SweepPlan, share: Share) -> None:
        self._console = Console(
            stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False, emoji=False
        )
        self._plan, self._share = plan, share
        self._done = len(plan.cells) - len(plan.missing)
        self._rounds = {cell.place: 0 for cell in plan.missing}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        total = sum(cell.program.rounds.rounds for cell in plan.missing)
        self._task = self._bar.add_task(str(message("rounds of all runs")), total=total)

    def __enter__(self) -> Self:
        begun: Text = plural(
            "{name}: {runs} runs of {n} configuration, {finished} finished before",
            "{name}: {runs} runs of {n} configurations, {finished} finished before",
            len(self._plan.by_configuration),
            name=self._plan.name,
            runs=len(self._plan.cells),
            finished=self._done,
        )
        if self._rounds:
            begun = message("{begun}; {jobs} at once", begun=begun, jobs=self._share.jobs)
        self.say(begun)
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def hear(self, cell: Cell, news: News) -> None:
        """Show what comes of a cell."""
        values: dict[str, object] = {"run": title(cell)}
        match news:
            case Advanced():
                if news.resumed:
                    self.say(message("{run}: resumed after round {n}", n=news.round, **values))
                self._advance(cell, news.round)
            case Finished():
                self._done += 1
                self._advance(cell, cell.program.rounds.rounds)
                counts = {"done": self._done, "total": len(self._plan.cells)}
                headline = from_english(word(news.summary["headline"]))
                figure = percent(news.summary["score"], 2)
                self.say(
                    message(
                        "{run}: {headline} {figure} ({done} of {total} runs finished)",
                        headline=headline, figure=figure, **values, **counts,
                    )
                )  # fmt: skip
            case FedSightError():
                self._advance(cell, cell.program.rounds.rounds)  # nothing more is to come
                cause = from_english(news.cause)
                self.say(message("{run} failed: {cause}", cause=cause, **values))

    def say(self, text: Text | str) -> None:
        """Print a line, above the bar if there is one."""
        self._console.print(escape(printable_lines(str(from_english(text)))))

    def _advance(self, cell: Cell, round: int) -> None:
        self._rounds[cell.place] = round
        self._bar.update(self._task, completed=sum(self._rounds.values()))


def title(cell: Cell) -> Text:
    """What people call a cell."""
    if not cell.label:
        return message("seed {seed}", seed=cell.seed)
    return message("{label}, seed {seed}", label=cell.label, seed=cell.seed)
