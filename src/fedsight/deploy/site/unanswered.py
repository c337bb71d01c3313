"""Why the server may not answer a site, as far as the site can know by itself."""

from __future__ import annotations

import contextlib
from datetime import date
from pathlib import Path

from fedsight.core.disk import is_full
from fedsight.core.errors import DeployError
from fedsight.deploy.membership import certificates, presence
from fedsight.deploy.processes import supervisor
from fedsight.language.message import Text, message


def why_unanswered(home: Path, kit: Path, name: str) -> str:
    """What may be the matter with the site `name` in the folder `home`, in a sentence."""
    if supervisor.is_suspended(home):
        return (
            "a process of this site is suspended (SIGSTOP), so the server hears nothing from it: "
            "kill -CONT"
        )
    if is_full(home):
        return (
            "the disk of this site is full: it takes part in nothing, and cannot note whether the "
            "server answers. Free some space"
        )
    if ended := certificate_ended(kit, name):
        return ended
    if presence.is_refused(home):
        return (
            "the server refuses this site: it was revoked, and cannot come back under this name. "
            "Ask the operator"
        )
    return (
        "the server does not answer: it is down, the network is down, or this site was revoked; "
        "still trying. `fedsight site doctor` looks at each"
    )


def shortly(home: Path) -> Text:
    """The same of the site in the folder `home`, in a few words."""
    if is_full(home):
        return message("its disk is full")
    if _ended(home / "kit") is not None:
        return message("its certificate has ended")
    if presence.is_refused(home):
        return message("the server refuses it: it was revoked")
    return message("the server does not answer")


def certificate_ended(kit: Path, name: str) -> str:
    """That the certificate of the site `name` has ended, in a sentence; empty if it has not."""
    if (day := _ended(kit)) is None:
        return ""
    return (
        f"this site's certificate ended on {day}, so no connection is possible: ask the operator "
        f"for `fedsight federation renew {name}`"
    )


def _ended(kit: Path) -> date | None:
    """When the certificate of a kit has ended; None if it has not, or cannot be read."""
    with contextlib.suppress(DeployError):  # `fedsight site doctor` tells what is wrong with it
        found = certificates.read(kit / "startup" / "client.crt")
        if certificates.days_left(found) < 0:
            return found.not_valid_after_utc.date()
    return None
