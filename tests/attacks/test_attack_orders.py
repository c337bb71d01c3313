"""A malicious site gives another site orders: by FLARE's own commands, or as the coordinator.

FLARE's process at a site follows orders of whoever reaches it, and FLARE's server passes on what
sites send one another. Among the orders are shell commands that read any text file. Whether an
order is permitted is asked only if its sender says so, so a malicious coordinator gives them, too.

Our own part of a site answers only the coordinator, and knows it by the origin in a message's
header, which the sender writes. The server compares it with that for which it issued the token in
the message. But a token that it has forgotten (the site has registered again since, or was revoked)
is still signed, and then it compares nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from flare_limits import limits_set
from hypothesis import given
from hypothesis import strategies as st
from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import (
    MessageHeaderKey,
    MessagePropKey,
    MessageType,
    ReturnCode,
)
from nvflare.fuel.f3.cellnet.registry import Registry
from nvflare.fuel.f3.endpoint import Endpoint
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import (
    STREAM_CHANNEL,
    STREAM_DATA_TOPIC,
    StreamHeaderKey,
)
from nvflare.lighter.utils import sign_content
from nvflare.private.admin_defs import Message as Order
from nvflare.private.defs import (
    CellChannel,
    CellChannelTopic,
    CellMessageHeaderKeys,
    SysCommandTopic,
    TrainingTopic,
)
from nvflare.private.fed.authenticator import validate_auth_headers
from nvflare.private.fed.client.admin import FedAdminAgent
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors
from nvflare.private.fed.server.client_manager import ClientManager
from nvflare.private.fed.server.fed_server import FederatedServer
from nvflare.private.fed.utils.identity_utils import TokenVerifier

from fedsight.deploy.flare.orders import Orders, OrdersComponent
from fedsight.deploy.flare.routes import TO_SERVER, TO_SITES, Gate, Route
from fedsight.deploy.flare.updates import TOPIC
from fedsight.deploy.membership.federation import OPERATOR as CERTIFIED
from fedsight.deploy.membership.kits import write_policies
from fedsight.deploy.processes import supervisor

JOB = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
COORDINATOR, MALLORY, WARD = f"server.{JOB}", "mallory", f"ward.{JOB}"
OLD, NEW = "the token of the first registration", "the token of the second"


@pytest.fixture(scope="module")
def server_key() -> rsa.RSAPrivateKey:
    """The key with which the server signs tokens."""
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def server() -> SimpleNamespace:
    """What FLARE's server knows after mallory has registered twice: only the second token."""
    manager = ClientManager("wards", 1, 10)
    client = Client(MALLORY, NEW)
    client.set_fqcn(MALLORY)
    manager.clients[NEW] = client
    return SimpleNamespace(client_manager=manager)


HEARTBEAT = Route("site", "server", MessageType.REQ, CellChannel.SERVER_MAIN, "heart_beat")
ANSWER = Route("", "", MessageType.REQ, f"{STREAM_CHANNEL}/return_only", "collab:call")


def message(
    origin: object,
    sender: str = MALLORY,
    goal: object = WARD,
    kind: Route = ANSWER,
    **headers: Any,
) -> Message:
    """A message to `goal` that comes over the connection with `sender`."""
    known: dict[str, Any] = {
        MessageHeaderKey.ORIGIN: origin,
        MessageHeaderKey.DESTINATION: goal,
        MessageHeaderKey.MSG_TYPE: kind.type,
        MessageHeaderKey.CHANNEL: kind.channel,
        MessageHeaderKey.TOPIC: kind.topic,
    }
    outer, _, inner = kind.channel.partition("/")
    if inner:
        known |= {
            MessageHeaderKey.CHANNEL: outer,
            MessageHeaderKey.TOPIC: STREAM_DATA_TOPIC,
            StreamHeaderKey.CHANNEL: inner,
            StreamHeaderKey.TOPIC: kind.topic,
            StreamHeaderKey.STREAM_ID: 7,
            StreamHeaderKey.SEQUENCE: 0,
        }
    known[StreamHeaderKey.STREAM_ID] = 7
    found = Message({**known, **headers}, b"")
    found.set_prop(MessagePropKey.ENDPOINT, Endpoint(sender))
    found.set_prop(MessagePropKey.COMMON_NAME, CERTIFIED if sender == OPERATOR else sender)
    return found


