"""One segment of a deployed run: the round loop, from the last checkpoint on, in one FLARE job.

A job's sites are fixed when it starts. So a segment ends when the run is finished, when a round
fails, or, after a round, when a site of the federation has come back and wants in; the next
segment goes on from the checkpoint (`deploy/server/scheduler.py`).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedsight.coordinator.callbacks import Callback, Event, RoundEnded
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import RunStore
from fedsight.core import locks
from fedsight.core.errors import DeployError, EngineError, FedSightError, SiteError, StoreError
from fedsight.core.layout import Kind
from fedsight.core.settings import Settings
from fedsight.deploy.declaration import Declaration, deviants, gather, read_declaration
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.federation import FederationFolder as Folder
from fedsight.deploy.processes import memory_reclaim
from fedsight.engines.remote import messages
from fedsight.engines.remote.conversation import Link, Talk, converse, reason
from fedsight.engines.remote.engine import RemoteEngine
from fedsight.evaluation.conclusion import Conclusion
from fedsight.evaluation.description import describe
from fedsight.privacy.noise import secret_at
from fedsight.program.federation import Federation
from fedsight.program.program import Program
from fedsight.runs import lifecycle

OUTCOME = "segment.json"
GONE = 40.0  # seconds without a sign of life after which a site counts as gone
PATIENCE = 30.0  # seconds to wait for the coordinator of an earlier segment to be gone
log = logging.getLogger(__name__)


class Handover(Exception):  # noqa: N818 - not an error: the next segment goes on
    """Another site is there; a new segment takes it in."""


def segment(folder: Path, run: str, fingerprint: str, number: int, link: Link) -> None:
    """Carry the run `run` of the federation in `folder` on; `segment.json` says how it ended."""
    federation = Folder.open(folder)
    place = (federation.runs / run).resolve()
    if place.parent != federation.runs.resolve() or not place.is_dir():
        raise DeployError(f"'{run}' is no run of this federation", "start it with `fedsight run`")
    store = RunStore(place)

    def ends(outcome: dict[str, Any]) -> None:
        log.info("segment %d ends: %s", number, outcome)
        with contextlib.suppress(StoreError):  # the disk is full: the job's end says enough
            store.write_json(OUTCOME, {"number": number, **outcome})

    try:
        with alone(store.folder):
            # Whoever sees the folder free again must find the outcome: it is written before that.
            try:
                store.write_json(OUTCOME, {"number": number, "state": "running"})
                _carry_on(federation, store, fingerprint, link)
            except (Handover, FedSightError, OSError) as why:
                ends(_outcome(why))
            else:
                ends({"state": "finished"})
    except FedSightError as error:  # another coordinator is at work
        ends(_outcome(error))


def _outcome(why: Exception) -> dict[str, Any]:
    """What is written of a segment that ended before the run did."""
    if isinstance(why, Handover):
        return {"state": "handover", "why": str(why)}
    if not isinstance(why, FedSightError):
        why = StoreError(f"the coordinator cannot go on: {why}", "look at its disk")
    again = isinstance(why, SiteError)  # the site may be back, or do better, next time
    outcome = {"state": "failed", "again": again, "family": type(why).__name__}
    return {**outcome, "cause": why.cause, "cure": why.cure}


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one coordinator at a time writes into a run's folder."""
    cause = f"another coordinator is at work in {folder}"
    with locks.hold(folder / ".lock", PATIENCE, EngineError(cause, "wait until it has ended")):
        yield


def _carry_on(folder: Folder, store: RunStore, fingerprint: str, link: Link) -> None:
    program, speed = store.program()
    if program.fingerprint != fingerprint:
        raise StoreError(f"{store.folder} holds another program", "start the run anew")
    facts = store.read_json("run.json")
    roster = {
        site: read_declaration(table, site) for site, table in facts.get("declared", {}).items()
    }
    found, absent = _propose(program, str(facts["id"]), link, folder.revoked())
    odd = deviants(found, roster)
    least = program.rounds.quorum
    if odd and (least is None or len(found) - len(odd) < least):
        raise next(iter(odd.values()))
    for site, error in odd.items():
        del found[site]
        absent[site] = f"{error.cause}; {error.cure}"
    for site, declared in found.items():
        if roster.setdefault(site, declared) != declared:
            absent[site] = f"site '{site}' has other images than when it joined this run"
    if not roster:
        raise SiteError(f"no site takes part: {'; '.join(absent.values())}", "look at the sites")
    for site, why in absent.items():
        folder.note("absent", run=store.folder.name, site=site, why=why)
    if absent and program.rounds.quorum is None:
        raise SiteError(
            f"not every site takes part: {'; '.join(absent.values())}",
            "settle that with the site's owner, or set rounds.quorum to go on without it",
        )
    federation = gather(program, roster)
    secret = secret_at(store.folder / "noise.key") if program.privacy.protects else None
    session = Session(federation, secret)
    described = describe(session, "run")
    kept: dict[str, Any] = {
        key: facts[key] for key in ("id", "federation", "created") if key in facts
    }
    tables = {site: declared.table() for site, declared in roster.items()}
    store.write_json("run.json", {**described, **kept, "declared": tables})
    _hand_out_personal(federation, link, absent)
    checkpoint = lifecycle.rewound(store)
    accepted = {site: line["round"] for line in store.history() for site in line["sites"]}
    watch = _Watch(folder, link.sites, speed.checkpoint_every, program.rounds.rounds)
    watch.durable = checkpoint.round if checkpoint else 0
    engine = RemoteEngine(
        *(federation, link, absent, accepted, lambda: watch.durable, watch.has_left),
        run=str(facts["id"]),
    )
    watch.engine = engine
    memory_reclaim.settle()
    run = Conclusion(session, speed, store, "run", [watch], pictures=False)
    lifecycle.go(run, engine, checkpoint)


