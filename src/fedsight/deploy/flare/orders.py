"""Which orders a site's FLARE process follows: the six that a job needs, each with its own check,
and that of `updates.py`.

The others include shell commands that read any file, the removal of folders of the kit, shutdown,
settings of logs, and the state of the machine. `authorization.json` stops none of them: the site
asks whether an order is permitted only if the server that sends it says so.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.private.admin_defs import Message as Order
from nvflare.private.admin_defs import error_reply
from nvflare.private.defs import RequestHeader, TrainingTopic
from nvflare.private.fed.client.admin import RequestProcessor
from nvflare.private.scheduler_constants import ShareableHeader

from fedsight.core.errors import StoreError
from fedsight.core.text import printable
from fedsight.deploy.flare.archives import check_archive
from fedsight.deploy.flare.updates import UpdateProcessor
from fedsight.deploy.membership.kits import AUTHORITY, JOB_ID, clear_old_jobs
from fedsight.deploy.membership.revocations import Revocations

APP = "app"  # the name of the part that a site gets, in `server/job_definition.py`
MAX_DEPLOYED = 16  # jobs that wait for their start; then the oldest is forgotten
MAX_RUNNING = 8  # jobs, each in a process of its own; a server starts four at a time
MAX_META = 1 << 20  # characters of the description of a job, as JSON; 1,000 sites take 150,000
MAX_TOKEN = 64  # characters
# What FLARE says of a job of ours. Another launcher, resources, scopes or code are not among it.
DESCRIPTION = frozenset(
    {
        *("name", "resource_spec", "min_clients", "deploy_map", "study", "job_folder_name"),
        *("submitter_name", "submitter_org", "submitter_role", "job_id", "job_clients"),
        *("submit_time", "submit_time_iso", "start_time", "duration", "data_storage_format"),
        *("status", "schedule_history", "schedule_count", "last_schedule_time"),
    }
)
log = logging.getLogger(__name__)


class Orders:
    """The checks of one site's orders; each raises ValueError for what no job needs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deployed: dict[str, None] = {}
        self._refused = 0
        self.checks: dict[str, Callable[[Order, Any], None]] = {
            TrainingTopic.CHECK_RESOURCE: self._check_resources,  # may the job start here?
            TrainingTopic.CANCEL_RESOURCE: self._check_token,  # it may not start elsewhere
            TrainingTopic.DEPLOY: self._check_deploy,  # here is the job
            TrainingTopic.START_JOB: self._check_start,
            TrainingTopic.ABORT: self._check_abort,  # it has ended elsewhere, or is to end
            TrainingTopic.NOTIFY_JOB_STATUS: self._check_status,  # by the site's own job
        }

    def follow(self, processor: RequestProcessor, order: Order, engine: Any) -> Order:
        """Let FLARE follow an order if it passes its check; returns the answer."""
        try:
            self._check_id(order)
            self.checks[order.topic](order, engine)
        except (ValueError, StoreError) as error:
            self._log(order, error)
            refusal: Order = error_reply(f"refused by the site: {error}")
            return refusal
        if order.topic != TrainingTopic.DEPLOY:
            return processor.process(order, engine)
        answer = processor.process(order, engine)
        with self._lock:
            while len(self._deployed) >= MAX_DEPLOYED:
                del self._deployed[next(iter(self._deployed))]
            self._deployed[_job(order)] = None
            live = {*self._deployed, *engine.get_all_job_ids()}
        clear_old_jobs(Path(engine.args.workspace), live)  # the server chooses how many there are
        return answer

    def _check_id(self, order: Order) -> None:
        job = order.get_header(RequestHeader.JOB_ID)
        if not isinstance(job, str) or not JOB_ID.fullmatch(job):
            raise ValueError("not the identifier of a job")

    def _check_resources(self, order: Order, engine: Any) -> None:
        if order.body != {}:
            raise ValueError("jobs of FedSight reserve no resources")

    def _check_token(self, order: Order, engine: Any) -> None:
        self._check_resources(order, engine)
        token = order.get_header(ShareableHeader.RESOURCE_RESERVE_TOKEN)
        if not isinstance(token, str) or len(token) > MAX_TOKEN:
            raise ValueError("not the token of a reservation")

    def _check_deploy(self, order: Order, engine: Any) -> None:
        _check_description(order)
        if order.get_header(RequestHeader.APP_NAME) != APP:
            raise ValueError(f"the part of a job for sites is called '{APP}'")
        kit = Path(engine.args.workspace)
        folder = kit / _job(order)
        if folder.exists() or folder.is_symlink():
            raise ValueError("a folder of this job exists already")
        revoked = Revocations.read(kit.parent).names
        check_archive(order.body, kit / "startup" / AUTHORITY, revoked)

    def _check_start(self, order: Order, engine: Any) -> None:
        self._check_token(order, engine)
        _check_description(order)
        with self._lock:
            if _job(order) not in self._deployed:
                raise ValueError("the job was not accepted here")
            if len(engine.get_all_job_ids()) >= MAX_RUNNING:
                raise ValueError(f"{MAX_RUNNING} jobs are running here already")
            del self._deployed[_job(order)]

    def _check_abort(self, order: Order, engine: Any) -> None:
        if order.body not in ("", None):
            raise ValueError("ending a job takes nothing but its identifier")

    def _check_status(self, order: Order, engine: Any) -> None:
        status = order.get_header(RequestHeader.JOB_STATUS)
        if not isinstance(status, int | str) or len(str(status)) > MAX_TOKEN:
            raise ValueError("not the status of a job")

    def _log(self, order: Order, why: object) -> None:
        """Say so in the log the first time, and whenever the number has doubled."""
        with self._lock:
            self._refused += 1
            count = self._refused
        if not count & (count - 1):
            log.warning(
                "refused %d orders of the server; the last one, %s: %s",
                *(count, printable(order.topic, 80), why),
            )


