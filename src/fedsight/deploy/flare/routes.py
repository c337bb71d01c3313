"""Which messages of FLARE's pass between machines: those that runs need, and no others.

FLARE has many more commands than a run uses, and hardly asks who sends them: one message of a site
ends any job, another lets the server allocate gigabytes. So every message from another machine is
compared with a list. What is on it was recorded in real runs: sites that connect, jobs that the
operator submits and aborts, processes that are killed, sites that leave and come back. Whatever is
not on it is dropped and counted in the log.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nvflare.fuel.f3.cellnet.defs import (
    CellChannel,
    CellChannelTopic,
    MessageHeaderKey,
    MessagePropKey,
    MessageType,
    ReturnCode,
)
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.endpoint import Endpoint
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import (
    STREAM_ACK_TOPIC,
    STREAM_CHANNEL,
    STREAM_DATA_TOPIC,
    STREAM_ERROR_TOPIC,
    StreamHeaderKey,
)
from nvflare.fuel.utils.admin_name_utils import is_valid_admin_client_name

from fedsight.core.text import printable
from fedsight.deploy.flare.streams import is_sound
from fedsight.deploy.membership.kits import JOB_ID

SERVER = "server"  # FLARE's address of the server; its jobs' begin with it
# A header in which the gate notes the name in the certificate of the connection that a message came
# over: FLARE's own note of it is lost where a message comes in chunks.
CERTIFIED = "fedsight_certified"
MAX_SHOWN = 120  # characters of an address or a topic in the log
MAX_SENDERS = 4096  # whose refused messages are counted
_JOB_ADDRESS = re.compile(rf"(.+)\.({JOB_ID.pattern})")
log = logging.getLogger(__name__)


class Route(NamedTuple):
    """A kind of message: who sends what to whom. Those between two jobs stay within one job."""

    origin: str  # "site", "site's job", "operator", "server", "coordinator" (the server's job)
    goal: str  # the same
    type: str  # FLARE's type of message
    channel: str
    topic: str


def _messages(
    origin: str, goal: str, channel: str, *topics: str, type: str = MessageType.REQ
) -> set[Route]:
    return {Route(origin, goal, type, channel, topic) for topic in topics}


def _streams(origin: str, goal: str, channel: str, *topics: str) -> set[Route]:
    """Messages that FLARE sends in chunks, by the channel and topic of the whole."""
    return _messages(origin, goal, f"{STREAM_CHANNEL}/{channel}", *topics)


_AUX, _RETURN = CellChannel.AUX_COMMUNICATION, CellChannel.RETURN_ONLY
_TASK, _COMMAND = CellChannel.SERVER_MAIN, CellChannel.SERVER_COMMAND
_ADMIN, _CELL = CellChannel.CLIENT_MAIN, CellChannel.CELLNET
_REGISTRATION = (CellChannelTopic.Challenge, CellChannelTopic.Register)
# A site reports that its own part in a job has ended; the server checks whose token it is.
_SITE_REPORTS = (CellChannelTopic.HEART_BEAT, CellChannelTopic.REPORT_JOB_FAILURE)
_STREAM_CONTROL = (STREAM_ACK_TOPIC, STREAM_ERROR_TOPIC)  # chunks received; a stream given up

TO_SERVER: frozenset[Route] = frozenset(
    # A site connects, is alive, and answers the orders in `orders.py`.
    _messages("site", "server", _TASK, *_REGISTRATION, *_SITE_REPORTS)
    | _messages("site", "server", _ADMIN, "admin", type=MessageType.REPLY)
    | _messages("site", "coordinator", STREAM_CHANNEL, STREAM_ERROR_TOPIC)  # its job is gone
    # A site's job joins, is alive, asks for its task (which lasts as long as the job) and ends it.
    | _streams("site's job", "coordinator", _AUX, "__sync_runner__", "__job_heartbeat__")
    | _streams("site's job", "coordinator", _AUX, "__task_check__")
    | _streams("site's job", "coordinator", _COMMAND, "get_task", "submit_update")
    # It answers the coordinator: our messages, and the news that the job is over.
    | _streams("site's job", "coordinator", _RETURN, "collab:call", f"{_AUX}:__end_run__")
    | _messages("site's job", "coordinator", STREAM_CHANNEL, *_STREAM_CONTROL)
    | _messages("site's job", "server", _CELL, CellChannelTopic.Bye)
    # An operator's session logs in, sends commands (which FLARE permits by role) and a job's files.
    | _messages("operator", "server", _TASK, *_REGISTRATION)
    | _streams("operator", "server", CellChannel.HCI, "command")
    | _streams("operator", "server", _AUX, "ObjectStreamer.Request", "ObjectStreamer.Abort")
    | _messages("operator", "server", STREAM_CHANNEL, *_STREAM_CONTROL)
    | _messages("operator", "server", _CELL, CellChannelTopic.Bye)
)
TO_SITES: frozenset[Route] = frozenset(
    # The server answers what a site sends, and gives the orders in `orders.py`.
    _messages("server", "site", _TASK, *_REGISTRATION, *_SITE_REPORTS, type=MessageType.REPLY)
    | _messages("server", "site", _ADMIN, "admin")
    | _messages("server", "site's job", _CELL, CellChannelTopic.Bye, type=MessageType.REPLY)
    | _messages("server", "site's job", STREAM_CHANNEL, STREAM_ERROR_TOPIC)  # its job is gone
    # The coordinator asks our questions, and says that the job is over.
    | _streams("coordinator", "site's job", "collab", "call")
    | _streams("coordinator", "site's job", _AUX, "__end_run__")
    # It answers what a site's job asks.
    | _streams("coordinator", "site's job", _RETURN, f"{_AUX}:__sync_runner__")
    | _streams("coordinator", "site's job", _RETURN, f"{_AUX}:__task_check__")
    | _streams("coordinator", "site's job", _RETURN, f"{_COMMAND}:get_task")
    | _streams("coordinator", "site's job", _RETURN, f"{_COMMAND}:submit_update")
    | _messages("coordinator", "site's job", STREAM_CHANNEL, *_STREAM_CONTROL)
)


# What an operator's session sends of a job's files; it takes no part in reading.
UPLOADS = frozenset(route for route in TO_SERVER if route.topic.startswith("ObjectStreamer."))


class Gate:
    """Drops the messages of other machines that reach a process and are not on its list.

    FLARE has compared the sender's name, that of the other end of the connection, with its
    certificate; but it passes on messages whose origin is another, and what sites send one another.
    And it lets any certificate open an operator's session, in which many commands need no right:
    one allocates as much as it is told, and files that are sent stay on the disk when the job is
    refused. So a session passes only with the certificate of an operator who may open one.
    """

    def __init__(self, address: str, operators: Callable[[], Mapping[str, bool]] = dict) -> None:
        """`address`: FLARE's name of this process; `operators`: who may open sessions now, and
        whether only to read."""
        self._own = _root(address)
        self._operators = operators
        self._lock = threading.Lock()
        self._refused: dict[str, int] = {}

    def refuse(self, message: Message) -> Message | None:
        """None if the message may pass; otherwise a refusal, and FLARE drops the message."""
        endpoint = message.get_prop(MessagePropKey.ENDPOINT)
        sender = str(endpoint.name)
        message.set_header(CERTIFIED, certified_as(message))  # whatever the sender has written
        if _root(sender) == self._own:  # of this machine: itself, its jobs, and what they relay
            return None
        if self._is_known(message, endpoint) and is_sound(message):
            return None
        self._count(message, sender)
        refusal: Message = make_reply(ReturnCode.UNAUTHENTICATED, "not a message of this sender")
        return refusal

    def _is_known(self, message: Message, endpoint: Endpoint) -> bool:
        sender = str(endpoint.name)
        reads: bool | None = False
        if is_valid_admin_client_name(sender):
            reads = self._operators().get(str(certified_as(message)))
            if reads is None:  # not an operator
                return False
        origin = message.get_header(MessageHeaderKey.ORIGIN)
        goal = message.get_header(MessageHeaderKey.DESTINATION)
        if not isinstance(origin, str) or not isinstance(goal, str) or not _within(origin, sender):
            return False
        if self._own == SERVER:
            known, begins, ends = TO_SERVER, _outside(origin), _at_server(goal)
        else:
            known, begins, ends = TO_SITES, _at_server(origin), _at_site(goal, self._own)
        matches = (_JOB_ADDRESS.fullmatch(address) for address in (origin, goal))
        jobs = {match[2] for match in matches if match}
        found = route(message, begins, ends)
        if found is None or (reads and found in UPLOADS):
            return False
        return found in known and len(jobs) <= 1

    def _count(self, message: Message, sender: str) -> None:
        """Say so in the log the first time, and whenever the number has doubled."""
        root = _root(sender)
        with self._lock:
            if root not in self._refused and len(self._refused) >= MAX_SENDERS:
                self._refused.clear()
            count = self._refused[root] = self._refused.get(root, 0) + 1
        if count & (count - 1):
            return
        keys = (
            *(MessageHeaderKey.ORIGIN, MessageHeaderKey.DESTINATION, MessageHeaderKey.CHANNEL),
            *(MessageHeaderKey.TOPIC, StreamHeaderKey.CHANNEL, StreamHeaderKey.TOPIC),
        )
        shown = " ".join(printable(message.get_header(key), MAX_SHOWN) for key in keys)
        log.warning(
            "dropped %d messages of %s that no run needs; the last one: %s",
            *(count, printable(sender, MAX_SHOWN), shown),
        )


def route(message: Message, origin: str, goal: str) -> Route | None:
    """The kind of a message; None if its headers are not texts."""
    channel, topic = (
        message.get_header(key) for key in (MessageHeaderKey.CHANNEL, MessageHeaderKey.TOPIC)
    )
    if (channel, topic) == (STREAM_CHANNEL, STREAM_DATA_TOPIC):
        topic = message.get_header(StreamHeaderKey.TOPIC)
        inner = message.get_header(StreamHeaderKey.CHANNEL)
        channel = f"{STREAM_CHANNEL}/{inner}" if isinstance(inner, str) else None
    parts: tuple[Any, ...] = (message.get_header(MessageHeaderKey.MSG_TYPE), channel, topic)
    return Route(origin, goal, *parts) if all(isinstance(part, str) for part in parts) else None


def certified_as(message: Message) -> object:
    """The name in the certificate at the other end of the connection that a message came over; None
    if it has none.

    The properties of the endpoint would be those of whoever took its name last.
    """
    return message.get_prop(MessagePropKey.COMMON_NAME)


def _root(address: str) -> str:
    return address.partition(".")[0]


def _within(address: str, top: str) -> bool:
    """Whether `address` is that of `top` or of one of its jobs."""
    return address == top or address.startswith(f"{top}.")


def _is_job(address: str, top: str) -> bool:
    found = _JOB_ADDRESS.fullmatch(address)
    return found is not None and found[1] == top


def _at_server(address: str) -> str:
    if address == SERVER:
        return "server"
    return "coordinator" if _is_job(address, SERVER) else ""


def _at_site(address: str, site: str) -> str:
    if address == site:
        return "site"
    return "site's job" if _is_job(address, site) else ""


def _outside(address: str) -> str:
    if is_valid_admin_client_name(address):
        return "operator"
    return _at_site(address, _root(address))
