"""The site service: answers the coordinator's requests, and decides what the site takes part in.

It runs in the site's job process. An error reaches the coordinator as one sentence, without any of
the site's own paths or traces; the details stay in the site's log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsight.core import package
from fedsight.core.errors import DeployError, FedSightError, SiteError, StoreError
from fedsight.core.text import printable
from fedsight.core.types import Order
from fedsight.deploy.membership import kits, revocations
from fedsight.deploy.site import adopted, job_lease, state
from fedsight.deploy.site.answers import Answer
from fedsight.deploy.site.background import Background, ServiceAnswer
from fedsight.deploy.site.calibration import SumRules
from fedsight.deploy.site.caused_outside import CausedOutsideError
from fedsight.deploy.site.delivery.order import FinalOrder
from fedsight.deploy.site.enforcement import (
    ContractEnforcement,
    Requester,
    on_proposed_line,
)
from fedsight.deploy.site.figures import withheld
from fedsight.deploy.site.held_model import MISSING, HeldModel
from fedsight.deploy.site.incoming import IncomingVectors, count
from fedsight.deploy.site.memories import MAX_RUN_CHARACTERS, contents_of_run, folder_of
from fedsight.deploy.site.owner import OwnerSettings
from fedsight.deploy.site.questions import KINDS
from fedsight.deploy.site.refusals import MAX_KIND, Asked, Refusals
from fedsight.deploy.site.release import (
    FREE,
    Question,
    digest_of,
    error_for_coordinator,
    no_run,
)
from fedsight.deploy.site.secagg_client import Protection, SiteSecAgg
from fedsight.deploy.site.trainer import (
    AbandonedError,
    OpenData,
    Opened,
    SumStep,
    TrainedUpdate,
    TrainStep,
)
from fedsight.deploy.site.trainer_holder import OPENING, TrainerHolder
from fedsight.engines.protected import masks_sums
from fedsight.engines.remote import messages
from fedsight.governance.entries import CALIBRATION, EntryKind
from fedsight.privacy.secagg.messages import Binding
from fedsight.program.program import Program

log = logging.getLogger(__name__)


class SiteService(TrainerHolder):
    """Answers requests in one job.

    Long work (opening images, training, measuring) is done in a thread of its own. The answer to
    the request that starts it has a ticket, with which the coordinator waits for the result and
    fetches it.
    """

    def __init__(self, home: Path, name: str, requester: Requester | None = None) -> None:
        """`home`: the site's folder; `requester`: who started the job, as far as is known."""
        super().__init__(home)
        self._name = name
        self._enforcement = ContractEnforcement(home, requester or Requester())
        self._log = self._enforcement.log
        self._refusals = Refusals(home, self._log, self._enforcement.record_refusal)
        # A process registers one program's plug-ins at a time, and a proposal may come twice.
        self._reading = threading.Lock()
        self._background = Background(self._end_trainer)
        self._joined: object | None = None  # stands for the current run; a new one for each
        self._token = secrets.token_hex(8)  # identifies the job
        self._begun = 0  # the round of the last order
        self._incoming = IncomingVectors()
        self._secagg = SiteSecAgg(home, name, self._refusals.record)
        self._rules: dict[str, SumRules] = {}
        self._model = HeldModel(self._incoming)
        self.handlers: Mapping[str, Callable[[dict[str, Any], bytes], ServiceAnswer]] = {
            "propose": self._propose,
            "adopt": self._adopt,
            "piece": self._piece,
            "probe": self._probe,
            "train": self._train,
            "measure": partial(self._measure, "measure"),
            "calibrate": partial(self._measure, "calibrate"),
            "deliver": self._deliver,
            "wait": self._wait,
            "fetch": self._fetch,
            **self._secagg.answers,
            "advertise": self._advertise,
        }

    def answer(self, kind: str, header: str, body: bytes) -> tuple[str, bytes]:
        """Answer a request; returns header and body. A refusal is an answer with an `error`."""
        fields: dict[str, Any] = {}
        try:
            fields = messages.read_header(header, "the coordinator")
            if kind not in KINDS:
                cause = f"unknown kind of request '{printable(kind, MAX_KIND)}'"
                raise SiteError(cause, "update this site")
            if "piece" in fields:  # the last one of a vector comes with the question about it
                self._piece(messages.fields_in(fields, "piece", "the coordinator"), body)
                body = b""
            answer, data = self.handlers[kind](fields, body)
        except FedSightError as error:
            self._refusals.record_error(kind, error, self._asked(kind, fields))
            answer, data = dict(error_for_coordinator(error)), b""
        except Exception as error:  # a bug: the coordinator still gets an answer
            log.exception("%s failed", kind)
            answer, data = dict(error_for_coordinator(error)), b""
        return json.dumps(answer), bytes(data)

    def _asked(self, kind: str, fields: Mapping[str, Any]) -> Asked:
        """Who asks, for which run and program; of a proposal, as the coordinator states it."""
        requester, opened = self._enforcement.requester, self._opened
        if kind == "propose":
            return Asked.of(fields, requester.of(str(fields.get("fingerprint"))))
        if opened is None:
            return Asked(operators=requester.operators)
        program, mark = opened.program, opened.program.fingerprint
        by = requester.of(mark)
        return Asked(opened.memory.name, mark, Asked.short(program.name), by)

    def _start(
        self,
        kind: str,
        what: tuple[Any, ...],
        do: Callable[[], ServiceAnswer],
        fields: dict[str, Any],
    ) -> ServiceAnswer:
        """Start long work for a request. If it fails it is recorded what was asked, and by whom:
        the coordinator may never wait for it, and a request to wait says neither."""
        asked = self._asked(kind, fields)

        def recorded() -> ServiceAnswer:
            try:
                return do()
            except AbandonedError:  # something else is asked instead
                raise
            except FedSightError as error:
                self._refusals.record_error(kind, error, asked)
                raise

        return self._background.start((kind, *what), recorded, fields)

    def close(self) -> None:
        """End the job."""
        state.forget_job(self._home)
        self._end_trainer()
        self._background.close()

    # Requests of the coordinator ----------------------------------------------------------

    def _propose(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        """Take part in a run. The site builds the program itself and compares the fingerprint."""
        authority = self._home / "kit" / "startup" / kits.AUTHORITY
        revocations.accept(self._home, authority, fields.get("revocations"))
        revocations.check_operators(self._home, self._enforcement.requester.operators)
        run, sites = str(fields.get("run")), count(fields, "sites")
        package.require_unchanged()
        self._enforcement.check_packages(fields.get("package"))
        if fields.get("measured") is not True:  # then there is only a model to be had
            package.require_coordinators(fields.get("package"))  # before images are opened
        with self._reading:
            program = self._enforcement.read_program(fields.get("program"))
        if program.fingerprint != fields.get("fingerprint"):
            raise DeployError(
                f"the program has the fingerprint {program.fingerprint[:12]} at this site, not "
                f"{str(fields.get('fingerprint'))[:12]}",
                "run the same FedSight version at the coordinator and at the sites",
            )
        owner = self._enforcement.check_program(program, sites)
        if not (run.isascii() and run.isalnum()) or len(run) > MAX_RUN_CHARACTERS:
            raise DeployError("the run has no valid identifier", "update the coordinator")
        self._enforcement.require_approval(program, owner.contract, run)
        # A model that is trained is still measured and delivered; no round is begun.
        known = folder_of(self._home, program, run).exists()
        if not (known and fields.get("trained") is True):
            state.require_taking_part(self._home)
        program = on_proposed_line(program, fields.get("line"))
        what = (run, program.fingerprint, sites, program.codec.line)
        return self._start("propose", what, lambda: self._join(program, owner, run), fields)

    def _adopt(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        """Start from the parameters that do not travel, which are of the coordinator's weights.

        They are named by their hash and kept beside the run's memory. Without a `mark` the answer
        says whether they are `missing` here: they are not if the site has made the same.
        """
        joined, opened, mark = self._current_run(), self._opened, count(fields, "mark")
        if opened is None or self._found is None:
            raise no_run()
        self._enforcement.require_still_approved()
        sha256, due = str(fields.get("sha256")), self._found.lengths["kept"] // 4
        path = adopted.path_of(opened.memory, sha256)
        data = self._incoming.take("kept", mark) if mark else adopted.read(path, self._found.kept)
        found = adopted.are_those(data, sha256, due, came=bool(mark))

        def reopen() -> ServiceAnswer:
            self._check_same_run(joined)
            if not found:
                return {"missing": True}, b""
            if mark:
                adopted.replace_others(path, bytes(data), self._enforcement.check_room)
            kept = messages.unpack(data, {"kept": len(data) // 4})["kept"]
            self._open_with(replace(opened, kept=kept))
            try:
                self._enforcement.release.hidden(OPENING, self._open)
            except FedSightError:  # what was of no use takes no room
                self._open_with(opened)
                if mark:
                    path.unlink(missing_ok=True)
                raise
            return {}, b""

        return self._start("adopt", (sha256, mark), reopen, fields)

    def _open_with(self, data: OpenData) -> None:
        """What is asked from now on is meant for these values; what was asked before is not done.

        That holds for values that come back, too: a request may have come in between, and be meant
        for those that another request then kept from being opened.
        """
        self._opened = data
        self._joined = object()

    def _piece(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        """Receive a piece of a vector that the current run may need."""
        self._current_run()
        assert self._found is not None
        self._incoming.add(fields, body, self._found.lengths)
        return {}, b""

    def _probe(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        """Random bytes, as many as are asked for, by which the coordinator measures the line."""
        return {}, secrets.token_bytes(min(count(fields, "bytes"), messages.PIECE))

    def _train(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        """Train in a round; the result is the protected update."""
        round, joined = count(fields, "round"), self._current_run()
        self._enforcement.check_round(round, count(fields, "sites"))
        self._require_adopted()
        begins = self._begin_round(round)
        model = self._model.of(round - 1, fields)
        if model is None:
            return MISSING, b""
        extras = self._incoming.several("extras", fields)
        step = TrainStep(
            Order(round, model, extras), count(fields, "accepted"), count(fields, "durable")
        )
        integers = self._found.integers if self._found else {}
        protection = self._secagg.protection(step, self._kept, fields, integers)
        # `durable` is left out: it removes only memory that this question does not need.
        about = fields.get("quantiser"), self._secagg.attempt().hex()
        question = self._question("update", step.order, step.accepted, fields, *about)
        if not begins and not self._enforcement.release.has_answered(question):
            self._enforcement.require_still_approved()
        work = lambda: self._trained(question, step, protection, joined)  # noqa: E731
        return self._start("train", (question,), work, fields)

    def _advertise(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        """Begin a round under secure aggregation."""
        binding = Binding.read(body)
        if not masks_sums(binding.quantiser):  # a model that is trained is still measured
            self._begin_round(binding.round)
        return self._secagg.answers["advertise"](fields, body)

    def _begin_round(self, round: int) -> bool:
        """Whether the round has not begun before; an error if the owner has refused the program
        since, or drained the site, which then finishes only the round that has begun."""
        if round == self._begun:
            return False
        self._enforcement.require_still_approved()
        state.require_taking_part(self._home)
        state.tell_job(self._home, self._asked("train", {}), round)
        self._begun = round
        return True

    def _measure(self, kind: str, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        """Measure the model, or (`calibrate`) how sure it is: sums, or why they are withheld."""
        joined, round = self._current_run(), count(fields, "round")
        self._enforcement.require_still_approved()
        rules = self._rules[kind]
        if why := rules.refusal(round):
            return {**withheld(round, why), "ticket": 0, "done": True}, b""
        self._require_adopted()
        model = self._model.of(round, fields)
        if model is None:
            return MISSING, b""
        step = rules.step(round, model, fields)
        of, about = rules.asks(step)
        order = Order(round, model)
        question = self._question(of, order, step.accepted, fields, *about, keys=rules.keys)
        if fields.get("ready") is True:  # it is asked before there are keys
            return self._ready(question, fields), b""
        answer = rules.answering(step, self._model.digest(order, self._kept), fields)
        work = lambda: self._measured(question, (step, answer), rules, joined)  # noqa: E731
        return self._start(kind, (question,), work, fields)

    def _ready(self, question: Question, fields: dict[str, Any]) -> dict[str, Any]:
        """Whether sums may leave, as far as it is known before they are computed."""
        release = self._enforcement.release
        told: dict[str, Any] = {"ready": True}
        try:
            release.check_question(question)
            told |= release.summable(question.round, fields)
        except DeployError as error:
            told = withheld(question.round, error.cause)
        return {**told, "ticket": 0, "done": True}

    def _deliver(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        """Receive the model that the run ended with; what is made of it here stays here.

        Its digest names it. Without a `vector` the answer says whether it is `missing` here.
        """
        joined, opened, round = self._current_run(), self._opened, count(fields, "round")
        assert opened is not None
        assert self._found is not None
        self._enforcement.require_still_approved()
        self._enforcement.check_end(round)
        sent = count(fields, "vector") > 0
        vector = self._model.of(round, fields) if sent else self._model.known(round)
        due = self._found.lengths["vector"] // 4
        end = FinalOrder.of(fields, opened, vector, due, sent)
        # It says how long this site may train by itself: not longer than it trained for the run.
        counted = min(end.counted, self._enforcement.release.updates)
        end = replace(end, counted=counted, texts=self._found.texts)

        def keep() -> ServiceAnswer:
            self._check_same_run(joined)
            there = end.keep(self._home, self._enforcement.check_room)
            return ({} if there else {"missing": True}), b""

        return self._start("deliver", (end.digest, sent), keep, fields)

    def _wait(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        """Wait for some work."""
        return self._background.state(count(fields, "ticket"), fields)

    def _fetch(self, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        """Fetch a piece of the vector that some work resulted in."""
        start, stop = count(fields, "start"), count(fields, "stop")
        _, data = self._background.result(count(fields, "ticket")).result(0)
        return {}, bytes(data[start : min(stop, start + messages.PIECE)])

    @property
    def _kept(self) -> Tensor | None:
        """The parameters that do not travel, if they were sent."""
        return self._opened.kept if self._opened else None

    def _require_adopted(self) -> None:
        """Raise SiteError while the coordinator has not said which weights all sites start from."""
        assert self._opened is not None
        assert self._found is not None
        adopted.require(self._opened.program.model, self._kept, self._found.lengths["kept"])

    def _current_run(self) -> object:
        """What stands for the current run; SiteError if there is none."""
        if self._joined is None:
            raise no_run()
        return self._joined

    def _check_same_run(self, joined: object) -> None:
        """Work that was requested in one run must not be done in another, with other promises, or
        from other adopted values than the request and its keys were made for."""
        if self._joined is not joined:
            cause = "this site has joined another run or adopted other values since"
            raise SiteError(cause, "send the request again")

    # What passes the door -----------------------------------------------------------------

    def _question(
        self, kind: EntryKind, order: Order, accepted: int, fields: dict[str, Any], *about: Any,
        keys: str = "",
    ) -> Question:  # fmt: skip
        """The question in `fields`, with all that its answer depends on besides the images: run and
        program, the vectors that are sent and those that are not, which memory, `about`, and which
        `keys` the masks of sums are made of."""
        assert self._opened is not None
        run, program = self._opened.memory.name, self._opened.program.fingerprint
        round, sent = order.round, self._model.digest(order, self._kept)
        same = digest_of(kind, run, program, round, sent, accepted, *about)
        digest = digest_of(same, keys) if keys else same
        doing = f"training in round {round}" if kind == "update" else f"measuring round {round}"
        personal = kind == "figures" and self._found is not None and self._found.personal
        asked = Question(kind, digest, doing, round, count(fields, "attempt"), personal)
        if kind in CALIBRATION:  # of one model for a run, whichever round it is after
            model = digest_of(round, sent)
            return replace(asked, round=0, model=model, same=same if keys else "")
        return asked

    def _join(self, program: Program, owner: OwnerSettings, run: str) -> ServiceAnswer:
        self._joined = self._found = None
        memory = self._enforcement.begin_run(program, owner, run)
        # A copy of a proposal may come late, and the coordinator has sites adopt once in a job.
        kept = self._kept
        if self._opened is None or self._opened.memory != memory:
            self._begun, kept = 0, None  # that was of another run, or another program
        job_lease.claim(memory, self._token)
        self._opened = OpenData(program, owner, self._name, memory, self._token, kept)
        state.tell_job(self._home, self._asked("train", {}), self._begun)
        self._secagg.join(program, owner, run, self._enforcement.release)
        log_line = {"program": Asked.short(program.name), "fingerprint": program.fingerprint}
        log_line["algorithm"] = str(program.algorithm.registered)

        rules, calibration = self._enforcement.sum_rules(lambda: self._found, self._secagg)
        self._rules = {"measure": rules, "calibrate": calibration}

        def declared() -> Answer:
            opened = self._open()
            contents_of_run(memory, opened.hashes)
            declaration = rules.declare(opened.declaration, opened.bare)
            facts = {**log_line, "images": declaration.train}
            return Answer({"declared": declaration.table()}, facts=facts)

        # What a program and an owner's settings cannot have together needs no image to be seen.
        question = Question(
            "declaration",
            digest_of("declaration", run, program.fingerprint),
            OPENING,
            public=(CausedOutsideError, DeployError),
        )
        answer = self._enforcement.release.answer(question, FREE, declared)
        if self._found is not None:
            self._model.join(self._found)
        self._joined = object()
        return {**answer.fields, "package": package.installed().table()}, answer.data

    def _trained(
        self, question: Question, step: TrainStep, protection: Protection, joined: object
    ) -> ServiceAnswer:
        self._check_same_run(joined)
        assert self._found is not None

        def work(step: TrainStep = step) -> Answer:
            began = time.monotonic()
            found: TrainedUpdate = self._ask_trainer(step, question.doing)
            seconds = float(f"{time.monotonic() - began:.4f}")
            if found.failure:  # which stays here
                with contextlib.suppress(StoreError):  # which would show that it failed
                    self._log.write("failed", what=question.doing, why=found.failure)
            facts = {"vectors": found.sizes, "images": found.weight, "seconds": seconds}
            metrics = messages.metrics_table(found.metrics)
            header = {"round": step.order.round, "weight": found.weight, "metrics": metrics}
            return Answer(header, protection.apply(found), facts)

        charge = protection.charge or self._found.charge
        answer = self._enforcement.release.answer(
            question, charge, work, lambda: work(replace(step, blank=True))
        )
        return {**answer.fields, "bytes": len(answer.data)}, answer.data

    def _measured(
        self,
        question: Question,
        asked: tuple[SumStep, Callable[[Any], Answer]],
        rules: SumRules,
        joined: object,
    ) -> ServiceAnswer:
        self._check_same_run(joined)
        step, answering = asked

        def work(step: SumStep = step) -> Answer:
            return answering(self._ask_trainer(step, question.doing))

        instead = lambda: rules.instead(step, work)  # noqa: E731
        try:
            answer = self._enforcement.release.answer(question, rules.charge, work, instead)
        except DeployError as error:  # the ledger does not permit it
            return withheld(step.round, error.cause), b""
        return dict(answer.fields), answer.data

    def _open(self) -> Opened:
        """Have the trainer open the images of the current run."""
        assert self._opened is not None
        found: Opened = self._ask_trainer(self._opened, OPENING)
        return found
