"""The deployment engine's adapter: our coordinator and our site as NVIDIA FLARE components.

FLARE carries messages between job processes over mutual TLS; everything that is said lies in
`engines/remote/engine.py` (the coordinator's side) and `deploy/site/service.py` (the site's). One
method is published, and what passes through it is text, bytes and small numbers: a larger integer,
or an object of another class, would fail in FLARE's serialisation as a silent timeout.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shlex
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.process_launcher import (
    JOB_RETURN_CODE_MAPPING,
    ProcessJobLauncher,
)
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher
from nvflare.collab import collab
from nvflare.utils.job_launcher_utils import get_credential_env

from fedsight.deploy.membership import presence
from fedsight.deploy.processes import memory_reclaim, spawn

DECLARED = "fedsight_declared"
log = logging.getLogger(__name__)


class FlareLink:
    """The coordinator's line to the sites of one job."""

    def __init__(self, proxies: Sequence[Any]) -> None:
        # It writes two lines into three files for each message, and a model is many.
        logging.getLogger("nvflare.collab.runtime.cell_dispatcher").setLevel(logging.WARNING)
        self._proxies = {proxy.name: proxy for proxy in proxies}
        self._sweeper = memory_reclaim.Sweeper()

    @property
    def sites(self) -> list[str]:
        """The sites that take part in this job."""
        return sorted(self._proxies)

    def ask(
        self, site: str, kind: str, header: Mapping[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        """One question and its answer (header, body), unchecked; ConnectionError if none comes."""
        from nvflare.collab.api.exceptions import CollabCallError

        call = self._proxies[site](timeout=timeout)
        try:
            answer = call.message(kind=kind, header=json.dumps(header), body=body)
        except CollabCallError as error:
            raise ConnectionError(str(error.cause)) from None
        if not isinstance(answer, list | tuple) or len(answer) != 2:
            return None, None
        text, data = answer
        came = len(data) if isinstance(data, bytes | bytearray | memoryview) else 0
        self._sweeper.passed(len(body) + came)
        return text, data


class Coordinator:
    """FLARE's server component: one segment of a run, from its last checkpoint onwards."""

    def __init__(self, run: str, fingerprint: str, number: int) -> None:
        self.run = run
        self.fingerprint = fingerprint
        self.number = number

    @collab.main
    def main(self) -> None:
        """Carry the run on until it is finished, fails, or another site is to join."""
        import torch

        from fedsight.deploy.server.job import segment

        torch.set_num_threads(1)  # sums of a few vectors: more threads would wait for one another
        folder = Path(collab.workspace.get_root_dir()).resolve().parent.parent
        link = FlareLink(collab.clients)
        segment(folder, self.run, self.fingerprint, self.number, link)


class SiteComponent:
    """FLARE's client component: answers the coordinator's questions."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sweeper = memory_reclaim.Sweeper()
        self._seat: Any = None

    @collab.publish
    def message(self, kind: str, header: str, body: bytes) -> list[Any]:
        """One question; returns [header as JSON, body].

        FLARE lets every member of a job call every other: another site is told nothing.
        """
        if collab.caller != "server":
            return [json.dumps({"error": "only the coordinator is answered here"}), b""]
        with self._lock:
            if self._seat is None:
                import torch

                from fedsight.deploy.site.service import SiteService

                torch.set_num_threads(1)  # it copies and packs; the trainer has threads of its own
                home = Path(collab.workspace.get_root_dir()).resolve().parent
                self._seat = SiteService(home, collab.site_name, asker())
        text, data = self._seat.answer(kind, header, body)
        if kind == "propose":
            memory_reclaim.settle()
        self._sweeper.passed(len(body) + len(data))
        return [text, data]

    @collab.final
    def close(self) -> None:
        """The job is over."""
        if self._seat is not None:
            self._seat.close()


def asker() -> Any:
    """Who signed the job of this process, and which program: checked with this site's own copy of
    the authority's certificate, so the server cannot make it up.
    """
    from nvflare.lighter.utils import verify_folder_signature_and_get_signers

    from fedsight.deploy.site.enforcement import Asker

    workspace = collab.workspace
    app = Path(workspace.get_app_dir(collab.fl_ctx.get_job_id()))
    root = workspace.get_file_path_in_startup("rootCA.pem")
    genuine, signers = verify_folder_signature_and_get_signers(str(app), root)
    leads = tuple(sorted(name for name, _, role in signers if role == "lead"))
    if not genuine or not leads:
        return Asker()
    try:
        signed = json.loads((app / "config" / "config_fed_server.json").read_bytes())
        fingerprint = str(signed["components"][0]["args"]["fingerprint"])
    except (OSError, ValueError, LookupError, TypeError):
        fingerprint = ""
    return Asker(leads, fingerprint)


class _Job(JobHandleSpec):
    """FLARE's handle on a job's process."""

    def __init__(self, process: spawn.Process) -> None:
        self._process = process

    def poll(self) -> Any:
        """FLARE's word for how it ended, or that it has not."""
        code = self._process.poll()
        if code is None:
            return JobReturnCode.UNKNOWN
        return JOB_RETURN_CODE_MAPPING.get(code, JobReturnCode.EXECUTION_ERROR)

    def terminate(self) -> None:
        """End it; its trainer ends with it."""
        self._process.kill()

    def wait(self) -> None:
        """Until it has ended."""
        self._process.wait()


class _Launcher(ProcessJobLauncher):
    """Starts the process of a job as FLARE would, but forked by the keeper."""

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> _Job:
        """Called by FLARE when a job is to run here."""
        credentials = get_credential_env(fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS) or {})
        words = shlex.split(self.get_command(job_meta, fl_ctx))
        at = words.index("-m")
        return _Job(spawn.begin(words[at + 1], words[at + 2 :], 1, environment=credentials))


class SiteLauncher(_Launcher, ClientProcessJobLauncher):
    """For the jobs of a site."""


class ServerLauncher(_Launcher, ServerProcessJobLauncher):
    """For the jobs of the server."""


class PresenceComponent(FLComponent):
    """Tells the server with each sign of life which images a site declares; the server notes it."""

    def __init__(self) -> None:
        super().__init__()
        self._process = secrets.token_hex(8)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE in the long-lived processes of server and site."""
        home = Path(os.environ.get("FEDSIGHT_HOME", "."))
        if event_type in (EventType.BEFORE_CLIENT_REGISTER, EventType.BEFORE_CLIENT_HEARTBEAT):
            path = home / "declared.json"
            found = path.read_text(encoding="utf-8") if path.is_file() else "null"
            said = presence.said(self._process, json.loads(found))
            fl_ctx.set_prop(DECLARED, said, private=False, sticky=True)
        elif event_type == EventType.AFTER_CLIENT_HEARTBEAT:
            presence.heard(home)
        elif event_type == EventType.CLIENT_HEARTBEAT_PROCESSED:
            peer = fl_ctx.get_peer_context()
            process, declared = presence.understood(peer.get_prop(DECLARED))
            presence.note(home / "sites", peer.get_identity_name(), process, declared)
