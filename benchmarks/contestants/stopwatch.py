"""When training began and each round ended, as FedSight's events say."""

from __future__ import annotations

import time

from fedsight.coordinator.callbacks import Callback, Event, RoundEnded, RunBegan


class Stopwatch(Callback):
    """The moments at which training began and each round ended."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def on(self, event: Event) -> None:
        """The workers are about to start, or a round is in the history and the checkpoint."""
        if isinstance(event, RunBegan | RoundEnded):
            self.stamps.append(time.perf_counter())
