"""Shows the progress of a run: a bar on a terminal or in a notebook, else a line per round."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
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

from fedsight.coordinator.callbacks import (
    BaselineRoundEnded,
    BaselinesBegan,
    Callback,
    Event,
    ReplyArrived,
    RoundEnded,
    RunBegan,
    RunEnded,
)
from fedsight.core.text import printable_lines
from fedsight.language.english import from_english
from fedsight.language.message import Text, message, plural
from fedsight.report import words
from fedsight.runs.phases import Phases, bars, said

if TYPE_CHECKING:
    from fedsight.program.federation import Federation


def size(count: float) -> str:
    """Bytes for people: 1.6 MB."""
    if count < 1000:
        return str(message("{n:.0f} bytes", n=count))
    return words.size(count).replace(words.SPACE, " ")


class Screen(Callback):
    """The progress bar; on a pipe, a line for each round instead."""

    def __init__(self) -> None:
        self._console = Console(
            stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False, emoji=False
        )
        # In a notebook rich draws the bar with ipywidgets; without them it would only warn.
        widgets = self._console.is_jupyter and find_spec("ipywidgets") is not None
        self._live = self._console.is_terminal or widgets
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
        self._phases = Phases(self.say, bars(self._console) if self._live else None)
        self._task: TaskID | None = None
        self._baselines = (0, 0)  # rounds of the baselines that are done, and all
        self._cohort = 1
        self._rounds = 1
        self._bytes = 0
        self._headline: Text = from_english("")
        self._modalities = from_english("images")

    def on(self, event: Event) -> None:
        """Show the event."""
        match event:
            case RunBegan():
                self._begin(event.federation, event.done)
            case ReplyArrived():
                self._advance()
            case BaselineRoundEnded():
                self._advance()
                self._baseline_round()
            case RoundEnded():
                self._round(event.line)
            case BaselinesBegan():
                self.say(
                    message(
                        "For comparison: each site alone, and all {modalities} pooled",
                        modalities=self._modalities,
                    )
                )
                doing = str(message("alone, pooled"))
                self._task = self._progress.add_task(doing, total=event.rounds, status="")
                self._baselines = (0, event.rounds)
            case RunEnded():
                self.close()

    def _begin(self, federation: Federation, done: int) -> None:
        # The figures of a finished run need no torch.
        from fedsight.data.base import counted_parts
        from fedsight.runs.traffic import learning

        program = federation.program
        self._cohort = program.rounds.replies(federation.population)
        self._rounds = program.rounds.rounds
        self._headline = from_english(words.word(program.task.headline_title))
        self._modalities = from_english(federation.dataset.preprocess.modalities)
        self._phases.close()
        begun: Text = message(
            "{name}: {algorithm}, {sites}, {images}, {rounds} rounds",
            name=program.name,
            algorithm=program.algorithm.registered,
            sites=plural("{n:,} site", "{n:,} sites", federation.population),
            images=from_english(counted_parts(federation.dataset)),
            rounds=self._rounds,
        )
        if done:
            begun = message("{begun}, resumed after round {n}", begun=begun, n=done)
        self.say(begun)
        notes = (*federation.dataset.said, *federation.network.notes)
        for note in notes if not done else ():
            self.say(note)
        if not done and (learnt := learning(federation)) is not None:
            self.say(learnt)
        self._progress.start()
        # The bar counts client steps: it moves within a round too.
        self._task = self._progress.add_task(
            str(message("federated")),
            total=self._rounds * self._cohort,
            completed=done * self._cohort,
            status="",
        )

    def _round(self, line: Mapping[str, Any]) -> None:
        self._bytes += line["bytes_up"] + line["bytes_down"]
        counted = message("round {n}/{all}", n=line["round"], all=self._rounds)
        if "finish" in line:
            counted = message("finish {name}", name=line["finish"])
        parts: list[Text | str] = [counted]
        if line["score"] is not None:
            parts.append(f"{self._headline} {line['score']:.3f}")
        if line["loss"] is not None:
            parts.append(message("loss {value}", value=f"{line['loss']:.3f}"))
        if missing := line.get("not_measured"):
            parts.append(message("(without {names})", names=", ".join(sorted(missing)[:3])))
        parts.append(size(self._bytes))
        if line["rejected"]:
            parts.append(message("{n} rejected", n=len(line["rejected"])))
        status = " ".join(map(str, parts))
        if self._live and self._task is not None:
            # Deployed sites do not report single replies, so the round counts for all of them.
            done = line["round"] * self._cohort
            self._progress.update(self._task, status=status, completed=done)
        else:
            self.say(status)

    def progressed(self, phase: str, done: int, total: int) -> None:
        """Show how far a phase is; beside the rounds' bar while there is one."""
        if not self._live or self._task is None:
            self._phases(phase, done, total)
        elif done < total:
            self._progress.update(self._task, status=str(said(phase, done, total)))

    def _baseline_round(self) -> None:
        """On a pipe no bar shows how far the baselines are."""
        done, total = self._baselines[0] + 1, self._baselines[1]
        self._baselines = (done, total)
        if not self._live:
            self._phases("rounds of the baselines", done, total)

    def close(self) -> None:
        """Remove the bar from the screen."""
        self._phases.close()
        self._progress.stop()

    def say(self, text: Text | str) -> None:
        """Print a line, in the current language; above the bar while there is one."""
        self._console.print(escape(printable_lines(str(from_english(text)))))

    def _advance(self) -> None:
        if self._task is not None:
            self._progress.advance(self._task)
