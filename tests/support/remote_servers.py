"""A server of which an operator on another machine asks for a run, without its processes."""

from __future__ import annotations

import json
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from federation_folders import ANNA

from fedsight.core.errors import DeployError
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.server import remote_operator, remote_runs
from fedsight.deploy.server.remote_operator import Following, Request
from fedsight.deploy.server.remote_runs import RemoteRun

PROGRAM = 'name = "first"\n[data]\nname = "idx"\npath = "/images/of/the/site"\n'
ASKED = {"program": PROGRAM, "fingerprint": "0" * 32, "language": "en"}


class Server:
    """A session with the server, whose folder is here; jobs are noted."""

    def __init__(self, federation: FederationFolder) -> None:
        self.federation, self.jobs = federation, list[dict[str, Any]]()

    def ask(self, what: str, *words: str) -> dict[str, Any]:
        """As `views.ask`."""
        from fedsight.deploy.server.views import ask

        found: dict[str, Any] = json.loads(ask(self.federation, ANNA, what, *words))
        return found

    def submit(self, folder: Path) -> str:
        """Note what would be signed."""
        meta = json.loads((folder / "meta.json").read_text())
        config = json.loads((folder / "app/config/config_fed_server.json").read_text())
        self.jobs.append({"sites": meta["deploy_map"]["app"], **config["components"][0]["args"]})
        return job_id(len(self.jobs))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""


def going_on() -> None:
    """It does."""


def job_id(number: int) -> str:
    """The ID of the first, second and so on job that is submitted."""
    return str(uuid.UUID(int=number))


def job(**other: Any) -> dict[str, Any]:
    """The arguments of a job of the program that is asked for."""
    return {"run": "first", "fingerprint": ASKED["fingerprint"], "number": 3} | other


def carried(
    server: Server, monkeypatch: pytest.MonkeyPatch, *jobs: dict[str, Any], patience: float = 20.0
) -> list[str]:
    """Follow a run that needs these jobs; what the process that carries it heard."""
    heard: list[str] = []

    def carry(found: RemoteRun) -> None:
        code = 0
        for arguments in jobs:
            name = str(arguments["run"])
            try:
                heard.append(found.submit(name, ["lyon"], arguments, patience, going_on))
            except DeployError as error:
                heard.append(error.cause)
                code = 8
        found.end(code)

    threads: list[threading.Thread] = []

    def start(found: RemoteRun) -> None:
        threads.append(threading.Thread(target=carry, args=(found,)))
        threads[-1].start()

    monkeypatch.setattr(remote_runs, "_start", start)
    request = Request(PROGRAM, str(ASKED["fingerprint"]), "en")
    try:
        assert Following(None, request, print).follow() == 0  # type: ignore[arg-type]
    finally:
        for thread in threads:
            thread.join()
    return heard


def reached(federation: FederationFolder, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server of a federation; sessions with it are here."""
    found = Server(federation)
    monkeypatch.setattr(remote_operator, "session_of", lambda _: found)
    monkeypatch.setattr(remote_operator, "POLL_INTERVAL", 0.02)
    monkeypatch.setattr(remote_runs, "POLL_INTERVAL", 0.02)
    return found
