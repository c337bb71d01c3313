"""The trainer process of a site: a crash here does not end the site's job process.

`deploy/site/trainer.py` starts it as a child of the site's job process, with one end of a pipe as
its argument. It is a module of its own because it is run as `__main__`: the messages must have one
import path in both processes.
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
from fedsight.deploy.declaration import Declaration, declare, open_site, without_weights
from fedsight.deploy.site.job_lease import JobLease
from fedsight.deploy.site.trainer import (
    MeasureStep,
    OpenData,
    TrainedUpdate,
    TrainStep,
    receive,
    send,
)
from fedsight.governance.charges import charge
from fedsight.privacy.noise import secret_at
from fedsight.program import plugins


class SiteTrainer:
    """Trains and measures on the site's images, for one program."""

    def __init__(self, setup: OpenData) -> None:
        torch.set_num_threads(setup.owner.speed.threads)
        self.federation, self.number = open_site(setup.program, setup.owner, setup.name)
        secret = None
        if setup.program.privacy.protects:  # this site's own; no one else knows it
            secret = secret_at(setup.memory.parent.parent / "noise.key")
        program = without_weights(setup.program)
        speed = setup.owner.speed.client
        of = replace(self.federation, program=program)
        self.client = Client(of, speed, secret, deployed=True)
        if setup.kept is not None:
            self.client.adopt(setup.kept)
        self.memory = MemoryStore(setup.memory)
        self.name = setup.name
        images = self.federation.size(self.number)
        self._charge = charge(setup.program.privacy, self.federation.plan, images)
        self._remembers = self.client.layout.personal.stop > self.client.layout.personal.start
        self.declaration: Declaration = declare(self.federation, self.number, setup.owner.share)

    def train(self, step: TrainStep) -> TrainedUpdate:
        """Take one client step; first drop memory of rounds that the coordinator did not accept."""
        self.memory.rewind(step.accepted, self.name)
        self.memory.prune(self.name, step.durable)
        memory = self.memory.load(self.name, step.order.round)
        reply = self.client.step(step.order, self.number, memory)
        if reply.memory:
            self.memory.save(self.name, step.order.round, reply.memory)
        return TrainedUpdate(reply.payload, reply.weight, reply.metrics, *self._charge)

    def measure(self, step: MeasureStep) -> list[Metrics]:
        """The sums over each chunk."""
        memory = {}
        if self._remembers:
            self.memory.rewind(step.accepted, self.name)
            memory = self.memory.load(self.name, step.round + 1)
        self.client.load(step.vector, memory)
        views = self.federation.views
        own_view = next((v for v in views if v.site == self.number), views[0])
        return [
            self.client.measure(self.federation.tested(own_view if own else views[0]), start)
            for own, start in step.jobs
        ]


def serve(pipe: Connection) -> None:
    """Answer commands until the pipe closes."""
    trainer: SiteTrainer | None = None
    lease: JobLease | None = None
    while True:
        command = receive(pipe)
        try:
            answer: Any = None
            if isinstance(command, tuple):  # the plug-ins of the program that comes next
                plugins.activate(command)
            elif isinstance(command, OpenData):
                trainer = None
                if lease is not None:
                    lease.release()
                lease = JobLease(command.memory, command.token)
                trainer = SiteTrainer(command)
                answer = trainer.declaration
            elif isinstance(command, TrainStep) and trainer is not None:
                answer = trainer.train(command)
            elif isinstance(command, MeasureStep) and trainer is not None:
                answer = trainer.measure(command)
            else:
                raise EngineError("no images are open", "this is a bug in FedSight")
        except FedSightError as error:
            answer = error
        except Exception as error:  # a bug: report it, and continue
            sys.excepthook(*sys.exc_info())
            answer = EngineError(
                f"its trainer failed ({type(error).__name__})",  # the error's text may name files
                "see trainer.txt at the site; this is a bug in FedSight",
            )
        send(pipe, answer)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(5)  # the process that answers the coordinator takes precedence
    with contextlib.suppress(EOFError, OSError):  # the site's job has ended
        serve(Connection(int(sys.argv[1])))
