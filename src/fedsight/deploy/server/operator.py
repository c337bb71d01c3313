"""The operator's line to the server: submit a job, ask how it goes, end it, shut a site out."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedsight.core.errors import DeployError
from fedsight.core.files import make_folder, write_atomically

CONTROLLER = "nvflare.collab.runtime.controller.CollabController"
EXECUTOR = "nvflare.collab.runtime.executor.CollabExecutor"
POLL = 0.25  # seconds between a starting site's questions whether the job goes on
ANSWER = 60.0  # seconds that an answer may take
GRACE = 3.0  # seconds that a session gets to end
SYNC = 60  # seconds that the sites' job processes get to start


class Operator:
    """A session with the server under the operator's certificate, held by a process of its own.

    FLARE keeps state for all sessions of a process. After some of them, and a server that was
    started again, a further one got no answer for most of a minute; the first one gets it at once.
    """

    def __init__(self, kit: Path, user: str) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "fedsight.deploy.server.operator_session",
                str(kit.resolve()),
                user,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,  # Ctrl-C is this process's to handle: the job is to be ended
        )
        try:
            self._heard()
        except BaseException:
            self.close()
            raise

    def submit(self, folder: Path) -> str:
        """Submit the job in `folder`; returns its number."""
        return str(self._call("submit_job", str(folder.resolve())))

    def status(self, job: str) -> str:
        """How a job goes, in FLARE's words."""
        return str(self._call("get_job_meta", job).get("status", ""))

    def abort(self, job: str) -> None:
        """End a job."""
        self._call("abort_job", job)

    def shut_out(self, site: str) -> None:
        """Drop a site's connection and refuse it from now on."""
        self._call("disable_client", site)

    def close(self) -> None:
        """End the session and its process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def _call(self, name: str, *words: Any) -> Any:
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps([name, words]).encode() + b"\n")
            self._process.stdin.flush()
            return self._heard()
        except (OSError, ValueError) as error:
            raise DeployError(
                f"the server refused or did not answer ({name}): {error}",
                "look at server/kit/log.txt, and whether `fedsight server start` runs",
            ) from None

    def _heard(self) -> Any:
        """The next answer; ValueError with what FLARE says, OSError if nothing comes."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], ANSWER)[0]:
            self._process.kill()  # or it would be taken for the answer to the next call
            raise OSError(f"no answer within {ANSWER:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            last = self._said.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise OSError(f"its process ended ({last})")
        said = json.loads(line)
        if "error" in said:
            raise ValueError(said["error"])
        return said["answer"]


@contextlib.contextmanager
def console(kit: Path, user: str, patience: float) -> Iterator[Operator]:
    """A session, tried for `patience` seconds; DeployError if the server cannot be reached."""
    until = time.monotonic() + patience
    while True:
        try:
            made = Operator(kit, user)
            break
        except (OSError, ValueError) as error:  # the server may just be starting again
            if time.monotonic() >= until:
                raise DeployError(
                    f"the server cannot be reached or does not let {user} in: {error}",
                    "is `fedsight server start` running?",
                ) from None
            time.sleep(1.0)
    with contextlib.closing(made):
        yield made


def write_job(folder: Path, name: str, sites: Sequence[str], words: dict[str, Any]) -> None:
    """A job for `sites`, with our two classes and nothing else in it."""
    parts: dict[str, Any] = {
        "format_version": 2,
        "task_data_filters": [],
        "task_result_filters": [],
    }
    meta = {
        "name": name,
        "resource_spec": {},
        "min_clients": len(sites),
        "deploy_map": {"app": ["server", *sites]},
    }
    controller = {"server_obj_id": "coordinator", "sync_task_timeout": SYNC}
    server = {
        **parts,
        "server": {"task_request_interval": POLL},
        "workflows": [{"id": "controller", "path": CONTROLLER, "args": controller}],
        "components": [
            {"id": "coordinator", "path": "fedsight.deploy.flare.Coordinator", "args": words}
        ],
    }
    executor = {"path": EXECUTOR, "args": {"client_obj_id": "site"}}
    client = {
        **parts,
        "executors": [{"tasks": ["*"], "executor": executor}],
        "components": [{"id": "site", "path": "fedsight.deploy.flare.SiteComponent", "args": {}}],
    }
    make_folder(folder / "app" / "config")
    for path, value in (
        (folder / "meta.json", meta),
        (folder / "app" / "config" / "config_fed_server.json", server),
        (folder / "app" / "config" / "config_fed_client.json", client),
    ):
        write_atomically(path, json.dumps(value, indent=1).encode())
