"""The site's handle on its trainer process, and the messages between the two.

The trainer (`deploy/site/trainer_process.py`) is a child of the site's job process, and they talk
over a pipe. Running out of memory, or a crash in a native library, ends the trainer only; the site
reports it and starts another.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsight.compression.difference import Difference
from fedsight.core.errors import EngineError, FedSightError, StoreError
from fedsight.core.files import trim
from fedsight.core.types import Metrics, Order, PartSpecs
from fedsight.deploy.declaration import Declaration
from fedsight.deploy.processes import spawn
from fedsight.deploy.site import job_lease, state
from fedsight.deploy.site.caused_outside import CausedOutsideError
from fedsight.deploy.site.incoming import Lengths
from fedsight.deploy.site.owner import OwnerSettings
from fedsight.governance.charges import Charge
from fedsight.program import plugins
from fedsight.program.program import Program

LOG_BYTES = 1 << 20  # of what trainers write to trainer.txt; older lines are dropped
KILL_TIMEOUT = 5.0  # seconds for the exit of a killed process to be reported


class AbandonedError(EngineError, CausedOutsideError):
    """This process ended its trainer itself, because the coordinator asked for something else.

    It says nothing of the images, and no other answer may stand in for the one that was abandoned:
    a coordinator that could interrupt a site to have it send zeros would be left with the sum of
    those that it did not interrupt.
    """


class NoTrainerError(EngineError, CausedOutsideError):
    """No trainer could be started, or what it is asked not be told to it: the machine has no
    process, thread, file or memory left for that.

    It says nothing of the images, and a coordinator that has a site do much at once may bring it
    about. So no zeros stand in for the answer, as after an interruption.
    """


class NotKeptError(StoreError, CausedOutsideError):
    """What a site remembers of a run could not be written or read: its disk is full, for example.

    Its length follows from the program. A coordinator may fill the disk by another job, and have it
    freed while the site makes zeros.
    """


class ChangedImagesError(EngineError):
    """The images that a trainer opened again are not those that the site joined the run with.

    What was declared, what an update costs, and whether figures may leave follow from those.
    """


def changed_images() -> ChangedImagesError:
    """The error of images that are not those of this run."""
    return ChangedImagesError(
        "the site's images or labels have changed since it joined this run",
        "a run needs the same images from its first round to its last: restore them, or take part "
        "in the next run. If nobody has changed them, some may have become unreadable: see "
        "log.jsonl at the site",
    )


@dataclass(frozen=True)
class OpenData:
    """Open the site's images for a program; answered by an `Opened`."""

    program: Program
    owner: OwnerSettings
    name: str
    memory: Path
    token: str  # of the job, which needs the lease on the memory
    kept: (
        Tensor | None
    )  # personal and frozen parameters to begin with, if the coordinator sent them


@dataclass(frozen=True)
class Opened:
    """The site's images are open: what they are like, and what each update will cost."""

    declaration: Declaration
    charge: Charge  # of the noise that the site adds; unknown (None) for shares of noise
    bare: bool  # whether the models that are measured have parameters trained here without noise
    personal: bool  # whether the models that are measured have parameters that stay here
    # the parts of an update that are integers, bounded for this site's number of images
    integers: PartSpecs = field(default_factory=dict)
    # how many test images, or groups of them, the smallest of the three parts has that calibration
    # needs (`evaluation/trust/units.py`, `fewest`)
    smallest_part: int = 0
    # the most bytes of the vectors that an order may bring
    lengths: Lengths = field(default_factory=dict)
    # of images and labels of each part
    hashes: Mapping[str, str] = field(default_factory=dict)
    texts: int = 0  # bytes that what a recogniser says of its answers takes, at most
    own: bool = False  # whether answers depend on parameters or looks that are the site's own
    difference: Difference | None = None  # how a model comes that is made of the one before
    # whether sums of its levels would be of means over groups of several images
    sums_of_means: bool = False
    # the model before the first round, as it is built here
    initial: Tensor | None = field(default=None, compare=False)
    # what does not travel of it, where it is of weights
    kept: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class TrainStep:
    """Train from `order`; answered by a TrainedUpdate.

    `accepted` is the last round in which this site's update counted, `durable` the round of the
    coordinator's last checkpoint.
    """

    order: Order
    accepted: int
    durable: int
    blank: bool = False  # read no image, and answer as a protected site does whose training fails


@dataclass(frozen=True)
class TrainedUpdate:
    """What leaves the site: vectors, their weight, and metrics of the training."""

    payload: Mapping[str, Tensor]
    weight: int
    metrics: Metrics
    failure: str = ""  # why the vectors say nothing of the images; it never leaves the site

    @property
    def sizes(self) -> dict[str, int]:
        """The length of each vector."""
        return {name: value.numel() for name, value in self.payload.items()}


@dataclass(frozen=True)
class MeasureStep:
    """Measure the model after `round` on all of the site's test images; answered by their sums.

    With `bounds` each image's share is bounded, so that the sums can be noised. `blank` is then the
    sums of a site whose measuring fails: zeros.
    """

    round: int
    vector: Tensor
    accepted: int
    bounds: Mapping[str, float] | None = None
    blank: bool = False


