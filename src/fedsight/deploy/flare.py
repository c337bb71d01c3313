"""The NVIDIA FLARE adapter: the coordinator and the site as FLARE components.

FLARE carries messages between job processes over mutual TLS. The protocol itself is in
`engines/remote/engine.py` (the coordinator's side) and `deploy/site/service.py` (the site's side).
Only one method is published, and it takes text, bytes and small numbers: a larger integer, or an
object of another class, would fail in FLARE's serialisation as a silent timeout.
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
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.process_launcher import (
    JOB_RETURN_CODE_MAPPING,
    ProcessJobLauncher,
)
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher
from nvflare.collab import collab
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessagePropKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import SysCommandTopic, TrainingTopic
from nvflare.utils.job_launcher_utils import get_credential_env

from fedsight.core.text import printable
from fedsight.deploy.membership import presence
from fedsight.deploy.processes import memory_reclaim, spawn

HEARTBEAT_PROPERTY = "fedsight_heartbeat"  # in the context that FLARE sends with a heartbeat
SERVER = "server"  # FLARE's address of the server; its jobs' begin with it
MAX_ADDRESS = 120  # characters of an address in the server's log
# Orders that a site does not follow; a job needs none of them.
UNWANTED = frozenset(
    {
        *(SysCommandTopic.SHELL, SysCommandTopic.SYS_INFO, SysCommandTopic.REPORT_ENV),
        *(SysCommandTopic.CONFIGURE_SITE_LOG, TrainingTopic.CONFIGURE_JOB_LOG),
        TrainingTopic.DELETE_RUN,  # or another folder of the kit; `clear_old_jobs` removes old jobs
    }
)
log = logging.getLogger(__name__)


class FlareLink:
    """The coordinator's connection to the sites of one job."""

    def __init__(self, proxies: Sequence[Any]) -> None:
        # The dispatcher logs two lines in three files per message, and a model takes many messages.
        logging.getLogger("nvflare.collab.runtime.cell_dispatcher").setLevel(logging.WARNING)
        self._proxies = {proxy.name: proxy for proxy in proxies}
        self._reclaimer = memory_reclaim.MemoryReclaimer()

    @property
    def sites(self) -> list[str]:
        """The sites that take part in this job."""
        return sorted(self._proxies)

    def ask(
        self, site: str, kind: str, header: Mapping[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        """The answer (header, body) to a request, unchecked; ConnectionError if none comes."""
        from nvflare.collab.api.exceptions import CollabCallError

        call = self._proxies[site](timeout=timeout)
        try:
            answer = call.message(kind=kind, header=json.dumps(header), body=body)
        except CollabCallError as error:
            raise ConnectionError(str(error.cause)) from None
        if not isinstance(answer, list | tuple) or len(answer) != 2:
            return None, None
        text, data = answer
        received = len(data) if isinstance(data, bytes | bytearray | memoryview) else 0
        self._reclaimer.handled(len(body) + received)
        return text, data


class CoordinatorComponent:
    """FLARE's server component: continues a run from its last checkpoint."""

    def __init__(self, run: str, fingerprint: str, number: int) -> None:
        self.run = run
        self.fingerprint = fingerprint
        self.number = number

    @collab.main
    def main(self) -> None:
        """Continue the run until it is finished, fails, or another site is ready to join."""
        import torch

        from fedsight.deploy.server.job import run_job

        torch.set_num_threads(1)  # the sums are small: more threads would wait for one another
        folder = Path(collab.workspace.get_root_dir()).resolve().parent.parent
        link = FlareLink(collab.clients)
        run_job(folder, self.run, self.fingerprint, self.number, link)


class SiteComponent:
    """FLARE's client component: answers the coordinator's requests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reclaimer = memory_reclaim.MemoryReclaimer()
        self._service: Any = None

    @collab.publish
    def message(self, kind: str, header: str, body: bytes) -> list[Any]:
        """Answer one request; returns [header as JSON, body].

        FLARE lets every member of a job call every other member; other sites get no answer.
        """
        if collab.caller != "server":
            return [json.dumps({"error": "this site answers only the coordinator"}), b""]
        with self._lock:
            if self._service is None:
                import torch

                from fedsight.deploy.site.service import SiteService

                torch.set_num_threads(1)  # it only copies; the trainer has threads of its own
                home = Path(collab.workspace.get_root_dir()).resolve().parent
                self._service = SiteService(home, collab.site_name, job_requester())
        text, data = self._service.answer(kind, header, body)
        if kind == "propose":
            memory_reclaim.freeze_live_objects()
        self._reclaimer.handled(len(body) + len(data))
        return [text, data]

    @collab.final
    def close(self) -> None:
        """Called by FLARE when the job ends."""
        if self._service is not None:
            self._service.close()


def job_requester() -> Any:
    """Who signed the job of this process, and for which program.

    The signature is verified with this site's own copy of the authority's certificate, so the
    server cannot forge it.
    """
    from nvflare.lighter.utils import verify_folder_signature_and_get_signers

    from fedsight.deploy.site.enforcement import Requester

    workspace = collab.workspace
    app = Path(workspace.get_app_dir(collab.fl_ctx.get_job_id()))
    root = workspace.get_file_path_in_startup("rootCA.pem")
    genuine, signers = verify_folder_signature_and_get_signers(str(app), root)
    leads = tuple(sorted(name for name, _, role in signers if role == "lead"))
    if not genuine or not leads:
        return Requester()
    try:
        signed = (app / "config" / "config_fed_server.json").read_bytes()
    except OSError:
        signed = b""
    return Requester(leads, signed_fingerprint(signed))


def signed_fingerprint(config: bytes) -> str:
    """The program's fingerprint in a job's configuration; empty if it does not say one."""
    try:
        return str(json.loads(config)["components"][0]["args"]["fingerprint"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


class _JobProcess(JobHandleSpec):
    """FLARE's handle on a job's process."""

    def __init__(self, process: spawn.Process) -> None:
        self._process = process

    def poll(self) -> Any:
        """How the process ended, or that it runs, as FLARE's return code."""
        code = self._process.poll()
        if code is None:
            return JobReturnCode.UNKNOWN
        return JOB_RETURN_CODE_MAPPING.get(code, JobReturnCode.EXECUTION_ERROR)

    def terminate(self) -> None:
        """Kill the process; its trainer ends with it."""
        self._process.kill()

    def wait(self) -> None:
        """Wait until the process has ended."""
        self._process.wait()


class _Launcher(ProcessJobLauncher):
    """Starts the process of a job as FLARE would, but forked from the prefork process."""

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> _JobProcess:
        """Called by FLARE to start a job."""
        credentials = get_credential_env(fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS) or {})
        command = shlex.split(self.get_command(job_meta, fl_ctx))
        module, *arguments = command[command.index("-m") + 1 :]
        return _JobProcess(spawn.start(module, arguments, 1, environment=credentials))


class SiteLauncher(_Launcher, ClientProcessJobLauncher):
    """Starts jobs at a site."""


class ServerLauncher(_Launcher, ServerProcessJobLauncher):
    """Starts jobs at the server."""


class PresenceComponent(FLComponent):
    """Adds a site's image summary to its heartbeats, and records them at the server.

    A heartbeat has the sender's name in a context that the sender wrote, so another site's would
    pass: it could seem to have restarted, which ends its part in a round. Therefore the server
    takes the name under which FLARE registered the token that came with the heartbeat.
    """

    def __init__(self) -> None:
        super().__init__()
        self._process = secrets.token_hex(8)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE in the long-lived processes of server and site."""
        home = Path(os.environ.get("FEDSIGHT_HOME", "."))
        if event_type in (EventType.BEFORE_CLIENT_REGISTER, EventType.BEFORE_CLIENT_HEARTBEAT):
            path = home / "declared.json"
            declared = path.read_text(encoding="utf-8") if path.is_file() else "null"
            token = fl_ctx.get_engine().client.token or ""
            text = presence.Heartbeat(token, self._process, json.loads(declared)).encode()
            fl_ctx.set_prop(HEARTBEAT_PROPERTY, text, private=False, sticky=True)
        elif event_type == EventType.AFTER_CLIENT_HEARTBEAT:
            presence.record_answer(home)
        elif event_type == EventType.CLIENT_HEARTBEAT_PROCESSED:
            peer = fl_ctx.get_peer_context()
            found = presence.Heartbeat.decode(peer.get_prop(HEARTBEAT_PROPERTY))
            registered = fl_ctx.get_engine().client_manager.clients.get(found.token)
            if registered is not None:
                presence.record(home / "sites", registered.name, found.process, found.declared)


class RouteComponent(FLComponent):
    """Has the server drop messages that do not come from where they say, or go to another site.

    A site takes orders from whoever reaches it: FLARE's process there does not ask who sends them,
    and asks whether they are permitted only if the sender says so. And FLARE compares a message's
    origin with that of the token in it only while it knows the token. One that it has forgotten,
    because the site registered again or was revoked, is still signed, and any origin passes with
    it; and while a site registers, it needs no token. Our sites have nothing to say to one another.
    """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE in the server's long-lived process, before it accepts jobs.

        Raises UnsafeComponentError, which ends the process, if messages cannot be checked.
        """
        if event_type != EventType.SYSTEM_BOOTSTRAP:
            return
        try:
            cell = fl_ctx.get_engine().get_cell().core_cell
            cell.add_incoming_filter(channel="*", topic="*", cb=refuse_misrouted)
        except Exception as error:  # FLARE logs an error of another kind, and goes on
            raise UnsafeComponentError(f"messages cannot be checked: {error}") from error


def refuse_misrouted(message: Message) -> Message | None:
    """None for a message that a site, the operator or a job sends to the server or to itself, and
    for all that the server's own jobs send; otherwise a refusal.

    FLARE has compared the sender's name, that of the other end of the connection, with its
    certificate. A site passes on messages of its jobs, whose names begin with its own.
    """
    sender = message.get_prop(MessagePropKey.ENDPOINT).name
    origin = message.get_header(MessageHeaderKey.ORIGIN)
    goal = message.get_header(MessageHeaderKey.DESTINATION)
    own = sender.partition(".")[0]
    if _within(origin, sender) and (own == SERVER or _within(goal, SERVER) or _within(goal, own)):
        return None
    shown = printable(origin, MAX_ADDRESS), printable(goal, MAX_ADDRESS)
    log.warning("dropped a message of %s that claims to go from %s to %s", sender, *shown)
    refusal: Message = make_reply(ReturnCode.UNAUTHENTICATED, "not a message of this sender")
    return refusal


def _within(address: object, top: str) -> bool:
    """Whether `address` is that of `top` or of one of its jobs."""
    return isinstance(address, str) and (address == top or address.startswith(f"{top}."))


class OrdersComponent(FLComponent):
    """Takes from FLARE's process at a site what jobs do not need: shell commands that read any
    file, the removal of folders of the kit, settings of logs, the state of the machine.

    `authorization.json` does not stop them: the site asks whether an order is permitted only if the
    server that sends it says so.
    """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE in a site's long-lived process, before it registers.

        Raises UnsafeComponentError, which ends the process, if that fails.
        """
        if event_type != EventType.SYSTEM_BOOTSTRAP:
            return
        try:
            from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

            known = ClientRequestProcessors.request_processors
            known[:] = [one for one in known if not UNWANTED.intersection(one.get_topics())]
        except Exception as error:  # FLARE logs an error of another kind, and goes on
            raise UnsafeComponentError(f"orders cannot be limited: {error}") from error
