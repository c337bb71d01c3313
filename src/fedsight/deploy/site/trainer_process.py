"""The process in which a site trains: what goes wrong here cannot take the site along.

Run by `deploy/site/trainer.py` as a child of the site's job process, with one end of a pipe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from fedsight.client.memory import MemoryStore
from fedsight.client.step import Client
from fedsight.core.errors import EngineError, FedSightError
from fedsight.core.types import Metrics
from fedsight.deploy.declaration import Declaration, declare, open_site, weightless
from fedsight.deploy.site.job_lease import JobLease
from fedsight.deploy.site.trainer import (
    MeasureStep,
    Open,
    TrainedUpdate,
    TrainStep,
    receive,
    send,
)
from fedsight.governance.charges import charge
from fedsight.privacy.noise import secret_at


class Bench:
    """What the trainer process works with."""

    def __init__(self, setup: Open) -> None:
        torch.set_num_threads(setup.owner.pace.threads)
        self.federation, self.number = open_site(setup.program, setup.owner, setup.name)
        secret = None
        if setup.program.privacy.protects:  # this site's own, and nobody else's
            secret = secret_at(setup.memory.parent.parent / "noise.key")
        program = weightless(setup.program)
        self.client = Client(replace(self.federation, program=program), secret=secret)
        if setup.personal is not None:
            self.client.adopt(setup.personal)
        self.memory = MemoryStore(setup.memory)
        self.name = setup.name
        images = self.federation.size(self.number)
        self._charge = charge(setup.program.privacy, self.federation.plan, images)
        self._remembers = self.client.layout.personal.stop > self.client.layout.personal.start
        self.declaration: Declaration = declare(self.federation, self.number, setup.owner.share)

    def train(self, step: TrainStep) -> TrainedUpdate:
        """One client step; what an uncounted round left in memory is forgotten first."""
        self.memory.rewind(step.accepted, self.name)
        self.memory.prune(self.name, step.durable)
        memory = self.memory.load(self.name, step.order.round)
        reply = self.client.step(step.order, self.number, memory)
        if reply.memory:
            self.memory.save(self.name, step.order.round, reply.memory)
        return TrainedUpdate(reply.payload, reply.weight, reply.metrics, *self._charge)

    def measure(self, step: MeasureStep) -> list[Metrics]:
        """The sums of each chunk."""
        memory = {}
        if self._remembers:
            self.memory.rewind(step.accepted, self.name)
            memory = self.memory.load(self.name, step.round + 1)
        self.client.load(step.vector, memory)
        views = self.federation.views
        mine = next((v for v in views if v.site == self.number), views[0])
        return [
            self.client.measure(self.federation.tested(mine if own else views[0]), start)
            for own, start in step.jobs
        ]


def serve(pipe: Connection) -> None:
    """Answer commands until the pipe closes."""
    bench: Bench | None = None
    turn: JobLease | None = None
    while True:
        command = receive(pipe)
        try:
            if isinstance(command, Open):
                bench = None
                if turn is not None:
                    turn.end()
                turn = JobLease(command.memory, command.token)
                bench = Bench(command)
                answer: Any = bench.declaration
            elif isinstance(command, TrainStep) and bench is not None:
                answer = bench.train(command)
            elif isinstance(command, MeasureStep) and bench is not None:
                answer = bench.measure(command)
            else:
                raise EngineError("nothing was opened", "this is a defect of FedSight")
        except FedSightError as error:
            answer = error
        except Exception as error:  # a defect: the site must hear of it, and go on
            sys.excepthook(*sys.exc_info())
            answer = EngineError(
                f"its trainer failed ({type(error).__name__})",  # the text may name files
                "look at trainer.txt at the site; this is a defect of FedSight",
            )
        send(pipe, answer)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(5)  # the process that answers the coordinator comes first
    with contextlib.suppress(EOFError, OSError):  # the site's job is over
        serve(Connection(int(sys.argv[1])))
