"""The coordinator and the site of a job as FLARE components.

FLARE carries messages between job processes over mutual TLS. The protocol itself is in
`engines/remote/engine.py` (the coordinator's side) and `deploy/site/service.py` (the site's side).
Only one method is published, and it takes text, bytes and small numbers: a larger integer, or an
object of another class, would fail in FLARE's serialisation as a silent timeout.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.collab import collab

from fedsight.deploy.processes import memory_reclaim
from fedsight.engines.remote.conversation import JobEndedError


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
        """The answer (header, body) to a request, unchecked; ConnectionError if none comes,
        JobEndedError if none can come any more."""
        from nvflare.collab.api.exceptions import CollabCallError, RunAborted

        call = self._proxies[site](timeout=timeout)
        try:
            answer = call.message(kind=kind, header=json.dumps(header), body=body)
        except CollabCallError as error:
            raise ConnectionError(str(error.cause)) from None
        except RunAborted:
            raise JobEndedError from None
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
    server cannot forge it. Nobody is returned unless it was one operator alone: parts of a job
    could have been signed for another one.
    """
    from nvflare.lighter.utils import verify_folder_signature_and_get_signers

    from fedsight.deploy.site.enforcement import Requester

    workspace = collab.workspace
    app = Path(workspace.get_app_dir(collab.fl_ctx.get_job_id()))
    root = workspace.get_file_path_in_startup("rootCA.pem")
    genuine, signers = verify_folder_signature_and_get_signers(str(app), root)
    if not genuine or [role for _, _, role in signers] != ["lead"]:
        return Requester()
    leads = tuple(name for name, _, _ in signers)
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
