"""Writers for the log formats of other tools; each needs an extra."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from fedsight.coordinator.callbacks import Callback, Event, RoundEnded, RunBegan, RunEnded
from fedsight.core.errors import FedSightError
from fedsight.program.federation import Federation

STRUCTURE = {
    "round",
    "score",
    "cohort",
    "replies",
    "weight",
}  # fields of a line that are not figures


def open_log(kind: str, folder: Path, say: Callable[[str], None]) -> Log:
    """The writer called `kind`, which tells `say` if it fails.

    Raises FedSightError when its extra is not installed.
    """
    writers: dict[str, type[Log]] = {"tensorboard": TensorBoard, "mlflow": MLflow}
    return writers[kind](folder, say)


class Log(Callback, ABC):
    """A callback that writes the figures of each round to a tracker.

    A tracker that fails is reported once and not used again: a run never ends because of it.
    """

    title: ClassVar[str]

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self._say = say
        self._failed = False

    @abstractmethod
    def write(self, name: str, value: float, round: int) -> None:
        """Write one figure."""

    def on(self, event: Event) -> None:
        """Open the log when the run begins, write each round's figures, mark the end."""
        match event:
            case RunBegan():
                self._attempt(lambda: self.begin(event.federation, event.done))
            case RoundEnded():
                self._attempt(lambda: self.round(event.line))
            case RunEnded():
                self._attempt(self.finish)

    def close(self) -> None:
        """Close the log."""
        self._attempt(self.end)

    def _attempt(self, step: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            step()
        except Exception as error:  # of any kind: it is another program's
            self._failed = True
            why = " ".join(str(error).split())[:200] or type(error).__name__
            self._say(f"{self.title} cannot be written ({why}); the run goes on without it")

    @abstractmethod
    def end(self) -> None:
        """Close what `begin` opened."""

    @abstractmethod
    def begin(self, federation: Federation, done: int) -> None:
        """Open the log; `done` rounds are already complete."""

    def finish(self) -> None:
        """Mark the run as finished."""

    def round(self, line: Mapping[str, Any]) -> None:
        """Write the figures that were measured in a round."""
        for name, value in line.items():
            if isinstance(value, int | float) and name not in STRUCTURE:
                self.write(name, value, line["round"])


class TensorBoard(Log):
    """Event files in the run folder, for `tensorboard --logdir runs`."""

    title = "TensorBoard's log"

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        super().__init__(folder, say)
        self._events = _extra("torch.utils.tensorboard", "tensorboard")
        self._writer: Any = None

    def begin(self, federation: Federation, done: int) -> None:
        """Open the event file; rounds that a crashed run wrote after its checkpoint are hidden."""
        self._writer = self._events.SummaryWriter(str(self.folder), purge_step=done + 1)

    def write(self, name: str, value: float, round: int) -> None:
        """One scalar."""
        self._writer.add_scalar(name, value, round)

    def round(self, line: Mapping[str, Any]) -> None:
        """Write the figures and flush: buffered ones would be lost if the run were killed."""
        super().round(line)
        self._writer.flush()

    def end(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class MLflow(Log):
    """A run in MLflow's tracking store, at MLFLOW_TRACKING_URI."""

    title = "MLflow's log"

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        super().__init__(folder, say)
        self._mlflow = _extra("mlflow", "mlflow")
        self._status: str | None = None  # the status to end the open run with; None if not open

    def begin(self, federation: Federation, done: int) -> None:
        """Open a run in the tracking store, tagged with the program's fingerprint."""
        program = federation.program
        tags = {"fedsight.fingerprint": program.fingerprint}
        self._mlflow.start_run(run_name=program.name, tags=tags)
        self._status = "KILLED"

    def write(self, name: str, value: float, round: int) -> None:
        """One metric."""
        self._mlflow.log_metric(name, value, step=round)

    def finish(self) -> None:
        """Mark the run as finished."""
        self._status = "FINISHED"

    def end(self) -> None:
        """Close the run."""
        if self._status is not None:
            self._mlflow.end_run(self._status)


def _extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FedSightError(
            f"--log {extra} needs a package that is not installed: {error.name}",
            f"pip install 'fedsight[{extra}]'",
        ) from error
