"""The trainer of a site service: started when it is needed, and only ever of the same images."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from fedsight.core.errors import EngineError
from fedsight.deploy.site.release import no_run
from fedsight.deploy.site.trainer import Command, OpenData, Opened, Trainer, changed_images

OPENING = "opening its images"


class TrainerHolder:
    """Holds the trainer of one job."""

    def __init__(self, home: Path) -> None:
        """`home`: the site's folder."""
        self._home = home
        self._lock = threading.RLock()  # of the trainer
        self._trainer: Trainer | None = None
        self._opened: OpenData | None = None
        self._found: Opened | None = None  # what the images turned out to be like

    def _ask_trainer(self, command: Command, doing: str) -> Any:
        """The trainer's answer; a new trainer opens the site's images first."""
        if self._opened is None:
            raise no_run()
        trainer, new = self._running_trainer()
        try:
            if command is self._opened:
                return self._as_before(trainer.ask(command, doing))
            if new:
                self._as_before(trainer.ask(self._opened, OPENING))
            return trainer.ask(command, doing)
        except EngineError:  # it died, or is of no use: the next request gets a new one
            self._end_trainer()
            raise

    def _as_before(self, found: Opened) -> Opened:
        """What was opened, if it is what this site joined the run with.

        Raises ChangedImagesError if it is not. Fewer images are sampled more often than the ledger
        charges, and figures could be those of a single one.
        """
        if self._found is not None and found != self._found:
            raise changed_images()
        self._found = found
        return found

    def _running_trainer(self) -> tuple[Trainer, bool]:
        """The trainer, and whether it has just been started, because there was none.

        Both are found at once: another request may be ending the trainer at this moment. One that
        were taken for it, and has no images open, would fail, and a protected site answer zeros.
        """
        with self._lock:
            new = self._trainer is None
            trainer = self._trainer or Trainer(self._home / "trainer.txt")
            self._trainer = trainer
            return trainer, new

    def _end_trainer(self) -> None:
        with self._lock:
            if self._trainer is not None:
                self._trainer.close()
                self._trainer = None
