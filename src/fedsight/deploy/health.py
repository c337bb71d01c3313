"""Whether a server or a site works, by its files and processes alone: quick, and without a port."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedsight.core.disk import is_full
from fedsight.core.errors import DeployError
from fedsight.deploy.membership import presence
from fedsight.deploy.processes import supervisor
from fedsight.deploy.site import state, unanswered
from fedsight.language.message import Text, message

SILENCE = 30.0  # seconds for which the server's process may not have written its traffic


@dataclass(frozen=True)
class Health:
    """A server or a site, and what is wrong with it; empty if nothing is."""

    what: Text
    fault: Text | str = ""


def look(folder: Path, connected: bool) -> list[Health]:
    """The health of what is in `folder`, or of all that is in the folders in it.

    With `connected`, what is well but cannot work now is not well either: while it starts, while
    the disk is full, and a site that the server does not answer. A restart would mend none of
    these. Raises DeployError if there is neither a federation nor a site.
    """
    found = [*_of(folder, connected)]
    if not found and folder.is_dir():
        # a volume's lost+found is root's alone
        within = [path for path in sorted(folder.iterdir()) if os.access(path, os.X_OK)]
        found = [one for path in within for one in _of(path, connected)]
    if not found:
        raise DeployError(
            f"there is neither a federation nor a site in {folder}",
            "give its folder, for example: fedsight health /data/lyon",
        )
    return found


def _of(folder: Path, connected: bool) -> Iterator[Health]:
    if (folder / "admitted").is_dir() and (folder / "invitation.toml").is_file():
        home = folder / "server"
        what = message("server of the federation {name}", name=folder.resolve().name)
        yield Health(what, _process(home, connected) or _serving(home))
    if (folder / "identity.toml").is_file():
        what = message("site {name}", name=folder.resolve().name)
        leaves = supervisor.is_running(folder) and state.state_of(folder) == "leaving"
        fault = message("it is about to stop") if leaves else _process(folder, connected)
        yield Health(what, fault or _site(folder, connected))


def _process(home: Path, connected: bool) -> Text | str:
    """What is wrong with the processes that run from `home`, and with its disk."""
    if not supervisor.is_running(home):
        return message("not running")
    if connected and is_full(home):
        return message("its disk is full")
    if supervisor.is_starting(home):
        return message("it is still starting") if connected else ""
    process = supervisor.process_id(home)
    if process is None:
        return message("its process has ended and is being restarted")
    return message("its process is suspended") if supervisor.is_suspended(home) else ""


def _serving(home: Path) -> Text | str:
    """Whether the server's process does anything: it writes a file every second."""
    if supervisor.is_starting(home) or is_full(home):  # on a full disk it may be unable to
        return ""
    try:
        silence = time.time() - (home / presence.TRAFFIC_FILE).stat().st_mtime
    except OSError:
        silence = SILENCE + 1
    return message("its process does not respond") if silence > SILENCE else ""


def _site(home: Path, connected: bool) -> Text | str:
    if state.state_of(home) == "stopped":
        return message("one of its processes is suspended")
    if connected and not presence.is_answered(home):
        return unanswered.shortly(home)
    return ""
