"""The gate of a site: nothing leaves before the owner's contract was asked and the ledger written.

What cannot be read, written or understood here refuses: then nothing leaves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsight.core.errors import DeployError, SiteError
from fedsight.deploy.declaration import Declaration
from fedsight.deploy.site.log import SiteLog
from fedsight.deploy.site.owner import Owner, read_owner
from fedsight.deploy.site.trainer import TrainedUpdate
from fedsight.engines.remote import messages
from fedsight.governance.contract import AT_THE_SITE, Contract, protections
from fedsight.governance.entries import LedgerEntry, canonical
from fedsight.governance.ledger import Ledger
from fedsight.program import rules
from fedsight.program.program import Program


@dataclass(frozen=True)
class Asker:
    """Who asks, as far as this site could check it: nobody, by default."""

    operators: tuple[str, ...] = ()  # who signed the job, under the federation's authority
    fingerprint: str = ""  # of the program that they signed


@dataclass(frozen=True)
class _Run:
    """What was agreed upon."""

    contract: Contract
    program: Program
    ledger: Ledger
    entry: LedgerEntry  # what all entries of the run have in common


class Enforcement:
    """Contract, ledger and log of one job."""

    def __init__(self, home: Path, asker: Asker) -> None:
        self._home = home
        self._asker = asker
        self.log = SiteLog(home)
        self._run: _Run | None = None

    def admit(self, program: Program, sites: int) -> Owner:
        """The owner's word, if it permits this program among so many sites."""
        owner = read_owner(self._home / "owner.toml", None)
        contract, asker = owner.contract, self._asker
        contract.refuse_asker(asker.operators)
        if contract.operators is not None and asker.fingerprint != program.fingerprint:
            raise DeployError(
                f"contract.operators: {', '.join(asker.operators)} signed the program "
                f"{asker.fingerprint[:12] or 'without a name'}, not {program.fingerprint[:12]}",
                "let the operator start the run anew",
            )
        contract.refuse(program)
        if unsound := rules.problems(program):  # then no epsilon of it holds
            raise DeployError(f"the program is unsound: {unsound[0].cause}", unsound[0].cure)
        contract.refuse_few(sites)
        return owner

    def join(self, program: Program, owner: Owner, run: str) -> None:
        """Begin a run: the ledger must be whole, and what is left of epsilon must do for it."""
        self._run = None
        contract, stated = owner.contract, protections(program)
        ledger = Ledger(self._home)
        entry = LedgerEntry(
            "update",
            run=run,
            program=program.fingerprint,
            asked_by=self._asker.operators,
            protections=stated,
            data_set=contract.data_set,
            enforced=bool(AT_THE_SITE & set(stated)),
            delta=None if contract.epsilon is None else contract.delta,
        )
        if (limit := contract.limit) is not None:
            spent = ledger.spent(contract.data_set, limit.delta, limit.trusted)
            if spent >= limit.epsilon:
                raise DeployError(
                    f"contract.epsilon: {limit.epsilon:g} is permitted and {spent:.4g} is spent",
                    "its owner decides: contract.epsilon in site.toml",
                )
        self._run = _Run(contract, program, ledger, entry)

    def declaration(self, declared: Declaration) -> None:
        """What the site says of its images is about to leave."""
        run, table = self._joined(), declared.table()
        mark = _sha(canonical(table).encode())
        self._run = run = replace(run, entry=replace(run.entry, declared=mark))
        size = len(json.dumps(table))
        self._write(replace(run.entry, kind="declaration", bytes=size, sha256=mark, enforced=False))
        facts: dict[str, Any] = {"run": run.entry.run, "program": run.program.name}
        facts |= {"fingerprint": run.entry.program, "algorithm": run.program.algorithm.registered}
        self.log.write("joined", **facts, images=declared.train)

    def refuse_round(self, round: int, sites: int) -> None:
        """Raise DeployError or SiteError if nothing is to be trained in this round."""
        run = self._joined()
        run.contract.refuse_few(sites)
        if not 1 <= round <= run.program.rounds.rounds:
            raise SiteError(
                f"the program has {run.program.rounds.rounds} rounds, and no round {round}",
                "start a run of more rounds",
            )

    def refuse_figures(self) -> None:
        """Raise DeployError if sums over the test images may not leave, SiteError without a run."""
        self._joined().contract.refuse_figures()

    def update(
        self, round: int, found: TrainedUpdate, data: bytes | memoryview, seconds: float
    ) -> None:
        """An update is about to leave."""
        run = self._joined()
        table = messages.metrics_table(found.metrics)
        mark = hashlib.sha256(data)
        mark.update(canonical([found.weight, table]).encode())
        entry = replace(run.entry, round=round, bytes=len(data), sha256=mark.hexdigest())
        entry = replace(entry, event=found.event, times=found.times)
        self._write(entry)
        sizes = {name: value.numel() for name, value in found.payload.items()}
        facts = {"images": found.weight, "seconds": float(f"{seconds:.4f}")}
        self._note("update", entry, vectors=sizes, **facts)

    def figures(self, round: int, tables: Sequence[Mapping[str, Any]]) -> None:
        """Sums over test images are about to leave."""
        run = self._joined()
        text = json.dumps(tables).encode()
        entry = replace(run.entry, kind="figures", round=round, protections=(), enforced=False)
        entry = replace(entry, bytes=len(text), sha256=_sha(text))
        self._write(entry)
        self._note("figures", entry)

    def _joined(self) -> _Run:
        if self._run is None:
            raise SiteError("no run was agreed upon", "propose one first")
        return self._run

    def _write(self, entry: LedgerEntry) -> None:
        run = self._joined()
        run.ledger.append(entry, run.contract.limit if entry.kind == "update" else None)

    def _note(self, event: str, entry: LedgerEntry, **facts: Any) -> None:
        common = {"run": entry.run, "round": entry.round, "bytes": entry.bytes}
        self.log.write(event, **common, **facts, protections=list(entry.protections))


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
