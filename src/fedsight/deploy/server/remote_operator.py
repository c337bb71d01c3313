"""The operator's side of a run that is asked for from another machine.

The server says which jobs it needs; they are submitted here, and so signed, only if they are jobs
of the program that the operator asked for, of one run.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fedsight.core.errors import DeployError, Interrupted
from fedsight.core.text import is_printable
from fedsight.deploy.membership.operator_folder import OperatorFolder
from fedsight.deploy.server.job_definition import write_job
from fedsight.deploy.server.looking import session_of, understood
from fedsight.deploy.server.operator import LostError, OperatorSession

POLL_INTERVAL = 1.0  # seconds
PATIENCE = 300.0  # seconds for which a server that cannot be reached is tried again
MAX_SITES = 1000


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    program: str  # in TOML
    fingerprint: str
    language: str
    resume: str = ""


class Following:
    """A run that goes on at the server, while its jobs are submitted here."""

    def __init__(
        self, operator: OperatorFolder, request: Request, tell: Callable[[str], None]
    ) -> None:
        self._operator, self._request, self._tell = operator, request, tell
        self._id = ""
        self._offset = 0
        self._number: int | None = None  # of the last job that was submitted
        self._answer: dict[str, Any] = {}  # what became of it
        self._run: str | None = request.resume or None  # its name, once known
        self._stop: Literal["no", "wanted", "asked"] = "no"

    def follow(self) -> int:
        """Ask for the run and follow it to its end; returns the exit code of the process that
        carried it. DeployError if the server refuses, or cannot be reached for `PATIENCE`."""
        lost: float | None = None
        while True:
            try:
                with session_of(self._operator) as session:
                    self._begin(session)
                    while (code := self._step(session)) is None:
                        lost = None
                    return code
            except LostError:  # the server may be restarting
                lost = lost or time.monotonic()
                if not self._id or time.monotonic() - lost > PATIENCE:
                    raise
                time.sleep(POLL_INTERVAL)
            except KeyboardInterrupt:
                # In another session: an answer to this one may be under way.
                if self._stop != "no" or self._run is None:
                    raise Interrupted(
                        "no longer followed; the run ends when it needs another job",
                        "see how far it is with: fedsight operator history DIR",
                    ) from None
                self._stop = "wanted"

    def _begin(self, session: OperatorSession) -> None:
        """Ask for the run, or for its stop, if that has not been done yet."""
        if not self._id:
            asked = json.dumps(asdict(self._request))
            self._id = understood(session.ask("begin", asked), lambda found: str(found["id"]))
        if self._stop == "wanted" and self._run is not None:
            session.ask("stop", self._run)
            self._stop = "asked"

    def _step(self, session: OperatorSession) -> int | None:
        """Look once; returns how it ended, if it has."""
        found = session.ask("seen", self._id, str(self._offset))
        said, code = understood(found, lambda table: (str(table["said"]), table["code"]))
        self._offset = understood(found, lambda table: int(table["next"]))
        if said:
            self._tell(said)
        if (job := found.get("job")) is not None:
            self._submit(session, job)
        elif code is not None and not said:
            return int(code)
        time.sleep(POLL_INTERVAL)
        return None

    def _submit(self, session: OperatorSession, job: Mapping[str, Any]) -> None:
        """Submit a job, once, and tell the server which it has become."""
        run, sites, arguments = understood(job, self._checked)
        if self._number != job["number"]:
            try:
                with tempfile.TemporaryDirectory(prefix="fedsight-") as scratch:
                    write_job(Path(scratch), run, sites, arguments)
                    self._answer = {"job": session.submit(Path(scratch))}
            except DeployError as error:
                self._answer = {"error": error.cause}
            self._number, self._run = int(job["number"]), run
        answer = {"number": self._number, **self._answer}
        session.ask("submitted", self._id, json.dumps(answer))

    def _checked(self, job: Mapping[str, Any]) -> tuple[str, list[str], dict[str, Any]]:
        """The parts of a job; DeployError unless it is one of what was asked for."""
        run, sites, given = str(job["run"]), list(job["sites"]), job["arguments"]
        number = given["number"]
        if type(number) is not int or type(job["number"]) is not int:
            raise ValueError("a number is malformed")
        if not all(isinstance(one, str) and is_printable(one) for one in (run, *sites)):
            raise ValueError("a name is malformed")
        arguments = {"run": run, "fingerprint": self._request.fingerprint, "number": number}
        if given != arguments or self._run not in (None, run) or not 0 < len(sites) <= MAX_SITES:
            raise DeployError(
                "the server wants a job signed that is not of the program that was asked for",
                "tell who runs the server; nothing was signed",
            )
        return run, sites, arguments