class _Watch(Callback):
    """Looks after each round whether another site of the federation is there."""

    engine: RemoteEngine

    def __init__(self, folder: Folder, asked: Sequence[str], every: int, rounds: int) -> None:
        self._folder = folder
        self._asked = asked  # the sites of this job
        self._every = every
        self._rounds = rounds
        self._began = time.time()
        self.durable = 0

    def has_left(self, site: str) -> bool:
        """Whether a site takes no more part in this job: revoked, gone, or started anew."""
        if site in self._folder.revoked():
            return True
        one = presence.presence(self._folder.presences, site)
        return one is not None and (one.since > self._began or one.silence > GONE)

    def on(self, event: Event) -> None:
        """After the checkpoint: hand over if somebody could join."""
        if not isinstance(event, RoundEnded) or event.checkpoint is None:
            return
        number = event.checkpoint.round
        present, revoked = self.engine.present(), self._folder.revoked()
        for site in present:
            if site in revoked:
                self.engine.absent[site] = f"site '{site}' was revoked"
        if number % self._every and number < self._rounds:
            return
        self.durable = number
        if number == self._rounds:
            return
        for name, one in presence.presences(self._folder.presences).items():
            new = name not in self._asked or one.since > self._began
            if one.alive and new and name not in present and name not in revoked:
                raise Handover(f"site '{name}' is there")


def _told(program: Program) -> dict[str, Any]:
    """The program as the sites are told it: where our files lie is no affair of theirs."""
    table = program.table()
    for item in fields(program):
        value = getattr(program, item.name)
        if isinstance(value, Settings):
            places = value.table().keys() - value.meaning().keys()
            table[item.name] = {**table[item.name], **dict.fromkeys(places, "elsewhere")}
    return table


def _propose(
    program: Program, run: str, link: Link, revoked: Mapping[str, str]
) -> tuple[dict[str, Declaration], dict[str, str]]:
    """Ask every site to take part; what the willing declare, and why the others do not."""
    found: dict[str, Declaration] = {}
    absent = {site: f"site '{site}' was revoked" for site in link.sites if site in revoked}
    asked = [site for site in link.sites if site not in revoked]
    header = {
        "run": run,
        "program": _told(program),
        "fingerprint": program.fingerprint,
        "sites": len(asked),
    }
    deadline = time.monotonic() + program.rounds.deadline

    def one(talk: Talk) -> None:
        answer = talk.finish("propose", header)
        try:
            found[talk.site] = read_declaration(answer.get("declared"), talk.site)
        except DeployError as error:
            raise SiteError(error.cause, error.cure) from None

    failed = converse([Talk(link, site, deadline) for site in asked], one)
    return found, {**absent, **{site: reason(error) for site, error in failed.items()}}


def _hand_out_personal(federation: Federation, link: Link, absent: dict[str, str]) -> None:
    """The initial personal slice, where it comes from a file of weights that only we have."""
    program = federation.program
    if program.model.weights is None:
        return
    layout = federation.layout
    if not layout.length(Kind.PERSONAL) + layout.length(Kind.FROZEN):
        return
    data = messages.pack([federation.initial[layout.kept]])

    def one(talk: Talk) -> None:
        mark = talk.send("personal", data)
        talk.finish("adopt", {"mark": mark})

    deadline = time.monotonic() + program.rounds.deadline
    talks = [Talk(link, site, deadline) for site in link.sites if site not in absent]
    absent.update({site: reason(error) for site, error in converse(talks, one).items()})
