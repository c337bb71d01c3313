"""A site's place at the table: it answers the coordinator, and decides what it takes part in.

It lives in the site's job process. Whatever goes wrong here is told as one sentence without any
of the site's own paths or traces; the details stay in the site's log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedsight.core.errors import DeployError, EngineError, FedSightError, SiteError, StoreError
from fedsight.core.files import make_folder
from fedsight.core.types import Order
from fedsight.deploy.site import job_lease
from fedsight.deploy.site.enforcement import Asker, Enforcement
from fedsight.deploy.site.incoming import Incoming, count
from fedsight.deploy.site.log import told
from fedsight.deploy.site.owner import Owner
from fedsight.deploy.site.secagg_client import Protect, SiteSecAgg
from fedsight.deploy.site.trainer import MeasureStep, Open, TrainedUpdate, Trainer, TrainStep
from fedsight.engines.remote import messages
from fedsight.program import config
from fedsight.program.program import Program

ServiceAnswer = tuple[dict[str, Any], bytes | memoryview]
OPENING = "opening its images"
log = logging.getLogger(__name__)


class SiteService:
    """Answers questions about one job; `home` is the site's folder, `asker` who started the job."""

    def __init__(self, home: Path, name: str, asker: Asker | None = None) -> None:
        self._home = home
        self._name = name
        self._gate = Enforcement(home, asker or Asker())
        self._log = self._gate.log
        self._lock = threading.RLock()
        self._work = ThreadPoolExecutor(1, thread_name_prefix="work")
        self._trainer: Trainer | None = None
        self._opened: Open | None = None
        self._agreed: object | None = None  # a new one for each run that was joined
        self._token = secrets.token_hex(8)  # the job's
        self._incoming = Incoming()
        self._guard = SiteSecAgg(home, name)
        self._vector: tuple[int, torch.Tensor] | None = None  # after which round, and what
        self._tickets: dict[int, tuple[tuple[Any, ...], Future[ServiceAnswer]]] = {}

    def answer(self, kind: str, header: str, body: bytes) -> tuple[str, bytes]:
        """One answer; a refusal or a failure is an answer with an `error`."""
        known: dict[str, Callable[[dict[str, Any], bytes], ServiceAnswer]] = {
            "propose": self._propose,
            "adopt": self._adopt,
            "piece": self._piece,
            "train": self._train,
            "measure": self._measure,
            "wait": self._wait,
            "fetch": self._fetch,
            **self._guard.answers,
        }
        try:
            fields = messages.read_header(header, "the coordinator")
            if kind not in known:
                raise SiteError(f"a question of kind '{kind}' is unknown here", "update this site")
            answer, data = known[kind](fields, body)
        except FedSightError as error:
            log.warning("%s: %s", kind, error)
            with contextlib.suppress(StoreError):  # a full disk is no reason to say nothing
                self._log.write("refused", what=kind, why=error.cause)
            answer, data = told(error), b""
        except Exception as error:  # a defect: told to the coordinator, never a broken line
            log.exception("%s failed", kind)
            answer, data = {"error": f"it failed ({type(error).__name__}); see its log"}, b""
        return json.dumps(answer), bytes(data)

    def close(self) -> None:
        """The job is over."""
        self._end_trainer()
        self._work.shutdown(wait=False, cancel_futures=True)

    # What the coordinator may ask ---------------------------------------------------------

    def _propose(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        """Take part in a run? The site builds the program itself and checks its fingerprint."""
        run, sites = str(fields.get("run")), count(fields, "sites")
        program, _ = config.parse(dict(fields.get("program") or {}), self._home)
        if program.fingerprint != fields.get("fingerprint"):
            raise DeployError(
                f"the program that this site builds has the fingerprint "
                f"{program.fingerprint[:12]}, not {str(fields.get('fingerprint'))[:12]}",
                "let coordinator and sites run the same FedSight version",
            )
        owner = self._gate.admit(program, sites)
        if not (run.isascii() and run.isalnum()) or len(run) > 64:
            raise DeployError("the run has no proper identity", "update the coordinator")
        what = ("propose", run, program.fingerprint, sites)
        return self._begin(what, lambda: self._join(program, owner, run), fields)

    def _adopt(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        """Begin with the personal slice that came: pretrained weights need not be at the site."""
        data = self._incoming.whole("personal", count(fields, "mark"))
        personal = messages.unpack(data, {"personal": len(data) // 4})["personal"]

        def reopen() -> ServiceAnswer:
            if self._opened is not None:
                self._opened = replace(self._opened, personal=personal)
                self._ask(self._opened, OPENING)
            return {}, b""

        return self._begin(("adopt",), reopen, fields)

    def _piece(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        """A part of a vector."""
        self._incoming.add(fields, body)
        return {}, b""

    def _train(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        round = count(fields, "round")
        what = ("train", round, count(fields, "attempt"), self._guard.session())
        if (known := self._begun(what)) is not None:
            return self._waited(known, fields)
        agreed = self._agreement()
        self._gate.refuse_round(round, count(fields, "sites"))
        sizes = {str(name): int(size) for name, size in dict(fields["extras"]).items()}
        extras: dict[str, torch.Tensor] = {}
        if sizes:
            extras = messages.unpack(self._incoming.whole("extras", count(fields, "mark")), sizes)
        step = TrainStep(
            Order(round, self._model(round - 1, fields), extras),
            count(fields, "accepted"),
            count(fields, "durable"),
        )
        protect = self._guard.protection(round, step.order.vector, fields, body)
        return self._begin(what, lambda: self._trained(step, protect, agreed), fields)

    def _measure(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        agreed = self._agreement()
        self._gate.refuse_figures()
        round = count(fields, "round")
        jobs = [(bool(own), int(start)) for own, start in fields["jobs"]]
        step = MeasureStep(round, self._model(round, fields), count(fields, "accepted"), jobs)
        return self._begin(("measure", round, *jobs), lambda: self._measured(step, agreed), fields)

    def _wait(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        """Is it done?"""
        return self._waited(count(fields, "ticket"), fields)

    def _fetch(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        """A part of the vector that something ended with."""
        start, stop = count(fields, "start"), count(fields, "stop")
        _, data = self._ticket(count(fields, "ticket")).result(0)
        return {}, bytes(data[start : min(stop, start + messages.PIECE)])

    # How it is done -----------------------------------------------------------------------

    def _begin(
        self, what: tuple[Any, ...], work: Callable[[], ServiceAnswer], fields: dict[str, Any]
    ) -> ServiceAnswer:
        """Start something long; what is still running then has been given up, and is ended."""
        with self._lock:
            ticket = self._begun(what)
            if ticket is None:
                if any(not future.done() for _, future in self._tickets.values()):
                    self._end_trainer()
                ticket = max(self._tickets, default=0) + 1
                self._tickets = {ticket: (what, self._work.submit(work))}
        return self._waited(ticket, fields)

    def _begun(self, what: tuple[Any, ...]) -> int | None:
        """The ticket of what is asked for again: the answer got lost."""
        for ticket, (earlier, _) in self._tickets.items():
            if earlier == what:
                return ticket
        return None

    def _waited(self, ticket: int, fields: dict[str, Any]) -> ServiceAnswer:
        """Says at once when it is done, or after the header's `seconds` that it is not."""
        future = self._ticket(ticket)
        with contextlib.suppress(TimeoutError):  # this one's, or what the work ended with
            future.result(min(float(fields.get("seconds", 0)), 30.0))
        if not future.done():
            return {"ticket": ticket, "done": False}, b""
        answer, _ = future.result()
        return {**answer, "ticket": ticket, "done": True}, b""

    def _ticket(self, ticket: int) -> Future[ServiceAnswer]:
        if ticket not in self._tickets:
            raise SiteError("what was asked for has been given up", "ask for it anew")
        return self._tickets[ticket][1]

    def _model(self, round: int, fields: dict[str, Any]) -> torch.Tensor:
        """The model after `round`: the vector that came for this question, or the one kept."""
        with self._lock:
            if mark := count(fields, "vector"):
                data = self._incoming.whole("vector", mark)
                self._vector = round, messages.unpack(data, {"vector": len(data) // 4})["vector"]
            if self._vector is None or self._vector[0] != round:
                raise SiteError(f"the model after round {round} is not here", "send it first")
            return self._vector[1]

    def _agreement(self) -> object:
        """What stands for the run that was agreed upon; SiteError if there is none (yet)."""
        if self._agreed is None:
            raise SiteError("no run was agreed upon", "propose one first")
        return self._agreed

    def _refuse_other(self, agreed: object) -> None:
        """What was asked for under one run must not be done under another, with other promises."""
        if self._agreed is not agreed:
            raise SiteError("another run has been agreed upon since", "ask for it anew")

    def _join(self, program: Program, owner: Owner, run: str) -> ServiceAnswer:
        self._agreed = None
        self._gate.join(program, owner, run)
        memory = self._home / "memory" / run
        make_folder(memory)
        job_lease.claim(memory, self._token)
        self._opened = Open(program, owner, self._name, memory, self._token, None)
        self._guard.join(program, owner, run, memory)
        declared = self._ask(self._opened, OPENING)
        self._gate.declaration(declared)
        self._agreed = object()
        return {"declared": declared.table()}, b""

    def _bench(self) -> Trainer:
        """The trainer; a new one if there is none any more."""
        with self._lock:
            if self._trainer is None:
                self._trainer = Trainer(self._home / "trainer.txt")
            return self._trainer

    def _end_trainer(self) -> None:
        with self._lock:
            if self._trainer is not None:
                self._trainer.close()
                self._trainer = None

    def _ask(self, command: Open | TrainStep | MeasureStep, doing: str) -> Any:
        """The trainer's answer; a new trainer opens the site's images first."""
        if self._opened is None:
            raise SiteError("no run was agreed upon", "propose one first")
        fresh = self._trainer is None
        trainer = self._bench()
        try:
            if fresh and command is not self._opened:
                trainer.ask(self._opened, OPENING)
            return trainer.ask(command, doing)
        except EngineError:  # it died: the next question gets a new one
            self._end_trainer()
            raise

    def _trained(self, step: TrainStep, protect: Protect, agreed: object) -> ServiceAnswer:
        self._refuse_other(agreed)
        round, began = step.order.round, time.monotonic()
        found: TrainedUpdate = self._ask(step, f"training in round {round}")
        seconds = time.monotonic() - began
        data, (event, times) = protect(found)
        self._gate.update(round, replace(found, event=event, times=times), data, seconds)
        answer = {
            "round": round,
            "weight": found.weight,
            "metrics": messages.metrics_table(found.metrics),
        }
        return answer, data

    def _measured(self, step: MeasureStep, agreed: object) -> ServiceAnswer:
        self._refuse_other(agreed)
        found = self._ask(step, f"measuring after round {step.round}")
        tables = [messages.metrics_table(metrics) for metrics in found]
        self._gate.figures(step.round, tables)
        return {"round": step.round, "metrics": tables}, b""
