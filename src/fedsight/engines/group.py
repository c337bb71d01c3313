"""Several machines as one: the processes that `torchrun` started, one on each."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from torch import Tensor, distributed

from fedsight.core.errors import EngineError

Value = TypeVar("Value")
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(days=30)  # a machine that dies closes its connections at once


def launched() -> bool:
    """Whether this process is one of several that `torchrun` started."""
    return all(name in os.environ for name in NEEDED) and os.environ["WORLD_SIZE"] != "1"


class Group:
    """The processes of a run on several machines; number 0 keeps the run's folder.

    Each method is called by all of them, in the same order. Raises EngineError when another one
    has stopped.
    """

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._asked(lambda: distributed.init_process_group("gloo", timeout=PATIENCE))

    def close(self) -> None:
        """Leave."""
        distributed.destroy_process_group()

    def meet(self) -> None:
        """Wait until all are here."""
        self._asked(distributed.barrier)

    def given(self, value: Value | None) -> Value:
        """What number 0 gave."""
        held: list[Any] = [value]
        self._asked(lambda: distributed.broadcast_object_list(held, src=0))
        found: Value = held[0]
        return found

    def copied(self, tensor: Tensor) -> None:
        """Overwrite `tensor` with that of number 0."""
        self._asked(lambda: distributed.broadcast(tensor, src=0))

    def added(self, tensor: Tensor) -> None:
        """Overwrite a tensor of integers with its sum over all."""
        self._asked(lambda: distributed.all_reduce(tensor))

    def gathered(self, value: Value) -> list[Value]:
        """What each gave, by number."""
        held: list[Any] = [None] * self.size
        self._asked(lambda: distributed.all_gather_object(held, value))
        return held

    def _asked(self, ask: Callable[[], object]) -> None:
        try:
            ask()
        except RuntimeError as error:
            said = str(error).strip().split("\n", 1)[0]
            raise EngineError(
                f"process {self.rank} of {self.size} has lost the others: {said}",
                "the first message of another machine says why; then continue with `torchrun ... "
                "fedsight resume`",
            ) from error
