"""The process that makes a site's recogniser of the model that a run ended with.

    python -m fedsight.deploy.site.delivery.process HOME KEY

It is none of the processes that answer a coordinator, and tells nobody what it does: what it reads
is on the site's disk, and so is what it writes. Killed at any moment, it is started again and
begins anew, or from its last checkpoint where it trains.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fedsight.client.memory import MemoryStore
from fedsight.coordinator.store import RunStore
from fedsight.core import package
from fedsight.core.errors import ConfigError, DeployError, FedSightError, StoreError
from fedsight.core.files import make_folder
from fedsight.core.text import printable
from fedsight.data.contents import contents
from fedsight.deploy.declaration import open_site, without_weights
from fedsight.deploy.site import approvals
from fedsight.deploy.site.delivery import recognisers
from fedsight.deploy.site.delivery.received import (
    MAX_PROGRAM_NAME,
    WORK,
    Outcome,
    Received,
    ReceivedOrder,
)
from fedsight.deploy.site.log import SiteLog
from fedsight.deploy.site.owner import OwnerSettings, read_contract, read_owner
from fedsight.evaluation.delivery.at_site import FinalModel, choose_at_site
from fedsight.governance.ledger import Ledger
from fedsight.program import config
from fedsight.program.federation import Federation
from fedsight.program.looks import look_of
from fedsight.program.program import Program

NICE = 10  # whatever a coordinator waits for goes first


def deliver(home: Path, key: str) -> Outcome:
    """Make the recogniser of the order `key` of the site in `home`; what became of it is recorded.

    Raises StoreError if the order is broken, or that cannot be written down.
    """
    received = Received(home)
    order = received.read(key)
    if order is None:
        raise StoreError(f"there is no order {key} in {home}", "this is a bug in FedSight")
    try:
        outcome = _delivered(received, key, order)
    except FedSightError as error:
        outcome = _failed(error)
    except Exception as error:  # a bug: report it, and continue
        traceback.print_exc()
        bug = type(error).__name__
        cure = "see delivery.txt at the site; this is a bug in FedSight"
        outcome = _failed(DeployError(f"the recogniser cannot be made ({bug})", cure))
    received.conclude(key, outcome)
    if outcome.state == "delivered":
        received.tidy(key)
    return outcome


def _delivered(received: Received, key: str, order: ReceivedOrder) -> Outcome:
    home = received.home
    if (home / "ledger.sqlite").exists():  # before anything is imported or opened
        approvals.require_not_declined(Ledger(home).decision(order.fingerprint))
    program = _program(home, order)
    owner = read_owner(home / "owner.toml", None)
    package.require_unchanged()  # this process has imported most of it just now
    owner.contract.check_packages([package.installed().sha256])
    torch.set_num_threads(owner.speed.threads)
    federation, number = _opened(program, owner, order.site)
    kept = MemoryStore(home / order.memory).load(order.site, order.accepted + 1)
    vectors = received.vectors(key)
    own = kept.get("personal") if program.differs(federation.network) else None
    final = FinalModel(vectors["vector"], vectors.get("kept"), own, order.round, order.counted)
    alone = None
    if owner.delivery.alone and order.counted:  # else nothing bounds how long it would train
        alone = _work(received.folder(key), federation)
    found = choose_at_site(federation, number, final, owner.speed.client, alone)
    folder = recognisers.place(home, key, program.name)
    data = federation.dataset
    now = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {**found.facts, "time": now}
    seen = _look(federation, number)
    made = recognisers.Recogniser(
        found.tensors, data.classes, data.preprocess, facts, found.trust, seen
    )
    recognisers.write(folder, program, order, made)
    place = str(folder.relative_to(home))
    told = {"program": printable(program.name, MAX_PROGRAM_NAME), "run": order.run, "folder": place}
    with contextlib.suppress(StoreError):  # nothing has left: the log is for the owner here
        SiteLog(home).write("recogniser", **told, kind=facts["kind"], gain=facts["gain"])
    return Outcome("delivered", owner.delivery.alone, place, time=now, facts=facts)


def _program(home: Path, order: ReceivedOrder) -> Program:
    """The run's program; of its plug-ins, only those that the contract still permits."""
    table: dict[str, Any] = dict(order.program)
    given = [str(one.get("sha256")) for one in table.get("plugins", [])]
    if given:  # before anything is imported
        read_contract(home / "owner.toml").check_plugins(given)
    program, _ = config.parse(table, home)
    if program.fingerprint != order.fingerprint:
        raise DeployError(
            "the program of the run has another fingerprint in this version of FedSight",
            "install the version that the run was trained with, and start the site again",
        )
    return program


def _opened(program: Program, owner: OwnerSettings, name: str) -> tuple[Federation, int]:
    """The site's images as for a run; files that only the coordinator has are not looked for."""
    federation, number = open_site(program, owner, name)
    plain = replace(without_weights(program), algorithm=program.algorithm.fresh())
    return replace(federation, program=plain), number


def _look(federation: Federation, site: int) -> dict[str, Any] | None:
    """The mean and deviation of the site's images, if images are normalised by them: they stay
    here, beside the recogniser, which is of no use without."""
    if federation.program.data.harmonise != "site":
        return None
    mean, std = look_of(federation, site)
    return {"mean": list(mean), "std": list(std)}


def _work(folder: Path, federation: Federation) -> RunStore:
    """Where the checkpoints of the model trained alone are kept, those on these images only."""
    hashes = contents(federation.dataset).hashes
    found = "".join(value[:8] for _, value in sorted(hashes.items()))
    store = RunStore(folder / WORK / found)
    make_folder(store.folder)
    store.remove_partial_files()
    return store


def _failed(error: FedSightError) -> Outcome:
    if isinstance(error, ConfigError):  # the first problem says more than how many there are
        first = error.problems[0]
        error = DeployError(f"{first.where}: {first.cause}", first.cure)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Outcome("failed", why=error.cause, cure=error.cure, time=now)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICE)
    deliver(Path(sys.argv[1]), sys.argv[2])
