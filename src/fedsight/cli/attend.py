"""What surrounds every training command: the screen and the trackers, opened and closed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsight.coordinator.callbacks import Callback

    Go = Callable[[Sequence[Callback], Callable[[str], None]], Mapping[str, Any]]


class LogFormat(StrEnum):
    """Trackers that can log a run's figures."""

    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"


def attended(folder: Path, log: list[LogFormat] | None, go: Go) -> Mapping[str, Any]:
    """Run `go` with the screen and the trackers as its callbacks; returns the summary.

    A folder in which nothing was written is removed.
    """
    from fedsight.coordinator.trackers import open_log
    from fedsight.core.progress import listening
    from fedsight.runs.progress import Screen

    screen = Screen()
    reporters: list[Callback] = [screen]
    try:
        reporters += [open_log(kind.value, folder, screen.say) for kind in log or []]
        with listening(screen.progressed):
            return go(reporters, screen.say)
    finally:
        for reporter in reporters:
            reporter.close()
        with contextlib.suppress(OSError):
            folder.rmdir()  # nothing was written there