class _Checked(RequestProcessor):
    """One of FLARE's processors of orders, behind a check."""

    def __init__(self, orders: Orders, topic: str, processor: RequestProcessor) -> None:
        self._orders, self._topic, self._processor = orders, topic, processor

    def get_topics(self) -> list[str]:
        """The order that it follows."""
        return [self._topic]

    def process(self, req: Order, app_ctx: Any) -> Order:
        """Called by FLARE with an order."""
        return self._orders.follow(self._processor, req, app_ctx)


class OrdersComponent(FLComponent):
    """Leaves FLARE's process at a site the orders of `Orders.checks`, and checks them."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE in a site's long-lived process, before it registers.

        Raises UnsafeComponentError, which ends the process, if that fails.
        """
        if event_type != EventType.SYSTEM_BOOTSTRAP:
            return
        try:
            from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

            orders, known = Orders(), ClientRequestProcessors.request_processors
            by_topic = {topic: one for one in known for topic in one.get_topics()}
            known[:] = [_Checked(orders, topic, by_topic[topic]) for topic in orders.checks]
            known.append(UpdateProcessor())
        except Exception as error:  # FLARE logs an error of another kind, and goes on
            raise UnsafeComponentError(f"orders cannot be limited: {error}") from error


def _job(order: Order) -> str:
    return str(order.get_header(RequestHeader.JOB_ID))


def _check_description(order: Order) -> None:
    """Raise ValueError unless what an order says of its job is what FLARE says of ours."""
    found = order.get_header(RequestHeader.JOB_META)
    if not isinstance(found, dict) or found.get("job_id") != _job(order):
        raise ValueError("the description is not that of the job")
    if unknown := set(found) - DESCRIPTION:
        raise ValueError(f"unknown in the description of a job: {printable(sorted(unknown), 200)}")
    if found.get("resource_spec") or len(json.dumps(found)) > MAX_META:
        raise ValueError("the description of the job asks for resources, or is too long")