def at_server(found: Message) -> Message | None:
    """What our server makes of a message: None, or a refusal."""
    refusal: Message | None = Gate("server", lambda: {CERTIFIED: False}).refuse(found)
    return refusal


def with_token(token: str, key: rsa.RSAPrivateKey, origin: str) -> Message:
    signature = sign_content(MALLORY + token, key)
    return message(
        origin,
        **{
            CellMessageHeaderKeys.CLIENT_NAME: MALLORY,
            CellMessageHeaderKeys.TOKEN: token,
            CellMessageHeaderKeys.TOKEN_SIGNATURE: signature,
        },
    )


def flare_refuses(server: SimpleNamespace, key: rsa.RSAPrivateKey, found: Message) -> bool:
    """Whether FLARE's own check drops a message."""
    certificate = SimpleNamespace(public_key=key.public_key)

    def resolve(name: str, token: str) -> str | None:
        known: str | None = FederatedServer._resolve_client_fqcn_for_auth(server, name, token)
        return known

    log = logging.getLogger(__name__)
    return bool(validate_auth_headers(found, TokenVerifier(certificate), log, resolve, "server"))


def test_flare_passes_on_orders_of_a_site_with_a_forgotten_token(
    server: SimpleNamespace, server_key: rsa.RSAPrivateKey
) -> None:
    assert flare_refuses(server, server_key, with_token(NEW, server_key, COORDINATOR))
    assert not flare_refuses(server, server_key, with_token(OLD, server_key, COORDINATOR))


def test_flare_registers_a_site_under_any_origin(
    server: SimpleNamespace, server_key: rsa.RSAPrivateKey
) -> None:
    headers = {
        MessageHeaderKey.CHANNEL: CellChannel.SERVER_MAIN,
        MessageHeaderKey.TOPIC: CellChannelTopic.Register,
    }
    assert not flare_refuses(server, server_key, message("ward", **headers))


@pytest.mark.parametrize("token", [OLD, NEW])
@pytest.mark.parametrize("origin", [COORDINATOR, "server", "ward", WARD])
def test_ours_drops_them_whatever_the_token(
    server_key: rsa.RSAPrivateKey, origin: str, token: str
) -> None:
    found = at_server(with_token(token, server_key, origin))
    assert found is not None
    assert found.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.UNAUTHENTICATED


@pytest.mark.parametrize("origin", [None, "", 7, ["mallory"], "mallory2", "Mallory", ".mallory"])
def test_an_origin_that_only_resembles_the_senders_is_dropped(origin: object) -> None:
    assert at_server(message(MALLORY, goal="server", kind=HEARTBEAT)) is None
    assert at_server(message(origin, goal="server", kind=HEARTBEAT)) is not None


@pytest.mark.parametrize("goal", ["ward", WARD, "mallory2", "server2", None, "", 7])
def test_nothing_goes_from_a_site_to_another(
    server: SimpleNamespace, server_key: rsa.RSAPrivateKey, goal: object
) -> None:
    found = with_token(NEW, server_key, MALLORY)
    found.set_header(MessageHeaderKey.DESTINATION, goal)
    assert not flare_refuses(server, server_key, found)
    assert at_server(found) is not None


# -- what a site, an operator and the server may say to one another -------------------------------

OPERATOR = "_admin_0a1c127b-1a50-4d8a-a4df-8f728fd687d4"
ADDRESSES = {
    "site": MALLORY,
    "site's job": f"{MALLORY}.{JOB}",
    "operator": OPERATOR,
    "server": "server",
    "coordinator": COORDINATOR,
}


def of(kind: Route, sender: str = "") -> Message:
    """A message of the kind, over the connection of its origin if no sender is given."""
    origin = ADDRESSES[kind.origin]
    return message(origin, sender or origin, ADDRESSES[kind.goal], kind)


def test_what_runs_need_passes() -> None:
    assert [kind for kind in TO_SERVER if at_server(of(kind)) is not None] == []
    site, job = Gate(MALLORY), Gate(f"{MALLORY}.{JOB}")
    assert [kind for kind in TO_SITES if site.refuse(of(kind, "server")) is not None] == []
    assert [kind for kind in TO_SITES if job.refuse(of(kind, "server")) is not None] == []
    # A site passes on what its job sends, and the server what its job does.
    assert all(
        at_server(of(kind, MALLORY)) is None for kind in TO_SERVER if kind.origin == "site's job"
    )
    assert at_server(message(COORDINATOR, COORDINATOR, WARD)) is None


