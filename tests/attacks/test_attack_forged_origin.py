"""A malicious site gives another site orders in the coordinator's name.

Sites answer only the coordinator, and know it by the origin in a message's header, which its sender
writes. FLARE's server compares the origin with that for which it issued the token in the message.
But a token that it has forgotten (the site has registered again since, or was revoked) is still
signed, and then it compares nothing.
"""

from __future__ import annotations

import json
import logging
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
from nvflare.private.defs import CellChannel, CellChannelTopic, CellMessageHeaderKeys
from nvflare.private.fed.authenticator import validate_auth_headers
from nvflare.private.fed.server.client_manager import ClientManager
from nvflare.private.fed.server.fed_server import FederatedServer
from nvflare.private.fed.utils.identity_utils import TokenVerifier

from fedsight.deploy.flare import OriginComponent, refuse_forged_origin
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


def message(origin: object, sender: str = MALLORY, **headers: Any) -> Message:
    """A message for a job of ward that reaches the server over the connection with `sender`."""
    known = {MessageHeaderKey.ORIGIN: origin, MessageHeaderKey.DESTINATION: WARD}
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
    found = refuse_forged_origin(with_token(token, server_key, origin))
    assert found is not None
    assert found.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.UNAUTHENTICATED


@pytest.mark.parametrize("origin", [None, "", 7, ["mallory"], "mallory2", "Mallory", ".mallory"])
def test_an_origin_that_only_resembles_the_senders_is_dropped(origin: object) -> None:
    assert refuse_forged_origin(message(origin)) is not None


@pytest.mark.parametrize(
    ("origin", "sender"),
    [
        (MALLORY, MALLORY),
        (f"{MALLORY}.{JOB}", MALLORY),  # the site passes on what its job sends
        (WARD, WARD),  # a job that is connected by itself
        (COORDINATOR, COORDINATOR),
    ],
)
def test_honest_messages_pass(origin: str, sender: str) -> None:
    assert refuse_forged_origin(message(origin, sender)) is None


def test_the_server_checks_every_message_before_it_accepts_jobs(tmp_path: Path) -> None:
    write_policies(tmp_path, "server")
    parts = json.loads((tmp_path / "local" / "resources.json").read_text())["components"]
    assert "fedsight.deploy.flare.OriginComponent" in [part["path"] for part in parts]

    filters = Registry()
    core = SimpleNamespace(in_filter_reg=filters)
    core.add_incoming_filter = lambda **given: CoreCell.add_incoming_filter(core, **given)
    engine = SimpleNamespace(get_cell=lambda: SimpleNamespace(core_cell=core))
    context = SimpleNamespace(get_engine=lambda: engine)
    OriginComponent().handle_event(EventType.SYSTEM_BOOTSTRAP, context)
    assert [one.cb for one in filters.find("any channel", "any topic")] == [refuse_forged_origin]


def test_a_server_that_cannot_check_them_does_not_start() -> None:
    engine = SimpleNamespace(get_cell=lambda: None)
    context = SimpleNamespace(get_engine=lambda: engine)
    with pytest.raises(UnsafeComponentError, match="messages cannot be checked"):
        OriginComponent().handle_event(EventType.SYSTEM_BOOTSTRAP, context)
