"""The site's handle on the process in which it trains, and what the two say to each other.

It is a child of the site's job process and speaks with it over a pipe. Running out of memory or a
crash in a native library end this process only; the site reports it and starts another.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsight.core.errors import EngineError, FedSightError
from fedsight.core.types import Metrics, Order
from fedsight.deploy.processes import spawn
from fedsight.deploy.site import job_lease
from fedsight.deploy.site.owner import Owner
from fedsight.program.program import Program

GRACE = 5.0  # seconds


@dataclass(frozen=True)
class Open:
    """Open the site's images for a program; answered by a Declaration."""

    program: Program
    owner: Owner
    name: str
    memory: Path
    token: str  # of the job, whose turn it must be
    personal: Tensor | None  # initial personal slice, where weights come from the coordinator


@dataclass(frozen=True)
class TrainStep:
    """Train from `order`; answered by Trained. `accepted` is the last round that counted."""

    order: Order
    accepted: int
    durable: int


@dataclass(frozen=True)
class TrainedUpdate:
    """What leaves the site: vectors, what they weigh, and how training went."""

    payload: Mapping[str, Tensor]
    weight: int
    metrics: Metrics
    event: Mapping[str, Any] | None = None  # of the noise in it, for the ledger
    times: int = 1  # how often that happened


@dataclass(frozen=True)
class MeasureStep:
    """Measure chunks of the test images for the model after `round`; answered by their sums."""

    round: int
    vector: Tensor
    accepted: int
    jobs: Sequence[tuple[bool, int]]  # (this site's own view?, first image)


class _Pickler(pickle.Pickler):
    """Tensors as plain arrays: torch would pass file descriptors, which only kin can share."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.detach().contiguous().numpy(),)
        return NotImplemented


def send(pipe: Connection, message: object) -> None:
    """Put a message into the pipe."""
    file = io.BytesIO()
    _Pickler(file, protocol=5).dump(message)
    pipe.send_bytes(file.getbuffer())


def receive(pipe: Connection) -> Any:
    """Take a message out of the pipe; both ends are this site's own processes."""
    return pickle.loads(pipe.recv_bytes())


class Trainer:
    """The site's handle on its trainer process."""

    def __init__(self, log: Path) -> None:
        ours, theirs = Pipe()
        with log.open("ab") as file:
            self._process = spawn.begin(
                "fedsight.deploy.site.trainer_process", [], file.fileno(), [theirs.fileno()]
            )
        theirs.close()
        self._pipe = ours
        self._lock = threading.Lock()

    def ask(self, command: Open | TrainStep | MeasureStep, doing: str) -> Any:
        """The answer to a command; raises what the trainer raised, EngineError if it died."""
        with self._lock:
            try:
                send(self._pipe, command)
                answer = receive(self._pipe)
            except (EOFError, OSError):
                code = self._process.wait()
                if code == job_lease.TAKEN_OVER:
                    raise job_lease.taken_over() from None
                how = (
                    f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                )
                raise EngineError(
                    f"its trainer process {how} while {doing}",
                    "often the machine ran out of memory: lower train.batch, or free memory",
                ) from None
        if isinstance(answer, FedSightError):
            raise answer
        return answer

    def close(self) -> None:
        """End the process, whatever it does; whoever waits for it gets an EngineError."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a keeper that hangs says nothing
            self._process.wait(GRACE)
