"""Contract enforcement: nothing leaves a site before its contract and its ledger permit it.

It fails closed: if the contract or the ledger cannot be read or written, nothing leaves.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsight.compression.settings import Line
from fedsight.core import package
from fedsight.core.errors import DeployError, SiteError
from fedsight.deploy.site import approvals, vocabulary
from fedsight.deploy.site.answers import AnswerStore
from fedsight.deploy.site.calibration import CalibrationRules
from fedsight.deploy.site.figures import FigureRules
from fedsight.deploy.site.log import SiteLog
from fedsight.deploy.site.memories import occupied, open_memory
from fedsight.deploy.site.named_files import refuse_files, without_files
from fedsight.deploy.site.owner import OwnerSettings, read_owner
from fedsight.deploy.site.refusals import Asked
from fedsight.deploy.site.release import Release, no_run
from fedsight.deploy.site.secagg_client import SiteSecAgg
from fedsight.deploy.site.trainer import Opened
from fedsight.governance.contract import ADDED_AT_SITE, Contract, is_sha256, protections
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger
from fedsight.program import config, rules, taking_part
from fedsight.program.auto_codec import needs_line, on_line
from fedsight.program.facts import Facts
from fedsight.program.program import Program

UPDATE = "run the same FedSight version at the coordinator and at the sites"


@dataclass(frozen=True)
class Requester:
    """Who started the job, as far as this site could verify it; by default nobody."""

    operators: tuple[str, ...] = ()  # signed the job, with certificates of the authority
    fingerprint: str = ""  # of the program that they signed

    def of(self, program: str) -> tuple[str, ...]:
        """The operators who signed a job for the program with this fingerprint. Whoever has the
        coordinator's machine can begin an old job again, and propose another program in it: that
        one nobody has signed."""
        return self.operators if self.fingerprint == program else ()


@dataclass(frozen=True)
class _Run:
    """The run that this site takes part in."""

    contract: Contract
    program: Program
    release: Release


class ContractEnforcement:
    """Decides what the site takes part in, in one job.

    `home` is the site's folder, and `settings` the file in it with the owner's settings: those that
    the site was started with.
    """

    def __init__(self, home: Path, requester: Requester, settings: str = "owner.toml") -> None:
        self._home = home
        self._settings = home / settings
        self.requester = requester
        self.log = SiteLog(home)
        self._run: _Run | None = None
        # Read once: a coordinator may propose again and again, and a long ledger takes seconds.
        self._ledger: Ledger | None = None

    def check_program(self, program: Program, sites: int) -> OwnerSettings:
        """Return the owner's settings if they permit `program` with so many sites.

        Raises DeployError, naming the clause, if they do not.
        """
        owner = read_owner(self._settings, None)
        contract, requester = owner.contract, self.requester
        contract.check_operators(requester.operators)
        if contract.operators is not None and requester.fingerprint != program.fingerprint:
            raise DeployError(
                f"contract.operators: {', '.join(requester.operators)} signed the program "
                f"{requester.fingerprint[:12] or 'without a fingerprint'}, not "
                f"{program.fingerprint[:12]}",
                "ask the operator to start the run again",
            )
        contract.check_program(program)
        contract.check_memory(program, Facts.of(program).remembers)
        vocabulary.require_stated(program, owner)
        owner.secure.check_program(program.secure)
        if unsound := rules.problems(program):  # its epsilon would not hold
            raise DeployError(f"the program is unsound: {unsound[0].cause}", unsound[0].cure)
        # In virtual time each site has a pace of its own, by name, and trains for as many epochs as
        # it allows: in a masked sum the others could be made to count for next to nothing.
        if simulated := taking_part.elsewhere(program):
            first = simulated[0]
            raise DeployError(f"the program is for a simulation: {first.cause}", first.cure)
        # A buffered round is made of the first replies, not of those of all sites.
        buffered = program.rounds.buffered
        contract.check_sites(min(sites, program.rounds.replies(sites)) if buffered else sites)
        return owner

    def check_packages(self, coordinator: object) -> None:
        """Raise DeployError unless the contract permits the FedSight code that runs here, and the
        one that the coordinator states."""
        contract = read_owner(self._settings, None).contract
        running = package.installed(), package.stated(coordinator)
        contract.check_packages(one.sha256 for one in running)

    def read_program(self, proposed: Any) -> Program:
        """The proposed program, as this site builds it: without the files that it names, and with
        plug-ins of this site's own.

        Raises DeployError, before anything is imported, for a plug-in that the owner has not
        permitted, and before anything is opened for other files that it names; ConfigError for a
        program that is not one.
        """
        if not isinstance(proposed, dict):
            raise DeployError("the coordinator proposed no program", "update the coordinator")
        table = without_files(proposed)
        table["plugins"] = self._local_plugins(table.get("plugins", []))
        program = config.parse(table, self._home)[0]
        refuse_files(program, self._home)
        return program

    def _local_plugins(self, given: Any) -> list[dict[str, str]]:
        """The plug-ins of a proposed program as files of this site; nothing is imported here.

        Only code whose SHA-256 the owner wrote into the contract is run, only from the site's own
        folder `plugins`, whatever paths the coordinator names, and only for an operator whom the
        contract permits. Raises DeployError otherwise.
        """
        if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
            raise DeployError("the program's plug-ins are not a list of tables", UPDATE)
        wanted = list(dict.fromkeys(str(one.get("sha256")) for one in given))
        if not wanted:
            return []
        if not all(is_sha256(one) for one in wanted):
            raise DeployError("the program names a plug-in without a valid SHA-256", UPDATE)
        contract = read_owner(self._settings, None).contract
        contract.check_operators(self.requester.operators)
        contract.check_plugins(wanted)
        found = _plugin_files(self._home / "plugins")
        for sha256 in wanted:
            if sha256 not in found:
                raise DeployError(
                    f"the plug-in with the SHA-256 {sha256} is permitted, but not at this site",
                    "let its owner copy the file into the folder `plugins` of the site",
                )
        return [{"path": str(found[sha256]), "sha256": sha256} for sha256 in wanted]

    def begin_run(self, program: Program, owner: OwnerSettings, run: str) -> Path:
        """Take part in the run `run` from now on; returns the folder of its memory.

        Raises StoreError if the ledger is not intact, DeployError if epsilon is spent or the
        contract has no room for the run.
        """
        self._run = None
        contract, stated = owner.contract, protections(program)
        ledger = self._known_ledger()
        template = LedgerEntry(
            "update",
            run=run,
            program=program.fingerprint,
            asked_by=self.requester.of(program.fingerprint),
            protections=stated,
            data_set=contract.data_set,
            enforced=bool(ADDED_AT_SITE & set(stated)),
            delta=None if contract.epsilon is None else contract.delta,
        )
        self.check_spent(contract)
        memory = open_memory(self._home, program, run, contract)
        answers = AnswerStore(memory / "answers")
        release = Release(contract, ledger, template, answers, self.log)
        self._run = _Run(contract, program, release)
        return memory

    def require_approval(self, program: Program, contract: Contract, run: str) -> None:
        """Raise DeployError if the owner has refused `program` by hand, and, where the contract
        leaves programs to the owner, HeldError until it is approved. It depends on nothing else."""
        if contract.approval:
            name = Asked.short(program.name)
            by = self.requester.of(program.fingerprint)
            asked = Asked(run, program.fingerprint, name, by)
            approvals.require(self._home, self._known_ledger(), program, asked)
        else:
            approvals.require_not_declined(self.decision(program))

    def require_still_approved(self) -> None:
        """Raise DeployError if the owner has refused the program of the current run since."""
        if self._run is not None:
            approvals.require_not_declined(self.decision(self._run.program))

    def decision(self, program: Program) -> LedgerEntry | None:
        """What the owner has decided about a program by hand; None if nothing."""
        return self._known_ledger().decision(program.fingerprint)

    def check_spent(self, contract: Contract) -> None:
        """Raise DeployError if all the epsilon of the contract is spent, StoreError if the ledger
        is not intact."""
        if (limit := contract.limit) is None:
            return
        spent = self._known_ledger().spent(contract.data_set, limit.delta, limit.trusted)
        if spent >= limit.epsilon:
            raise DeployError(
                f"contract.epsilon: {limit.epsilon:g} is permitted and {spent:.4g} is spent",
                "the site's owner decides: see contract.epsilon in site.toml",
            )

    def record_refusal(self, asked: Asked, why: str) -> None:
        """Record in the ledger that a program was refused, as `Ledger.append_refusal` does;
        StoreError if it is not intact."""
        entry = LedgerEntry("refused", run=asked.run, program=asked.program, why=why)
        self._known_ledger().append_refusal(replace(entry, asked_by=asked.operators))

    def _known_ledger(self) -> Ledger:
        """The site's ledger, with all that other processes have written."""
        if self._ledger is None:
            self._ledger = Ledger(self._home)
        else:
            self._ledger.refresh()
        return self._ledger

    @property
    def release(self) -> Release:
        """The door of the current run; SiteError without a run."""
        return self._current_run().release

    def check_round(self, round: int, sites: int) -> None:
        """Raise DeployError or SiteError if this site must not train in the round."""
        run = self._current_run()
        run.contract.check_sites(sites)
        run.contract.check_room(0, occupied(self._home))
        if not 1 <= round <= run.program.rounds.rounds:
            raise SiteError(
                f"the program has {run.program.rounds.rounds} rounds; there is no round {round}",
                "start a run with more rounds",
            )

    def check_end(self, round: int) -> None:
        """Raise SiteError if a run cannot have ended with `round`."""
        rounds = self._current_run().program.rounds.rounds
        if not 1 <= round <= rounds:
            cause = f"the program has {rounds} rounds; it cannot have ended with round {round}"
            raise SiteError(cause, "update the coordinator")

    def check_room(self, more: int) -> None:
        """Raise DeployError if the contract has no room for so many more bytes of a run."""
        self._current_run().contract.check_room(0, occupied(self._home) + more)

    def sum_rules(
        self, opened: Callable[[], Opened | None], secagg: SiteSecAgg
    ) -> tuple[FigureRules, CalibrationRules]:
        """The owner's rules about sums over test images, for the current run; `opened`: what the
        images turned out to be like, `secagg`: what masks them."""
        run = self._current_run()
        figures = FigureRules(run.contract, run.program, lambda: run.release.evaluations)
        return figures, CalibrationRules(run.contract, run.program, opened, secagg)

    def _current_run(self) -> _Run:
        if self._run is None:
            raise no_run()
        return self._run


def _plugin_files(folder: Path) -> dict[str, Path]:
    """The plug-in files of a site by their SHA-256.

    What is not a file, cannot be read, or lies elsewhere (a link) is left out.
    """
    folder, found = folder.resolve(), {}
    for path in sorted(folder.glob("*.py")):
        if path.is_file() and path.resolve().is_relative_to(folder):
            with contextlib.suppress(OSError):
                found[_sha256(path.read_bytes())] = path
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def on_proposed_line(program: Program, line: object) -> Program:
    """The program for the line that was proposed with it, if its codec is chosen by that."""
    if not needs_line(program):
        return program
    try:
        return on_line(program, Line.model_validate(line))
    except ValueError:
        cause = "codec.name is 'auto', and the proposal has no valid line by which it chooses"
        raise DeployError(cause, "update the coordinator") from None
