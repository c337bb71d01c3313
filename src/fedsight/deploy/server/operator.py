"""The operator's session with the server: submit a job, query and abort it, disable a site."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsight.core.errors import DeployError, EngineError
from fedsight.deploy.membership import certificates
from fedsight.deploy.processes import spawn

READS = "this operator may only read"  # what `deploy/flare/reading.py` refuses with
SAME = "use the same version of FedSight here and there"
ANSWER_TIMEOUT = 60.0  # seconds
CLOSE_TIMEOUT = 3.0  # seconds for the session's process to end
RETRY_INTERVAL = 1.0  # seconds between attempts to open a session


class LostError(DeployError):
    """The server is out of reach or did not answer, or FLARE refused for it."""


class OperatorSession:
    """A session with the server under the operator's certificate, held by its own process.

    FLARE shares state between all sessions of a process. After a few sessions and a restart of the
    server, a further session got no answer for almost a minute; the first one of a process gets an
    answer at once.
    """

    def __init__(self, kit: Path, user: str) -> None:
        """Raises OSError if the session's process fails, ValueError if the server refuses."""
        with contextlib.ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile())
            self._calls, theirs = map(stack.enter_context, socket.socketpair())
            self._answers = stack.enter_context(self._calls.makefile("rb"))
            module = "fedsight.deploy.server.operator_session"
            words, file = [str(kit.resolve()), user], self._log.fileno()
            try:
                # Ctrl-C does not reach it: this process has to abort the job then.
                self._process = spawn.start(module, words, file, [theirs.fileno()])
            except EngineError as error:
                raise OSError(error.cause) from None
            theirs.close()
            self._open = stack.pop_all()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def submit(self, folder: Path) -> str:
        """Submit the job in `folder`; returns its ID."""
        return str(self._call("submit_job", str(folder.resolve())))

    def status(self, job: str) -> str:
        """The status of a job, in FLARE's terms."""
        return str(_table(self._call("get_job_meta", job)).get("status", ""))

    def view(self, what: str, *run: str) -> dict[str, Any]:
        """What the server shows of the federation, as `views.view` has it; DeployError if there is
        no such thing."""
        return self._answer_to("view", what, *run)

    def ask(self, what: str, *words: str) -> dict[str, Any]:
        """Ask a run to `pause` or to `stop`, or what else `views.ask` knows; DeployError if that is
        not possible, or the operator may not."""
        try:
            return self._answer_to("ask", what, *words)
        except DeployError as error:
            if READS not in error.cause:
                raise
            cause = "this operator may look on, and start, stop and revoke nothing"
            raise DeployError(cause, "ask an operator who may") from None

    def _answer_to(self, command: str, *words: str) -> dict[str, Any]:
        found = _table(self._call(command, *words))
        if "error" in found:
            told = found["error"]
            if not isinstance(told, list) or len(told) != 2:
                raise _not_understood()
            cause, cure = map(str, told)
            raise DeployError(cause, cure)
        return found

    def jobs_of(self, operator: str) -> list[str]:
        """The IDs of the jobs that wait or run and that this operator has submitted."""
        ended = ("FINISHED", "FAILED")
        listed = self._call("list_jobs")
        if not isinstance(listed, list):
            raise _not_understood()
        jobs = [one for one in map(_table, listed) if not str(one.get("status")).startswith(ended)]
        metas = (_table(self._call("get_job_meta", str(one.get("job_id")))) for one in jobs)
        return [str(one.get("job_id")) for one in metas if one.get("submitter_name") == operator]

    def abort(self, job: str) -> None:
        """Abort a job."""
        self._call("abort_job", job)

    def disable_site(self, site: str) -> None:
        """Drop a site's connection and refuse it from now on."""
        self._call("disable_client", site)

    def close(self) -> None:
        """End the session and its process."""
        self._open.close()  # which ends the process
        try:
            self._process.wait(CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            self._calls.sendall(json.dumps([name, arguments]).encode() + b"\n")
            return self._receive()
        except (OSError, ValueError, RecursionError) as error:
            raise LostError(
                f"the server refused {name} or did not answer: {error}",
                "check that `fedsight server start` is running, and look at server/kit/log.txt",
            ) from None

    def _receive(self) -> Any:
        """The next answer; ValueError with FLARE's message, OSError if no answer comes."""
        if not select.select([self._calls], [], [], ANSWER_TIMEOUT)[0]:
            self._process.kill()  # or a late answer would be taken for that to the next call
            raise OSError(f"no answer within {ANSWER_TIMEOUT:.0f} s")
        line = self._answers.readline()
        if not line:
            self._log.seek(0)
            last = self._log.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise OSError(f"the session's process ended ({last})")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["answer"]


def _table(answer: Any) -> dict[str, Any]:
    """An answer that is one; DeployError for any other, whatever the server sends."""
    if not isinstance(answer, dict):
        raise _not_understood()
    return answer


def _not_understood() -> DeployError:
    return DeployError("the server's answer cannot be understood", SAME)


@contextlib.contextmanager
def open_session(kit: Path, user: str, timeout: float) -> Iterator[OperatorSession]:
    """Open a session, trying for `timeout` seconds; DeployError if the server is out of reach, or
    the certificate of `user` has ended."""
    own = certificates.read(kit / "startup" / "client.crt")
    if certificates.days_left(own) < 0:
        raise DeployError(
            f"the certificate of the operator '{user}' ended on {own.not_valid_after_utc.date()}",
            "renew it: fedsight federation renew",
        )
    deadline = time.monotonic() + timeout
    while True:
        try:
            session = OperatorSession(kit, user)
            break
        except (OSError, ValueError) as error:  # the server may be restarting
            if time.monotonic() >= deadline:
                raise LostError(
                    f"the server cannot be reached, or refuses {user}: {error}",
                    "check that `fedsight server start` is running",
                ) from None
            time.sleep(RETRY_INTERVAL)
    with contextlib.closing(session):
        yield session
