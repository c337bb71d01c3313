"""The operator's server: runs in the foreground, moves to another port, disables a site."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from fedsight.core.errors import DeployError
from fedsight.core.files import write_atomically
from fedsight.core.package import RUNNING, installed
from fedsight.deploy.membership import hosts, kits
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.membership.operators import GLANCE
from fedsight.deploy.membership.renewal import server_ended
from fedsight.deploy.membership.requests import is_operators
from fedsight.deploy.monitoring.job import Job
from fedsight.deploy.monitoring.keeper import kept
from fedsight.deploy.monitoring.lines import output, reporting
from fedsight.deploy.processes import prefork, supervisor
from fedsight.deploy.server.operator import OperatorSession, open_session
from fedsight.deploy.server.settings import read_server

CLEAR_INTERVAL = 3600.0  # seconds between looks for folders of old jobs
SESSION_TIMEOUT = 10.0  # seconds to open an operator session


def start(
    federation: FederationFolder,
    port: int | None,
    notify: Callable[[str], None],
    wanted: Mapping[str, Any] | None = None,
) -> None:
    """Serve the federation until SIGTERM or Ctrl-C; a `port` given becomes its port for good.

    `wanted` is what the user wants this time instead of [monitoring] in server.toml.
    """
    # In a fork, because reading it imports PyTorch: this process must stay small.
    settings = prefork.run_in_fork(partial(read_server, federation.folder))
    home = federation.server_home
    kit, hooks = home / "kit", settings.hooks
    listen = hosts.loopback_address(federation.invitation.host)
    monitoring = settings.monitoring.model_copy(update=dict(wanted or {}))
    party = {"federation": federation.name}
    out = output(monitoring.log, notify, party, home)
    job = Job("server", str(federation.folder), party, hooks.table(), monitoring.log, time.time())
    whose = f"the server of federation '{federation.name}'"
    with reporting(out), supervisor.exclusive(home, whose):
        if port is not None and port != federation.invitation.port:
            _check_port(port, listen)
            federation = federation.move_to_port(port)
            out.notice(
                f"the server now uses port {port}: send the new {federation.folder}/"
                "invitation.toml to the sites; they run `fedsight site init` with it again"
            )
        else:
            _check_port(federation.invitation.port, listen)
        _check_certificate(federation)
        kits.check_keys_private(federation.folder)
        kits.write_policies(kit, "server", settings.keep)
        kits.clear_old_jobs(kit)
        kits.write_disabled_sites(
            kit, sorted(name for name in federation.revoked() if not is_operators(name))
        )
        write_atomically(home / RUNNING, json.dumps(installed().table()).encode())
        invitation = federation.invitation
        with kept(job, monitoring, hooks, out) as keeper:
            address = hosts.written(invitation.host, invitation.port)
            out.notice(f"federation '{federation.name}' listens on {address}", event="started")
            cleared = _JobsCleared(kit)

            def poll(forks: prefork.PreforkServer) -> None:
                cleared.poll(forks)
                if keeper is not None:
                    keeper.poll(forks)

            with supervisor.server(kit, home, listen) as supervised:
                supervised.run(
                    lambda text: out.notice(text, event="process_ended", level="warning"), poll
                )


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
    with _session(federation) as session:
        session.disable_site(site)
    return True


def end_jobs(federation: FederationFolder, operator: str) -> int | None:
    """End the jobs that a revoked operator has started; returns how many, None if the server is not
    running. It opens no session for them any more.

    The server may have heard them for a moment after the revocation, so it is asked again.
    """
    if not supervisor.is_running(federation.server_home):
        return None
    with _session(federation) as session:
        ended: set[str] = set()
        for pause in (0.0, GLANCE):
            time.sleep(pause)
            for job in {*session.jobs_of(operator)} - ended:
                session.abort(job)
                ended.add(job)
    return len(ended)


def _session(federation: FederationFolder) -> AbstractContextManager[OperatorSession]:
    return open_session(federation.operator_kit, federation.operator_name, SESSION_TIMEOUT)


def free_port() -> int:
    """A port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _check_certificate(federation: FederationFolder) -> None:
    """Raise DeployError if the certificate of the server has ended: no site would believe it."""
    if (ended := server_ended(federation)) is not None:
        raise DeployError(
            f"the certificate of the server '{federation.invitation.host}' ended on {ended}, so "
            "no site would connect",
            "run: fedsight federation renew; then start the server again",
        )


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
