"""What `fedsight site doctor --program` says: what the site would answer to a program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fedsight.core.finding import Finding
from fedsight.deploy.declaration import open_site
from fedsight.deploy.site.approvals import require_not_declined
from fedsight.deploy.site.enforcement import ContractEnforcement, Requester
from fedsight.deploy.site.folder import SiteFolder
from fedsight.deploy.site.memories import kept, occupied
from fedsight.deploy.site.owner import OwnerSettings, read_owner
from fedsight.deploy.site.trainer_process import permitted
from fedsight.governance.entries import LedgerEntry
from fedsight.language.message import message
from fedsight.program import config, plugins
from fedsight.program.program import Program

ENOUGH = 1_000_000  # sites: how many come is not known before the run


def permission(site: SiteFolder, settings: str, path: Path) -> Iterator[Finding]:
    """That the site would take part in the program in the file at `path`, and what that presumes.

    `settings`: the file in the site's folder with the owner's settings. Raises the error with which
    the site would refuse the program. As in a run, no file that the program names is opened, and no
    code is imported that the contract does not permit.
    """
    contract = read_owner(site.folder / settings, None).contract
    asked = Requester(tuple(contract.operators or ()))  # one of them will have to sign
    enforcement = ContractEnforcement(site.folder, asked, settings)
    program = _judge(site, enforcement, path)
    decision = enforcement.decision(program)
    require_not_declined(decision)
    value = message("permitted, with {n:,} sites or more", n=contract.sites)
    yield Finding(message("program"), "ok", value)
    if contract.approval:
        yield _approval(site, decision)
    if contract.operators is not None:
        names = ", ".join(contract.operators)
        value = message(
            "the site takes part only if one of these signs the job: {names}", names=names
        )
        yield Finding(message("operators"), "note", value)


def _approval(site: SiteFolder, decision: LedgerEntry | None) -> Finding:
    """Whether the owner has approved the program."""
    if decision is None:
        cure = message("fedsight site approve {site} FINGERPRINT", site=site.folder)
        return Finding(message("approval"), "note", message("it would wait for yours"), cure)
    return Finding(message("approval"), "ok", message("approved at {time}", time=decision.time))


def _judge(site: SiteFolder, enforcement: ContractEnforcement, path: Path) -> Program:
    """The program, if nothing but the owner's approval is missing."""
    table = config.read(path)
    table["plugins"] = plugins.stated(table.get("plugins", []), path.resolve().parent)
    program = enforcement.read_program(table)
    asked = enforcement.requester
    enforcement.requester = replace(asked, fingerprint=program.fingerprint)
    owner: OwnerSettings = enforcement.check_program(program, ENOUGH)
    enforcement.check_spent(owner.contract)
    owner.contract.check_room(len(kept(site.folder)) + 1, occupied(site.folder))
    federation, number = open_site(program, owner, site.name)
    permitted(federation, number, owner)
    return program
