"""The operator's server: started in the foreground, looked at, moved to another port."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from fedsight.core.errors import DeployError
from fedsight.deploy.membership import kits
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.processes import supervisor, upkeep

Say = Callable[[str], None]


def start(federation: FederationFolder, port: int | None, say: Say) -> None:
    """Serve the federation until SIGTERM or Ctrl-C; `port` is where it listens from now on."""
    home = federation.folder / "server"
    kit = home / "kit"
    with supervisor.only_one(home, f"the server of federation '{federation.name}'"):
        if port is not None and port != federation.invitation.port:
            _refuse_taken(port)
            federation = federation.moved(port)
            say(
                f"the port is {port} from now on: sites need the new {federation.folder}/"
                "invitation.toml, with which `fedsight site init` moves a site that is there"
            )
        else:
            _refuse_taken(federation.invitation.port)
        upkeep.refuse_readable_keys(federation.folder)
        upkeep.clear_jobs(kit)
        kits.write_policies(kit, "server")
        kits.write_shut_out(kit, sorted(federation.revoked()))
        invitation = federation.invitation
        say(f"federation '{federation.name}' listens on {invitation.host}:{invitation.port}")
        supervisor.server(kit, home).run(say)


def shut_out(federation: FederationFolder, site: str) -> bool:
    """Drop the connection of a revoked site, if the server runs; False if it does not.

    A server that starts later refuses it by itself.
    """
    from fedsight.deploy.membership.federation import OPERATOR
    from fedsight.deploy.server.operator import console

    if not supervisor.kept(federation.folder / "server"):
        return False
    with console(federation.operator_kit, OPERATOR, 10) as line:
        line.shut_out(site)
    return True


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def process(home: Path) -> int | None:
    """The number of the process that is kept running from `home`, if there is one now."""
    try:
        number = int((home / "process.pid").read_text())
    except (OSError, ValueError):
        return None
    try:
        os.kill(number, 0)  # asks only
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it is there, under another user
    return number


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise DeployError(
                f"the server cannot listen on port {port}: {error.strerror}",
                "end the program that uses it, or choose another with --port",
            ) from None
