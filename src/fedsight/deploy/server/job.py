"""One job of a deployed run: the round loop, from the last checkpoint on, in one FLARE job.

FLARE fixes the sites of a job when it starts. So a job ends when the run is finished, when a round
fails, or, after a round, when another site of the federation is ready to join; the next job
continues from the checkpoint (`deploy/server/scheduler.py`).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsight.coordinator.callbacks import Callback, Event, RoundComputed, RoundEnded
from fedsight.coordinator.folders import LOCK
from fedsight.coordinator.live import Live
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import Checkpoint, RunStore, last_orders
from fedsight.core import locks
from fedsight.core.errors import (
    DeployError,
    EngineError,
    FedSightError,
    SiteError,
    StoreError,
)
from fedsight.core.package import installed, require_unchanged
from fedsight.core.text import MAX_MESSAGE, printable
from fedsight.deploy.declaration import (
    Declaration,
    gather,
    grouped_tests,
    masked_tests,
    read_declaration,
    withheld,
)
from fedsight.deploy.earlier_sites import earlier_sites
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.processes import memory_reclaim
from fedsight.deploy.server import final_models
from fedsight.deploy.server.carried import Carried
from fedsight.deploy.server.joining import (
    Trained,
    propose,
    require_newest,
    send_kept,
    update_roster,
)
from fedsight.deploy.server.leavers import SITE_TIMEOUT
from fedsight.deploy.server.lines import lined
from fedsight.deploy.site.peer_keys import PeerKeys
from fedsight.engines.remote.conversation import JobEndedError, Link
from fedsight.engines.remote.engine import RemoteEngine, RunRecord
from fedsight.evaluation.conclusion import Conclusion
from fedsight.evaluation.description import describe
from fedsight.privacy.noise import secret_at
from fedsight.program.program import Program
from fedsight.runs import lifecycle

# What `run.json` says of a run from its first job on.
KEPT = ("id", "federation", "created", "earlier", "lines")
JOB_FILE = "job.json"  # in the run's folder: the state of its latest job
LOCK_TIMEOUT = 30.0  # seconds to wait for an earlier job's coordinator to end
log = logging.getLogger(__name__)


class Handover(Exception):  # noqa: N818 - not an error: the next job continues the run
    """Another site is connected; the next job will include it."""


def run_job(folder: Path, run: str, fingerprint: str, number: int, link: Link) -> None:
    """Continue the run `run` of the federation in `folder`; `job.json` records how the job ended.

    Raises DeployError if the federation has no such run.
    """
    federation = FederationFolder.open(folder)
    run_folder = (federation.runs / run).resolve()
    if run_folder.parent != federation.runs.resolve() or not run_folder.is_dir():
        raise DeployError(
            f"'{run}' is not a run of this federation", "start it with `fedsight run`"
        )
    store = RunStore(run_folder)

    def end(outcome: dict[str, Any]) -> None:
        log.info("job %d ends: %s", number, outcome)
        with contextlib.suppress(StoreError):  # the disk is full; the scheduler sees the job end
            store.write_json(JOB_FILE, {"number": number, **outcome})

    try:
        with exclusive(store.folder):
            # The outcome is written before the lock is released: the scheduler relies on that.
            try:
                store.write_json(JOB_FILE, {"number": number, "state": "running"})
                carried = Carried(federation.server_home, store, link.sites)
                try:
                    _continue_run(federation, store, fingerprint, link, carried)
                finally:
                    carried.write()
            except (Handover, FedSightError, OSError) as why:
                end(_outcome(why))
            except Exception as fault:  # an error of FedSight's own: the run must not seem to go on
                log.exception("job %d fails", number)
                end(_outcome(fault))
            else:
                end({"state": "finished"})
    except FedSightError as error:  # another coordinator holds the lock
        end(_outcome(error))


def read_outcome(store: RunStore, number: int) -> dict[str, Any] | None:
    """How job `number` ended, or that it is running; None before it starts.

    What the coordinator of an earlier job may still write is ignored.
    """
    found = store.read_json(JOB_FILE) if (store.folder / JOB_FILE).exists() else None
    return found if found is not None and found.get("number") == number else None


def _outcome(why: Exception) -> dict[str, Any]:
    """The outcome of a job that ended before the run was finished."""
    if isinstance(why, Handover):
        return {"state": "handover", "why": str(why)}
    if isinstance(why, JobEndedError):  # another one goes on
        return {"state": "lost", "family": "EngineError", "cause": why.cause, "cure": why.cure}
    if not isinstance(why, FedSightError | OSError):
        what = printable(f"{type(why).__name__}: {why}", MAX_MESSAGE)
        why = EngineError(
            f"the coordinator failed: {what}",
            "its log on the server's machine says where. The last checkpoint is intact",
        )
    if not isinstance(why, FedSightError):
        why = StoreError(f"the coordinator cannot continue: {why}", "check its disk")
    again = isinstance(why, SiteError) and not why.final  # the site may recover by the next job
    outcome = {"state": "failed", "again": again, "family": type(why).__name__}
    return {**outcome, "cause": why.cause, "cure": why.cure}


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let only one coordinator at a time write to a run's folder; EngineError after a timeout."""
    busy = EngineError(f"another coordinator is working in {folder}", "wait until it has ended")
    with locks.hold(folder / LOCK, LOCK_TIMEOUT, busy):
        yield


