"""The operator's server: runs in the foreground, moves to another port, disables a site."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

from fedsight.core.errors import DeployError
from fedsight.core.files import write_atomically
from fedsight.deploy.membership import hosts, kits
from fedsight.deploy.membership.federation import OPERATOR, FederationFolder
from fedsight.deploy.package import installed
from fedsight.deploy.processes import supervisor
from fedsight.deploy.server.operator import open_session
from fedsight.deploy.server.settings import read_server

CLEAR_INTERVAL = 3600.0  # seconds between looks for folders of old jobs
RUNNING = "package.json"  # in the server's folder: the FedSight code that it was started with
SESSION_TIMEOUT = 10.0  # seconds to open an operator session


def start(federation: FederationFolder, port: int | None, notify: Callable[[str], None]) -> None:
    """Serve the federation until SIGTERM or Ctrl-C; a `port` given becomes its port for good."""
    home = federation.server_home
    kit = home / "kit"
    settings = read_server(federation.folder)
    listen = hosts.loopback_address(federation.invitation.host)
    with supervisor.exclusive(home, f"the server of federation '{federation.name}'"):
        if port is not None and port != federation.invitation.port:
            _check_port(port, listen)
            federation = federation.move_to_port(port)
            notify(
                f"the server now uses port {port}: send the new {federation.folder}/"
                "invitation.toml to the sites; they run `fedsight site init` with it again"
            )
        else:
            _check_port(federation.invitation.port, listen)
        kits.check_keys_private(federation.folder)
        kits.write_policies(kit, "server", settings.keep)
        kits.clear_old_jobs(kit)
        kits.write_disabled_sites(kit, sorted(federation.revoked()))
        write_atomically(home / RUNNING, json.dumps(installed().table()).encode())
        invitation = federation.invitation
        address = hosts.written(invitation.host, invitation.port)
        notify(f"federation '{federation.name}' listens on {address}")
        supervisor.server(kit, home, listen).run(notify, _JobsCleared(kit).poll)


class _JobsCleared:
    """Removes the folders of old jobs while the server runs: each run adds some."""

    def __init__(self, kit: Path) -> None:
        self._kit = kit
        self._next = 0.0

    def poll(self, forks: object) -> None:
        """Called regularly."""
        if (now := time.monotonic()) >= self._next:
            self._next = now + CLEAR_INTERVAL
            kits.clear_old_jobs(self._kit)


def disable_site(federation: FederationFolder, site: str) -> bool:
    """Drop the connection of a revoked site; False if the server is not running.

    A server that starts later refuses the site anyway.
    """
    if not supervisor.is_running(federation.server_home):
        return False
    with open_session(federation.operator_kit, OPERATOR, SESSION_TIMEOUT) as session:
        session.disable_site(site)
    return True


def free_port() -> int:
    """A port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _check_port(port: int, listen: str | None) -> None:
    """Raise DeployError if the port is in use on the address `listen`, or on any."""
    address = listen or hosts.wildcard()
    with socket.socket(hosts.family(address)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise DeployError(
                f"the server cannot listen on port {port}: {error.strerror}",
                "end the program that uses the port, or choose another with --port",
            ) from None