@dataclass(frozen=True)
class CalibrateStep:
    """Add up what says how far the answers of the model after `round` can be trusted, over parts of
    the site's test images; answered by whole numbers [n], or by why there are none.

    Without a `temperature` these are the losses of a part of them (`FitSums`), and with it
    histograms of two others (`CountSums`). No sums are of fewer than `least` images. In a `masked`
    sum an image whose answer is not finite counts like one of which the model knows nothing, so no
    model can make the sums fail. With `noised` it is answered by histograms of all test images, to
    which noise will be added. `blank` are those of a site whose measuring fails: zeros in a masked
    sum, and with `noised` all images in the last bin.
    """

    round: int
    vector: Tensor
    temperature: float | None
    least: int
    accepted: int = 0
    masked: bool = False
    noised: bool = False
    blank: bool = False


class _Pickler(pickle.Pickler):
    """Pickles tensors as arrays: torch would pass file descriptors, which only relatives share."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.detach().contiguous().numpy(),)
        return NotImplemented


def send(pipe: Connection, message: object) -> None:
    """Send a message through the pipe: what it is, then its vectors as they are, without a copy."""
    vectors: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=vectors.append).dump(message)
    raw = [vector.raw() for vector in vectors]
    pipe.send_bytes(pickle.dumps([one.nbytes for one in raw]))
    # Not `getbuffer`: in the traceback of a broken pipe, such a view crashes Python 3.12 when it is
    # collected as garbage.
    pipe.send_bytes(file.getvalue())
    for one in raw:
        while one.nbytes:
            one = one[os.write(pipe.fileno(), one) :]


def receive(pipe: Connection) -> Any:
    """Receive a message; unpickling is safe, since both ends are this site's own processes."""
    sizes: list[int] = pickle.loads(pipe.recv_bytes())
    what = pipe.recv_bytes()
    return pickle.loads(what, buffers=[_vector(pipe, size) for size in sizes])


def _vector(pipe: Connection, size: int) -> bytearray:
    """So many bytes that come next. Raises EOFError if the other end closes before."""
    found = bytearray(size)
    rest = memoryview(found)
    while rest.nbytes:
        if not (came := os.readv(pipe.fileno(), [rest])):
            raise EOFError
        rest = rest[came:]
    return found


def _reason(error: Exception) -> str:
    """Why no process was started, in a few words."""
    if isinstance(error, EngineError):
        return error.cause
    told = error.strerror if isinstance(error, OSError) else None
    return told or type(error).__name__


SumStep = MeasureStep | CalibrateStep
Command = OpenData | TrainStep | SumStep


class Trainer:
    """The site's handle on its trainer process."""

    def __init__(self, log: Path) -> None:
        """Raises NoTrainerError if none can be started."""
        self._log = log
        try:
            self._pipe, theirs = Pipe()
            with theirs:
                self._process = self._started(theirs)
        except Exception as error:  # without a thread a RuntimeError, without memory a MemoryError
            why = _reason(error)
            raise NoTrainerError(
                f"no trainer process could be started: {why}", job_lease.FREE_SOMETHING
            ) from error
        self._closed = False
        self._run = ""  # whose images are open, or about to be
        self._lock = threading.Lock()

    def _started(self, theirs: Connection) -> spawn.Process:
        """The process, which has this end of the pipe; our end is closed if there is none."""
        try:
            trim(self._log, LOG_BYTES)
            with self._log.open("ab") as file:
                return spawn.start(
                    "fedsight.deploy.site.trainer_process", [], file.fileno(), [theirs.fileno()]
                )
        except BaseException:
            self._pipe.close()
            raise

    def ask(self, command: Command, doing: str) -> Any:
        """The answer to a command; raises what the trainer raised, EngineError if it died,
        AbandonedError if it was closed, NoTrainerError if this process cannot talk to it.

        `doing` describes the command in messages.
        """
        if isinstance(command, OpenData):
            self._run = command.memory.name
        work = state.at_work(self._log.parent, self._process.pid, doing, self._run)
        with self._lock, work:
            try:
                self._trim()
                answer = None
                if isinstance(command, OpenData):  # its program may be made of their classes
                    answer = self._exchange(plugins.files_of(command.program))
                if answer is None:
                    answer = self._exchange(command)
            except (EOFError, OSError):
                if self._closed:
                    raise AbandonedError(
                        f"{doing} was abandoned for another request",
                        "send the request again, and wait for its answer",
                    ) from None
                code = self._process.wait()
                if code == job_lease.TAKEN_OVER:
                    raise job_lease.taken_over() from None
                raise EngineError(
                    f"its trainer process {spawn.describe_exit(code)} while {doing}",
                    "the machine may have run out of memory: lower train.batch, or free memory",
                ) from None
            except NoTrainerError:
                raise
            except Exception as error:  # half of a message may be left: this one is of no use
                raise NoTrainerError(
                    f"the trainer process could not be talked to ({type(error).__name__}) while "
                    f"{doing}",
                    job_lease.FREE_SOMETHING,
                ) from error
        if isinstance(answer, FedSightError):
            raise answer
        return answer

    def _trim(self) -> None:
        """Shorten the log of the trainers."""
        try:
            trim(self._log, LOG_BYTES)
        except OSError as error:  # which is not that of a process that has died
            cause = f"the log of the trainer process cannot be used: {error.strerror}"
            raise NoTrainerError(cause, job_lease.FREE_SOMETHING) from error

    def _exchange(self, message: object) -> Any:
        send(self._pipe, message)
        return receive(self._pipe)

    def close(self) -> None:
        """Kill the process; a thread that waits in `ask` gets an AbandonedError."""
        self._closed = True
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the prefork process may hang
            self._process.wait(KILL_TIMEOUT)