def _continue_run(
    folder: FederationFolder, store: RunStore, fingerprint: str, link: Link, carried: Callback
) -> None:
    require_unchanged()
    program, speed = store.program()
    if program.fingerprint != fingerprint:
        raise StoreError(f"{store.folder} contains another program", "start the run again")
    earlier = earlier_sites(store, program)
    program = lined(program, store, link)
    facts = store.read_json("run.json")
    declared = facts.get("declared", {})
    roster = {site: read_declaration(table, site) for site, table in declared.items()}
    if (store.folder / "summary.json").exists():
        _deliver_late(folder, store, program, roster, link)
        return
    absent = update_roster(folder, store, program, roster, link, earlier)
    federation = gather(program, roster)
    secret = secret_at(store.folder / "noise.key") if program.privacy.protects else None
    once = computed_once(program)
    if once:
        speed = speed.model_copy(update={"checkpoint_every": 1})
    session = Session(federation, secret)
    _describe(store, session, facts, roster)
    send_kept(federation, link, absent)
    checkpoint = lifecycle.rewound(store)
    unmeasured = store.load_unmeasured(checkpoint.round + 1 if checkpoint else 1)
    accepted = last_orders(_lines(store, unmeasured))
    watch = _SiteWatch(folder, link.sites, speed.checkpoint_every)
    if program.privacy.fixes_population(program.rounds.cohort):
        watch.awaited = frozenset(roster)
    watch.durable = checkpoint.round if checkpoint else 0
    noised = sorted(site for site, declared in roster.items() if declared.figures == "noised")
    record = RunRecord(
        *(absent, accepted, lambda: watch.durable, watch.has_left, str(facts["id"])),
        withheld=withheld(roster), recognise=_recogniser(folder), noised=noised,
        tests=masked_tests(roster), groups=grouped_tests(roster),
    )  # fmt: skip
    engine = RemoteEngine(federation, link, record)
    watch.engine = engine
    memory_reclaim.freeze_live_objects()
    live = Live(store.folder, stops=False)  # the scheduler answers a request to stop
    run = Conclusion(
        *(session, speed, store, "run"),
        [
            _UnmeasuredKeeper(store, None if once else session.protection.rounds),
            *(live, carried, watch),
        ],
        pictures=False,
        withheld=engine.withheld,
        noised=noised,
        before=[] if unmeasured is not None else [_WholeFigures(watch)],
        sums=engine,
    )
    live.absent(absent)
    live.begin()
    with contextlib.closing(engine):
        with contextlib.closing(live):
            lifecycle.go(run, engine, checkpoint, unmeasured)
        final_models.deliver(folder, store, engine)


def _describe(
    store: RunStore, session: Session, facts: Mapping[str, Any], roster: Mapping[str, Declaration]
) -> None:
    """Write `run.json`: what the run is, with what it has been since its first job."""
    kept = {key: facts[key] for key in KEPT if key in facts}
    kept["packages"] = _packages(store, facts)
    tables = {site: declared.table() for site, declared in roster.items()}
    store.write_json("run.json", {**describe(session, "run"), **kept, "declared": tables})