HARMFUL = [  # found by attacks; FLARE's processes obey each
    ("server_command", "abort", "coordinator"),  # ends the job
    ("server_command", "update_run_status", "coordinator"),
    ("server_command", "server_state", "coordinator"),
    ("server_command", "handle_dead_job", "coordinator"),  # another site's part in it
    ("server_command", "configure_job_log", "coordinator"),
    ("aux_communication", "fed.event", "coordinator"),
    ("aux_communication", "__stop_cellnet__", "coordinator"),
    ("server_parent_listener", "update_run_status", "server"),
    ("_net_manager", "speed", "server"),  # allocates what it says, and sends it to another site
    ("_net_manager", "stop_cell", "server"),
    ("cellnet.channel", "bulk", "server"),  # several messages in one, which nothing else checks
    ("hci_channel", "command", "server"),  # an operator's
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("type", [MessageType.REQ, MessageType.REPLY, MessageType.RETURN])
@pytest.mark.parametrize(("channel", "topic", "goal"), HARMFUL)
def test_flare_obeys_what_ours_drops(
    server: SimpleNamespace,
    server_key: rsa.RSAPrivateKey,
    channel: str,
    topic: str,
    goal: str,
    type: str,
    stream: bool,
) -> None:
    kind = Route("", "", type, f"{STREAM_CHANNEL}/{channel}" if stream else channel, topic)
    for origin in (MALLORY, f"{MALLORY}.{JOB}"):
        found = message(origin, MALLORY, ADDRESSES[goal], kind)
        assert at_server(found) is not None
    signature = with_token(NEW, server_key, MALLORY).headers
    weak = message(MALLORY, MALLORY, ADDRESSES[goal], kind)
    for key in (CellMessageHeaderKeys.TOKEN, CellMessageHeaderKeys.TOKEN_SIGNATURE):
        weak.set_header(key, signature[key])
    weak.set_header(CellMessageHeaderKeys.CLIENT_NAME, MALLORY)
    assert not flare_refuses(server, server_key, weak)


@pytest.mark.parametrize(
    ("channel", "topic"),
    [("_net_manager", "speed"), ("cellnet.channel", "bulk"), ("client_command", "abort")],
)
def test_a_site_drops_what_no_run_needs_of_the_server(channel: str, topic: str) -> None:
    for gate in (Gate(MALLORY), Gate(f"{MALLORY}.{JOB}")):
        for goal in (MALLORY, f"{MALLORY}.{JOB}"):
            for origin in ("server", COORDINATOR):
                kind = Route("", "", MessageType.REQ, channel, topic)
                assert gate.refuse(message(origin, "server", goal, kind)) is not None


def test_the_jobs_of_both_ends_are_the_same() -> None:
    other = JOB[:-1] + "9"
    kind = Route("coordinator", "site's job", MessageType.REQ, f"{STREAM_CHANNEL}/collab", "call")
    gate = Gate(MALLORY)
    assert gate.refuse(message(COORDINATOR, "server", f"{MALLORY}.{JOB}", kind)) is None
    assert gate.refuse(message(COORDINATOR, "server", f"{MALLORY}.{other}", kind)) is not None
    assert at_server(message(f"{MALLORY}.{other}", MALLORY, COORDINATOR)) is not None


def test_nobody_but_the_server_reaches_a_site() -> None:
    kind = Route("server", "site", MessageType.REQ, CellChannel.CLIENT_MAIN, "admin")
    assert Gate("ward").refuse(message("server", "server", "ward", kind)) is None
    for sender in (MALLORY, OPERATOR, "server2"):
        assert Gate("ward").refuse(message("server", sender, "ward", kind)) is not None


@given(
    headers=st.dictionaries(
        st.sampled_from(
            [
                *(MessageHeaderKey.ORIGIN, MessageHeaderKey.DESTINATION),
                *(MessageHeaderKey.MSG_TYPE, MessageHeaderKey.CHANNEL, MessageHeaderKey.TOPIC),
                *(StreamHeaderKey.CHANNEL, StreamHeaderKey.TOPIC, StreamHeaderKey.STREAM_ID),
            ]
        ),
        st.none() | st.integers() | st.text() | st.lists(st.text()),
        min_size=1,
    )
)
def test_headers_of_any_kind_never_fail_the_check(headers: dict[str, Any]) -> None:
    """FLARE would take an exception for a refusal; but it is logged at length."""
    found = message(f"{MALLORY}.{JOB}", MALLORY, COORDINATOR)
    found.headers.update(headers)
    refusal = at_server(found)
    changed = {key for key, value in headers.items() if key != StreamHeaderKey.STREAM_ID}
    assert refusal is not None or not changed


def test_dropped_messages_are_counted_in_few_and_short_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate("server")
    for _ in range(1000):
        gate.refuse(message("\x1b" * 10_000, goal="server", kind=HEARTBEAT))
    assert len(caplog.records) == 10
    assert "dropped 512 messages of mallory" in caplog.messages[-1]
    assert all(len(text) < 2_000 and text.isprintable() for text in caplog.messages)


def test_every_process_of_flare_checks_before_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path.cwd()
    processes = [supervisor.server(here, here), supervisor.site(here, here, "ward")]
    assert [one.module for one in processes] == [supervisor.FLARE_ENTRY] * 2
    limited = SimpleNamespace()

    def start(self: Any) -> None:
        limited.filters = self.in_filter_reg.find("any channel", "any topic")

    monkeypatch.setattr(CoreCell, "start", start)
    with limits_set():
        core: Any = object.__new__(CoreCell)
        core.my_info, core.in_filter_reg = SimpleNamespace(fqcn="server"), Registry()
        core.start()
    assert CoreCell.start is start
    assert [one.cb.__func__ for one in limited.filters] == [Gate.refuse]


# -- orders that reach a site ----------------------------------------------------------------------


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What FLARE's process at a site knows; the list of orders is one of this test's own."""
    orders = list(ClientRequestProcessors.request_processors)
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", orders)

    @contextlib.contextmanager
    def context() -> Iterator[SimpleNamespace]:
        yield SimpleNamespace()

    return SimpleNamespace(auditor=None, app_ctx=SimpleNamespace(new_context=context))


def answer(site: SimpleNamespace, topic: str, body: str) -> Any:
    """The body of the answer to an order that does not ask for authorization."""
    known = ClientRequestProcessors.request_processors
    site.processors = {topic: one for one in known for topic in one.get_topics()}
    return FedAdminAgent._dispatch_request(site, Message({}, Order(topic, body))).payload.body


def test_a_site_of_flare_shows_its_files_to_whoever_asks(
    site: SimpleNamespace, tmp_path: Path
) -> None:
    secret = tmp_path / "client.key"
    secret.write_text("the site's private key")
    assert answer(site, SysCommandTopic.SHELL, f"cat {secret}") == "the site's private key"


def test_ours_follows_what_jobs_need_and_nothing_else(
    site: SimpleNamespace, tmp_path: Path
) -> None:
    secret = tmp_path / "client.key"
    secret.write_text("the site's private key")
    topics = [t for one in ClientRequestProcessors.request_processors for t in one.get_topics()]
    OrdersComponent().handle_event(EventType.SYSTEM_BOOTSTRAP, SimpleNamespace())
    for topic in set(topics) - set(Orders().checks):
        assert answer(site, topic, f"cat {secret}") == "invalid_request"
    assert site.processors.keys() == {
        *(TrainingTopic.CHECK_RESOURCE, TrainingTopic.CANCEL_RESOURCE, TrainingTopic.DEPLOY),
        *(TrainingTopic.START_JOB, TrainingTopic.ABORT, TrainingTopic.NOTIFY_JOB_STATUS),
        TOPIC,
    }
    for topic in Orders().checks:
        assert "not the identifier of a job" in answer(site, topic, "")


def test_a_site_whose_orders_cannot_be_limited_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", [])
    with pytest.raises(UnsafeComponentError, match="orders cannot be limited"):
        OrdersComponent().handle_event(EventType.SYSTEM_BOOTSTRAP, SimpleNamespace())


def test_the_orders_are_limited_at_every_site(tmp_path: Path) -> None:
    write_policies(tmp_path, "site")
    parts = json.loads((tmp_path / "local" / "resources.json").read_text())["components"]
    assert "fedsight.deploy.flare.orders.OrdersComponent" in [part["path"] for part in parts]
