"""Who wants to hear how a run goes: the screen, log writers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsight.program.federation import Federation


class Callback:
    """Hears of everything and does nothing; a subclass overrides what it cares for."""

    def begin(self, federation: Federation, done: int) -> None:
        """Training starts, with `done` rounds behind it."""

    def reply(self) -> None:
        """A client of the round is done."""

    def round(self, line: Mapping[str, Any]) -> None:
        """A round is done; `line` is its line of the history."""

    def begin_baselines(self, rounds: int) -> None:
        """The baselines start; together they have `rounds` rounds."""

    def baseline_round(self) -> None:
        """A round of a baseline is done."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Everything is done."""

    def close(self) -> None:
        """The session is over, done or not."""