def _packages(store: RunStore, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The FedSight code with which the run goes on, here and at its sites, and after which round,
    behind that which it had before."""
    known, ours = list(facts.get("packages", [])), installed().table()
    if known and {**known[-1], **ours} == known[-1]:
        return known
    checkpoint = store.load_checkpoint()
    return [*known, {"after_round": checkpoint.round if checkpoint else 0, **ours}]


def _lines(store: RunStore, unmeasured: Checkpoint | None) -> list[dict[str, Any]]:
    """The lines of the rounds that are done, that of the model which is not measured yet too."""
    lines = store.history()
    if unmeasured is not None and unmeasured.unmeasured is not None:
        lines.append({"round": unmeasured.round, **unmeasured.unmeasured})
    return lines


def _deliver_late(
    folder: FederationFolder,
    store: RunStore,
    program: Program,
    roster: Mapping[str, Declaration],
    link: Link,
) -> None:
    """Send the model of a finished run to the sites of this job that took part and lack it."""
    others = [site for site in link.sites if site not in roster]
    unasked = dict.fromkeys(others, "it did not take part in the run")
    unasked |= {site: f"site '{site}' was revoked" for site in folder.revoked()}
    run = str(store.read_json("run.json")["id"])
    trained = Trained(len(roster), measured=True)
    _, absent, refused, _ = propose(program, run, link, unasked, trained, folder.revocations)
    require_newest(folder, refused)
    federation = gather(program, roster)
    send_kept(federation, link, absent)
    accepted = last_orders(store.history())
    record = RunRecord(absent, accepted, lambda: program.rounds.rounds, id=run)
    final_models.deliver(folder, store, RemoteEngine(federation, link, record))


def computed_once(program: Program) -> bool:
    """Whether a round's result is to be on the disk before anybody sees it.

    Then a coordinator that is killed while the model is measured does not compute the round again.
    It could with masks, but only over the same sites (`contract.sums`); and with noise of its own,
    but the two models that sites would see have fresh noise each, and one is accounted.
    """
    return program.secure.masks or program.privacy.noise_at == "coordinator"


class _UnmeasuredKeeper(Callback):
    """Writes each round's result before it is measured, or only that of the round `only`."""

    def __init__(self, store: RunStore, only: int | None) -> None:
        self._store, self._only = store, only

    def on(self, event: Event) -> None:
        """Write the result."""
        if isinstance(event, RoundComputed) and self._only in (None, event.checkpoint.round):
            self._store.save_checkpoint(event.checkpoint)


class _WholeFigures(Callback):
    """Has the last model measured once more if a site that trained in its round was not measured.

    It died in between. Before the round is recorded the job ends, and the next one, which the site
    can join, measures the same model; it does not wait for it for long. That needs the checkpoint
    of the round before: no round is trained again for figures. A revoked site does not join it.
    """

    def __init__(self, watch: _SiteWatch) -> None:
        self._watch = watch

    def on(self, event: Event) -> None:
        """Raise Handover."""
        if not isinstance(event, RoundEnded) or not event.last:
            return
        trained = {*event.line["sites"]} - {*self._watch.revoked()}
        missing = sorted({*event.line.get("not_measured", {})} & trained)
        if missing and self._watch.durable == event.line["round"] - 1:
            raise Handover(f"the figures lack site '{missing[0]}'; the model is measured once more")


def _recogniser(folder: FederationFolder) -> Callable[[str, str], None]:
    """What refuses a site whose identity key is another than in any earlier run."""
    known = PeerKeys(folder.folder)

    def recognise(site: str, key: str) -> None:
        try:
            known.record([(site, key)])  # it has proven that it holds the key
        except DeployError as error:
            raise SiteError(error.cause, error.cure) from None

    return recognise


class _SiteWatch(Callback):
    """Checks after each round whether another site of the federation is ready to join, or one whose
    owner has decided since."""

    engine: RemoteEngine

    def __init__(self, folder: FederationFolder, sites: Sequence[str], every: int) -> None:
        self._folder = folder
        self._sites = sites  # the sites of this job
        self._every = every  # rounds between checkpoints
        self._began = time.time()
        self.durable = 0  # the round of the last checkpoint
        self.awaited: frozenset[str] | None = None  # the only sites that can join; None: all

    def has_left(self, site: str) -> bool:
        """Whether a site has left this job: it was revoked, is silent, or was restarted."""
        if site in self._folder.revoked():
            return True
        one = presence.presence(self._folder.presences, site)
        gone = one is not None and (one.state == "leaving" or one.silence > SITE_TIMEOUT)
        return gone or (one is not None and one.since > self._began)

    def revoked(self) -> Collection[str]:
        """The sites that the operator has revoked."""
        return self._folder.revoked()

    def on(self, event: Event) -> None:
        """After a checkpoint, raise Handover if another site could join."""
        if not isinstance(event, RoundEnded) or event.checkpoint is None:
            return
        number = event.checkpoint.round
        present, revoked = self.engine.present(), self._folder.revoked()
        for site in present:
            if site in revoked:
                self.engine.absent[site] = f"site '{site}' was revoked"
        if number % self._every and not event.last:
            return
        self.durable = number
        if event.last:
            return
        for name, one in presence.presences(self._folder.presences).items():
            came = one.settled and (name not in self._sites or one.since > self._began)
            new = came or one.decided_since(self._began)
            new &= self.awaited is None or name in self.awaited
            if one.ready and new and name not in present and name not in revoked:
                raise Handover(f"site '{name}' is ready to join")
