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
from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessagePropKey, ReturnCode
from nvflare.fuel.f3.cellnet.registry import Registry
from nvflare.fuel.f3.endpoint import Endpoint
from nvflare.fuel.f3.message import Message
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

from fedsight.deploy.flare import UNWANTED, OrdersComponent, RouteComponent, refuse_misrouted
from fedsight.deploy.membership.kits import write_policies

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


def message(origin: object, sender: str = MALLORY, goal: object = WARD, **headers: Any) -> Message:
    """A message to `goal` that reaches the server over the connection with `sender`."""
    known = {MessageHeaderKey.ORIGIN: origin, MessageHeaderKey.DESTINATION: goal}
    found = Message({**known, **headers}, b"")
    found.set_prop(MessagePropKey.ENDPOINT, Endpoint(sender))
    return found


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
    found = refuse_misrouted(with_token(token, server_key, origin))
    assert found is not None
    assert found.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.UNAUTHENTICATED


@pytest.mark.parametrize("origin", [None, "", 7, ["mallory"], "mallory2", "Mallory", ".mallory"])
def test_an_origin_that_only_resembles_the_senders_is_dropped(origin: object) -> None:
    assert refuse_misrouted(message(origin, goal="server")) is not None


@pytest.mark.parametrize("goal", ["ward", WARD, "mallory2", "server2", None, "", 7])
def test_nothing_goes_from_a_site_to_another(
    server: SimpleNamespace, server_key: rsa.RSAPrivateKey, goal: object
) -> None:
    found = with_token(NEW, server_key, MALLORY)
    found.set_header(MessageHeaderKey.DESTINATION, goal)
    assert not flare_refuses(server, server_key, found)
    assert refuse_misrouted(found) is not None


@pytest.mark.parametrize(
    ("origin", "sender", "goal"),
    [
        (MALLORY, MALLORY, "server"),
        (f"{MALLORY}.{JOB}", MALLORY, COORDINATOR),  # the site passes on what its job sends
        (WARD, WARD, COORDINATOR),  # a job that is connected by itself
        (WARD, WARD, "ward"),
        (COORDINATOR, COORDINATOR, WARD),
        (COORDINATOR, COORDINATOR, "server"),
    ],
)
def test_honest_messages_pass(origin: str, sender: str, goal: str) -> None:
    assert refuse_misrouted(message(origin, sender, goal)) is None


def test_the_server_checks_every_message_before_it_accepts_jobs(tmp_path: Path) -> None:
    write_policies(tmp_path, "server")
    parts = json.loads((tmp_path / "local" / "resources.json").read_text())["components"]
    assert "fedsight.deploy.flare.RouteComponent" in [part["path"] for part in parts]

    filters = Registry()
    core = SimpleNamespace(in_filter_reg=filters)
    core.add_incoming_filter = lambda **given: CoreCell.add_incoming_filter(core, **given)
    engine = SimpleNamespace(get_cell=lambda: SimpleNamespace(core_cell=core))
    context = SimpleNamespace(get_engine=lambda: engine)
    RouteComponent().handle_event(EventType.SYSTEM_BOOTSTRAP, context)
    assert [one.cb for one in filters.find("any channel", "any topic")] == [refuse_misrouted]


def test_a_server_that_cannot_check_them_does_not_start() -> None:
    engine = SimpleNamespace(get_cell=lambda: None)
    context = SimpleNamespace(get_engine=lambda: engine)
    with pytest.raises(UnsafeComponentError, match="messages cannot be checked"):
        RouteComponent().handle_event(EventType.SYSTEM_BOOTSTRAP, context)


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


def test_ours_follows_no_such_order(site: SimpleNamespace, tmp_path: Path) -> None:
    secret = tmp_path / "client.key"
    secret.write_text("the site's private key")
    OrdersComponent().handle_event(EventType.SYSTEM_BOOTSTRAP, SimpleNamespace())
    for topic in UNWANTED:
        assert answer(site, topic, f"cat {secret}") == "invalid_request"
    needed = {TrainingTopic.DEPLOY, TrainingTopic.START_JOB, TrainingTopic.ABORT}
    assert needed <= site.processors.keys()


def test_the_orders_are_limited_at_every_site(tmp_path: Path) -> None:
    write_policies(tmp_path, "site")
    parts = json.loads((tmp_path / "local" / "resources.json").read_text())["components"]
    assert "fedsight.deploy.flare.OrdersComponent" in [part["path"] for part in parts]
