"""Why the server may not answer a site, as far as the site can know by itself."""

from __future__ import annotations

import contextlib
from pathlib import Path

from fedsight.core.errors import DeployError
from fedsight.deploy.membership import certificates
from fedsight.deploy.processes import supervisor


def why_unanswered(home: Path, kit: Path, name: str) -> str:
    """What may be the matter with the site `name` in the folder `home`, in a sentence."""
    if supervisor.is_suspended(home):
        return (
            "a process of this site is suspended (SIGSTOP), so the server hears nothing from it: "
            "kill -CONT"
        )
    return certificate_ended(kit, name) or (
        "the server does not answer: it is down, the network is down, or this site was revoked; "
        "still trying. `fedsight site doctor` looks at each"
    )


def certificate_ended(kit: Path, name: str) -> str:
    """That the certificate of the site `name` has ended, in a sentence; empty if it has not."""
    with contextlib.suppress(DeployError):  # `fedsight site doctor` tells what is wrong with it
        found = certificates.read(kit / "startup" / "client.crt")
        date = found.not_valid_after_utc.date()
        if certificates.days_left(found) < 0:
            return (
                f"this site's certificate ended on {date}, so no connection is possible: ask the "
                f"operator for `fedsight federation renew {name}`"
            )
    return ""
