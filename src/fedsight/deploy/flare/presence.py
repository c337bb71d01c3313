"""Heartbeats: a site adds the summary of its images, and the server records who is connected."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.private.defs import CellChannel, CellChannelTopic

from fedsight.core.errors import StoreError
from fedsight.core.package import installed
from fedsight.deploy.flare.updates import Updates, held
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.operators import read_revoked
from fedsight.deploy.site import approvals
from fedsight.deploy.site.state import state_of

DISABLED = "is disabled"  # the end of FLARE's answer to a site that was revoked
HEARTBEAT_PROPERTY = "fedsight_heartbeat"  # in the context that FLARE sends with a heartbeat


class Replies:
    """Whether the server itself has answered the last heartbeat, at a site.

    FLARE says that a heartbeat is over also where it could not be delivered.
    """

    def __init__(self, refused: Callable[[], None]) -> None:
        """`refused` is called when it refuses one because the site was revoked."""
        self.came = False
        self._refused = refused
        self._cell: Any = None

    def await_one(self, cell: Any) -> None:
        """A heartbeat is about to be sent by this cell; there is none before the first one."""
        self.came = False
        if cell is not None and cell is not self._cell:
            self._cell = cell
            # Beside FLARE's own filter for all replies: one for a topic would replace it.
            cell.core_cell.add_incoming_reply_filter("*", "*", self._look)

    def _look(self, message: Any) -> None:
        header = message.get_header
        what = header(MessageHeaderKey.CHANNEL), header(MessageHeaderKey.TOPIC)
        if what == (CellChannel.SERVER_MAIN, CellChannelTopic.HEART_BEAT):
            code = header(MessageHeaderKey.RETURN_CODE)
            self.came = self.came or code in (None, ReturnCode.OK)
            # FLARE answers with the same code where it does not know the token, after a restart;
            # and then calls no handler of ours.
            why = str(header(MessageHeaderKey.ERROR))
            if code == ReturnCode.UNAUTHENTICATED and why.endswith(DISABLED):
                self._refused()


class PresenceComponent(FLComponent):
    """Adds a site's image summary to its heartbeats, and records them at the server.

    A heartbeat has the sender's name in a context that the sender wrote, so another site's would
    pass: it could seem to have restarted, which ends its part in a round. Therefore the server
    takes the name under which FLARE registered the token that came with the heartbeat.
    """

    def __init__(self) -> None:
        super().__init__()
        self._process = secrets.token_hex(8)
        self._state: presence.State = ""  # what the last heartbeat of this site said
        self._updates: Updates | None = None  # at the server
        self._replies = Replies(self._note_refusal)  # at a site

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE in the long-lived processes of server and site."""
        home = _home()
        if event_type in (EventType.BEFORE_CLIENT_REGISTER, EventType.BEFORE_CLIENT_HEARTBEAT):
            path = home / "declared.json"
            declared = path.read_text(encoding="utf-8") if path.is_file() else "null"
            token = fl_ctx.get_engine().client.token or ""
            self._state = state_of(home)
            ours = json.loads(declared), str(installed()), self._state
            has = *held(home), approvals.mark(home)
            text = presence.Heartbeat(token, self._process, *ours, *has).encode()
            fl_ctx.set_prop(HEARTBEAT_PROPERTY, text, private=False, sticky=True)
            self._replies.await_one(fl_ctx.get_engine().get_cell())
        elif event_type == EventType.AFTER_CLIENT_HEARTBEAT and self._replies.came:
            presence.record_answer(home, self._state)
        elif event_type == EventType.CLIENT_HEARTBEAT_PROCESSED:
            self._take_heartbeat(home, fl_ctx)

    def _take_heartbeat(self, home: Path, fl_ctx: FLContext) -> None:
        """At the server: record who is there, and drop who was revoked."""
        clients, revoked = fl_ctx.get_engine().client_manager.clients, _revoked(home.parent)
        peer = fl_ctx.get_peer_context()
        found = presence.Heartbeat.decode(peer.get_prop(HEARTBEAT_PROPERTY))
        registered = clients.get(found.token)
        if registered is not None and registered.name not in revoked:
            told = found.declared, found.package, found.state
            presence.record(home / "sites", registered.name, found.process, *told)
            presence.record_decision(home / "sites", registered.name, found.decided)
            self._offer(home, registered, found, fl_ctx)
        # At once, whenever the operator's session comes to say so, too; and at anybody's heartbeat,
        # as that of a revoked site need not say whose it is.
        for name in sorted({one.name for one in [*clients.values()]}.intersection(revoked)):
            fl_ctx.get_engine().disable_clients([name])

    def _note_refusal(self) -> None:
        """The server refuses the heartbeats of this site."""
        with contextlib.suppress(OSError):  # the disk is full, which is said instead
            presence.record_answer(_home(), self._state, refused=True)

    def _offer(self, home: Path, site: Any, found: presence.Heartbeat, fl_ctx: FLContext) -> None:
        """Send the site what it lacks."""
        if self._updates is None:
            self._updates = Updates(home.parent)
        server = fl_ctx.get_engine().server.admin_server
        self._updates.offer(site.name, site.token, found, server)


def _revoked(federation: Path) -> Collection[str]:
    """The sites that were revoked; none if that cannot be read, which each job says."""
    try:
        return read_revoked(federation)
    except StoreError:
        return ()


def _home() -> Path:
    """The folder of the site or the server that this process belongs to."""
    return Path(os.environ.get("FEDSIGHT_HOME", "."))
