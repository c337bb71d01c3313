"""The operator's line to the server: submit a job, ask how it goes, end it, shut a site out."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nvflare.fuel.flare_api.flare_api import new_secure_session

from fedsight.core.errors import DeployError
from fedsight.core.files import make_folder, write_atomically

CONTROLLER = "nvflare.collab.runtime.controller.CollabController"
EXECUTOR = "nvflare.collab.runtime.executor.CollabExecutor"
POLL = 0.25  # seconds between a starting site's questions whether the job goes on
SYNC = 60  # seconds that the sites' job processes get to start


class Console:
    """A session with the server under the operator's certificate."""

    def __init__(self, session: Any) -> None:
        self._session = session

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

    def _call(self, name: str, *words: Any) -> Any:
        with _quietly():
            try:
                return getattr(self._session, name)(*words)
            except Exception as error:  # FLARE raises what it likes; the user gets one sentence
                raise DeployError(
                    f"the server refused or did not answer ({name}): {error}",
                    "look at server/kit/log.txt, and whether `fedsight server start` runs",
                ) from error


@contextlib.contextmanager
def console(kit: Path, user: str, patience: float) -> Iterator[Console]:
    """A session, tried for `patience` seconds; DeployError if the server cannot be reached."""
    until = time.monotonic() + patience
    while True:
        try:
            with _quietly():
                session = new_secure_session(
                    username=user, startup_kit_location=str(kit), timeout=5
                )
            break
        except Exception as error:  # the server may just be starting again
            if time.monotonic() >= until:
                raise DeployError(
                    f"the server cannot be reached or does not let {user} in: {error}",
                    "is `fedsight server start` running?",
                ) from None
            time.sleep(1.0)
    try:
        yield Console(session)
    finally:
        with _quietly(), contextlib.suppress(Exception):
            session.close()


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
        "components": [{"id": "site", "path": "fedsight.deploy.flare.Site", "args": {}}],
    }
    make_folder(folder / "app" / "config")
    for path, value in (
        (folder / "meta.json", meta),
        (folder / "app" / "config" / "config_fed_server.json", server),
        (folder / "app" / "config" / "config_fed_client.json", client),
    ):
        write_atomically(path, json.dumps(value, indent=1).encode())


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """FLARE's session prints and logs to the console as it likes."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
