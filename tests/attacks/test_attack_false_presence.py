"""A malicious site sends heartbeats in another's name, to end its part in a run or fill the disk.

FLARE checks who sent a message, but the context that comes with it is the sender's own. A server
that takes the name from there records for `ward` what `mallory` says: with another process it seems
to have been restarted, so the coordinator gives it up in the middle of a round.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.private.fed.server.client_manager import ClientManager

from fedsight.deploy.flare.presence import HEARTBEAT_PROPERTY, PresenceComponent
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.operators import REVOKED
from fedsight.deploy.membership.presence import Heartbeat

TOKENS = {"ward": "a secret of ward and the server", "mallory": "a secret of mallory"}
Send = Callable[[str, str], None]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClientManager:
    """FLARE's own list of the clients that it has authenticated."""
    monkeypatch.setenv("FEDSIGHT_HOME", str(tmp_path))
    manager = ClientManager("wards", 1, 10)
    for name, token in TOKENS.items():
        manager.clients[token] = Client(name, token)
    return manager


def heartbeat(server: ClientManager, claimed: str, text: object) -> None:
    """The server handles a heartbeat whose context names `claimed`, as FLARE's event."""
    engine = SimpleNamespace(
        client_manager=server,
        disable_clients=lambda names: [server.disable_client(name) for name in names],
        fire_event=lambda *_: None,
        server=SimpleNamespace(admin_server=None),
    )
    context: FLContext = FLContextManager(engine, "localhost").new_context()
    sender = FLContext()
    sender.put(ReservedKey.IDENTITY_NAME, claimed, private=False, sticky=False)
    sender.put(HEARTBEAT_PROPERTY, text, private=False, sticky=False)
    context.set_peer_context(sender)
    PresenceComponent().handle_event(EventType.CLIENT_HEARTBEAT_PROCESSED, context)


class NaivePresence(PresenceComponent):
    """As it was: it believes the name in the context."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called for every heartbeat."""
        peer = fl_ctx.get_peer_context()
        found = Heartbeat.decode(peer.get_prop(HEARTBEAT_PROPERTY))
        folder = Path(os.environ["FEDSIGHT_HOME"]) / "sites"
        presence.record(folder, peer.get_identity_name(), found.process, found.declared)


def forged(process: str) -> str:
    """What mallory sends: its own token, for it knows no other."""
    return Heartbeat(TOKENS["mallory"], process, {"train": 7}).encode()


def begin(server: ClientManager, tmp_path: Path) -> float:
    """The honest heartbeat of ward; returns when a job begins after it."""
    heartbeat(server, "ward", Heartbeat(TOKENS["ward"], "first").encode())
    time.sleep(0.01)
    return time.time()


def test_a_server_that_believes_the_name_gives_an_honest_site_up(
    server: ClientManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = begin(server, tmp_path)
    monkeypatch.setattr(f"{__name__}.PresenceComponent", NaivePresence)
    heartbeat(server, "ward", forged("second"))
    found = presence.presence(tmp_path / "sites", "ward")
    assert found is not None
    assert found.since > began  # what `has_left` asks
    for number in range(50):
        heartbeat(server, f"site{number}", forged("x"))
    assert len(list((tmp_path / "sites").iterdir())) > 50


def test_a_heartbeat_counts_for_the_site_whose_token_it_has(
    server: ClientManager, tmp_path: Path
) -> None:
    began = begin(server, tmp_path)
    for number in range(50):
        heartbeat(server, f"site{number}", forged("x"))
        heartbeat(server, "ward", forged("second"))
    found = presence.presences(tmp_path / "sites")
    assert set(found) == {"ward", "mallory"}
    assert found["ward"].since < began
    assert (found["ward"].process, found["ward"].declared) == ("first", None)


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        "",
        "[" * 10**5,
        Heartbeat("", "p").encode(),
        Heartbeat("unknown", "p").encode(),
        json.dumps({"token": ["x"], "process": "p", "declared": None}),
        json.dumps({"token": TOKENS["ward"] * 10, "process": "p"}),
    ],
)
def test_a_heartbeat_without_a_token_of_this_server_is_not_recorded(
    server: ClientManager, tmp_path: Path, text: object
) -> None:
    heartbeat(server, "ward", text)
    assert presence.presences(tmp_path / "sites") == {}


@pytest.mark.parametrize("text", [None, Heartbeat("", "p").encode(), forged("x")])
def test_a_revoked_site_is_dropped_whatever_its_heartbeats_say(
    server: ClientManager, tmp_path: Path, text: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIGHT_HOME", str(tmp_path / "server"))
    (tmp_path / "server").mkdir()
    (tmp_path / REVOKED).write_text(json.dumps({"mallory": "left the study"}))
    heartbeat(server, "mallory", text)
    assert server.is_client_disabled("mallory")
    assert [one.name for one in server.clients.values()] == ["ward"]
    assert presence.presences(tmp_path / "server" / "sites") == {}
    heartbeat(server, "ward", Heartbeat(TOKENS["ward"], "first").encode())
    assert set(presence.presences(tmp_path / "server" / "sites")) == {"ward"}
    assert not server.is_client_disabled("ward")
