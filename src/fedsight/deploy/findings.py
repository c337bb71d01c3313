"""What can be found out about a site or a federation without asking anybody: keys, certificates,
ledger, disk, processes, settings. For the doctors and the console."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from fedsight.core.errors import ConfigError, FedSightError
from fedsight.core.files import refuse_readable
from fedsight.core.finding import Finding
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.certificates import SOON
from fedsight.deploy.processes import supervisor
from fedsight.deploy.site import state, unanswered
from fedsight.deploy.site.folder import SiteFolder
from fedsight.deploy.site.owner import read_contract, read_owner, tables
from fedsight.governance.contract import Contract
from fedsight.governance.ledger import CLOCK_TOLERANCE, Ledger
from fedsight.language.english import from_english
from fedsight.language.message import Text, message
from fedsight.runs.progress import size

LEAST_DISK = 1 << 30  # bytes


def tried(what: Text, check: Callable[[], object]) -> Iterator[Finding]:
    """Whether a check raises an error, and which."""
    try:
        check()
    except FedSightError as error:
        yield fault(what, error)
    else:
        yield Finding(what, "ok", message("as they must be"))


def fault(what: Text, error: FedSightError) -> Finding:
    """An error as a finding: of a faulty config, the first problem."""
    if isinstance(error, ConfigError):
        first = error.problems[0]
        return Finding(what, "bad", f"{first.where}: {from_english(first.cause)}", first.cure)
    return Finding(what, "bad", from_english(error.cause), from_english(error.cure))


def ledger(home: Path) -> Iterator[Finding]:
    """Whether the ledger is intact and private, and the clock not behind its last entry."""
    what = message("ledger")
    if not (home / "ledger.sqlite").exists():
        yield Finding(what, "ok", message("none yet"))
        return
    try:
        refuse_readable(home / "ledger.sqlite", "the ledger")
        number, _ = Ledger(home).head
        entries = Ledger(home).entries()
    except FedSightError as error:
        yield fault(what, error)
        return
    yield Finding(what, "ok", message("intact, {n:,} entries", n=number))
    if entries and datetime.now(UTC) < entries[-1].written_at - CLOCK_TOLERANCE:
        last = entries[-1].written_at.isoformat(timespec="minutes")
        value = message("behind the ledger's last entry ({time})", time=last)
        yield Finding(message("clock"), "bad", value, message("correct the clock"))


def certificate(what: Text, path: Path, renew: Text | str, soon: int = SOON) -> Iterator[Finding]:
    """How long a certificate is valid; before it is, the clock is wrong. `renew`: what cures one
    that ends in less than `soon` days."""
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        why = message("{file} cannot be read: {error}", file=path.name, error=error)
        yield Finding(what, "bad", why, message("restore the file from a backup"))
        return
    now, begins, ends = datetime.now(UTC), found.not_valid_before_utc, found.not_valid_after_utc
    if now < begins:
        value = message("behind: the certificate is valid from {time} on", time=begins.date())
        yield Finding(message("clock"), "bad", value, message("correct the clock"))
        return
    days = (ends - now).days
    if now > ends:
        yield Finding(what, "bad", message("expired on {time}", time=ends.date()), renew)
    else:
        value = message("valid for {n:,} more days", n=days)
        few = days < soon
        yield Finding(what, "note" if few else "ok", value, renew if few else "")


def site_certificate(site: SiteFolder) -> Iterator[Finding]:
    """How long an admitted site's own certificate is valid."""
    ask = message("ask the operator for: fedsight federation renew {name}", name=site.name)
    yield from certificate(message("certificate"), site.kit / "startup" / "client.crt", ask)


def disk(folder: Path) -> Finding:
    """How much disk is free where a folder is."""
    free = shutil.disk_usage(folder).free
    few = free < LEAST_DISK
    cure = message("free some space; a run needs some times the size of its model")
    return Finding(message("free disk"), "note" if few else "ok", size(free), cure if few else "")


def running_site(site: SiteFolder) -> Iterator[Finding]:
    """Whether the site runs and the server answers, or what keeps it from taking part."""
    what = message("site")
    if not supervisor.is_running(site.folder):
        yield Finding(what, "note", message("not running"), "fedsight site start")
        return
    said = state.state_of(site.folder)
    if said == "stopped":
        cure = message("let it go on (kill -CONT), or end it")
        yield Finding(what, "bad", message("one of its processes is suspended"), cure)
    elif said == "drained":
        yield Finding(what, "note", message("drained"), "fedsight site drain --end")
    elif presence.is_answered(site.folder):
        yield Finding(what, "ok", message("running, and the server answers"))
    else:
        cure = message("fedsight site doctor looks at network and TLS; the site may be revoked")
        why = message("running, but {why}", why=unanswered.shortly(site.folder))
        yield Finding(what, "bad", why, cure)


def settings_in_force(folder: Path) -> tuple[str, bool]:
    """The file with the settings that hold, and whether site.toml has others by now.

    A site that runs goes by what it was started with, whatever is wrong with site.toml by now. So
    does one whose site.toml names no images: they were named at the start. Raises ConfigError if
    the site.toml of a site that does not run has any other problem.
    """
    own, started = folder / "site.toml", folder / "owner.toml"
    running = started.exists() and supervisor.is_running(folder)
    try:
        owner = read_owner(own, None)
    except ConfigError as error:
        unnamed = all(one.where == "data" for one in error.problems)
        if not running and not (started.exists() and unnamed):
            raise
        return started.name, not unnamed
    if not running:
        return own.name, False
    return started.name, tables(read_owner(started, None)) != tables(owner)


def contract_in_force(folder: Path) -> Contract:
    """The contract that holds at a site, also at one that was never started and whose images are
    not named yet. Raises ConfigError if it cannot be read."""
    try:
        return read_owner(folder / settings_in_force(folder)[0], None).contract
    except ConfigError:
        return read_contract(folder / "site.toml")
