"""A site opens an operator's session, and takes the server's memory and disk with it.

FLARE lets whoever has a certificate of the federation connect under an address of operators, and
log in under its own name. Submitting a job takes a right, but many commands take none: `speed`
lets the server allocate as many kilobytes as it is told. The files of a job arrive before anybody
asks whether it may be submitted, and stay on the server's disk when it is refused.

With real processes: `test_a_session_takes_the_operators_certificate` in `tests/faults/`.
"""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessagePropKey
from nvflare.fuel.f3.cellnet.identity import CellIdentityResolver
from nvflare.fuel.f3.cellnet.net_manager import NetManager
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.endpoint import Endpoint
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import (
    STREAM_CHANNEL,
    STREAM_DATA_TOPIC,
    StreamHeaderKey,
)
from nvflare.fuel.hci.conn import Connection
from nvflare.fuel.hci.server.authz import AuthzFilter
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.hci.server.reg import ServerCommandRegister

from fedsight.deploy.flare.routes import TO_SERVER, Gate, Route
from fedsight.deploy.membership.federation import OPERATOR

MALLORY = "mallory"
ADDRESS = f"_admin_{uuid.uuid4()}"  # FLARE's name of a session, which the sender chooses
PEER = DriverParams.PEER_CN.value
SAID = sorted(route for route in TO_SERVER if route.origin == "operator")


def said(route: Route, certified: object) -> Message:
    """What a session says to the server, over a connection with a certificate of this name."""
    channel, _, inner = route.channel.partition("/")
    streamed = bool(inner)
    found = Message(
        {
            MessageHeaderKey.ORIGIN: ADDRESS,
            MessageHeaderKey.DESTINATION: "server",
            MessageHeaderKey.MSG_TYPE: route.type,
            MessageHeaderKey.CHANNEL: channel,
            MessageHeaderKey.TOPIC: STREAM_DATA_TOPIC if streamed else route.topic,
            StreamHeaderKey.CHANNEL: inner,
            StreamHeaderKey.TOPIC: route.topic,
            StreamHeaderKey.STREAM_ID: 7,
            StreamHeaderKey.SEQUENCE: 0,
        },
        b"",
    )
    assert channel == STREAM_CHANNEL or not streamed
    # Another operator has taken the same address since; its messages are not this one's.
    found.set_prop(MessagePropKey.ENDPOINT, Endpoint(ADDRESS, conn_props={PEER: OPERATOR}))
    if certified is not None:
        found.set_prop(MessagePropKey.COMMON_NAME, certified)
    return found


def test_flare_lets_any_certificate_open_a_session() -> None:
    CellIdentityResolver().require_match(ADDRESS, MALLORY, "a connection")
    with pytest.raises(ValueError, match="requires identity"):
        CellIdentityResolver().require_match("ward", MALLORY, "a connection")


def test_flare_allocates_what_a_session_without_any_right_says() -> None:
    asked: list[Any] = []

    def allocate(**facts: object) -> dict[str, object]:
        asked.append(facts)
        return {}

    agent = SimpleNamespace(speed_test=allocate)
    commands = ServerCommandRegister(app_ctx=None)
    commands.add_filter(AuthzFilter())
    commands.register_module(NetManager(agent))
    commands.finalize()
    connection = Connection()
    connection.set_props({ConnProps.USER_NAME: MALLORY, ConnProps.USER_ROLE: "client"})
    commands.process_command(connection, "speed server server 1 64000000")
    assert asked[0]["payload_size"] == 64_000_000  # kilobytes


@pytest.mark.parametrize("certified", [MALLORY, "guest@fedsight.local", "N/A", "", None])
def test_ours_hears_nothing_from_a_session_without_the_operators_certificate(
    certified: object,
) -> None:
    gate = Gate("server", lambda: {OPERATOR: False})
    assert SAID
    assert all(gate.refuse(said(route, certified)) is not None for route in SAID)


def test_the_operators_own_session_is_heard() -> None:
    gate = Gate("server", lambda: {OPERATOR: False})
    assert all(gate.refuse(said(route, OPERATOR)) is None for route in SAID)
