"""What a site should have of the federation between runs: its renewed certificate, and the list of
revocations. The server sends both as an order of its own; the site checks them and keeps them.

The server cannot make either: the authority has signed them. What a site states with its heartbeats
only says what to send.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from nvflare.private.admin_defs import Message as Order
from nvflare.private.admin_defs import MsgHeader, ReturnCode, error_reply, ok_reply
from nvflare.private.fed.client.admin import RequestProcessor

from fedsight.core.errors import FedSightError
from fedsight.core.text import printable
from fedsight.deploy.membership import certificates, kits, revocations
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.membership.presence import Heartbeat
from fedsight.deploy.membership.revocations import Revocations

TOPIC = "fedsight_update"
OFFER_INTERVAL = 10.0  # seconds between two looks at what a site lacks
ANSWER_TIMEOUT = 10.0  # seconds
MAX_AT_ONCE = 4  # orders whose answers are waited for
LEAST_INTERVAL = 1.0  # seconds between two orders that a site looks at
MAX_SHOWN = 200  # characters of a site's answer in the log
log = logging.getLogger(__name__)


def held(home: Path) -> tuple[str, str]:
    """What the site in the folder `home` has: when its certificate ends, and what stands for its
    list of revocations. Empty if they cannot be read; then nothing is sent."""
    try:
        crt = certificates.read(home / "kit" / "startup" / "client.crt")
        return crt.not_valid_after_utc.isoformat(), Revocations.read(home).digest
    except FedSightError:
        return "", ""


class Updates:
    """Sends sites what they lack; in the server's long-lived process."""

    def __init__(self, federation: Path) -> None:
        self._federation = federation
        self._next: dict[str, float] = {}  # when a site is looked at again
        self._told: dict[str, str] = {}  # what was wrong with a site
        self._free = threading.Semaphore(MAX_AT_ONCE)

    def offer(self, name: str, token: str, said: Heartbeat, admin_server: Any) -> None:
        """After a heartbeat of the site `name`, send it what it lacks, if it is time to look."""
        now = time.monotonic()
        if now < self._next.get(name, 0.0) or not self._free.acquire(blocking=False):
            return
        self._next[name] = now + OFFER_INTERVAL
        try:
            body = self.lacking(name, said)
        except FedSightError as error:
            self._tell(name, f"cannot be sent an update: {error}")
            body = {}
        if not body:
            self._free.release()
            return
        work = (name, token, body, admin_server)
        threading.Thread(target=self._send, args=work, daemon=True).start()

    def lacking(self, name: str, said: Heartbeat) -> dict[str, Any]:
        """What a site lacks by its own account; nothing for a site that was not admitted, or was
        revoked."""
        federation = FederationFolder.open(self._federation)
        if not federation.is_admitted(name):
            return {}
        path = federation.folder / "admitted" / f"{name}.crt"
        found: dict[str, Any] = {}
        with contextlib.suppress(ValueError, TypeError):  # of a time that a site has made up
            ends = datetime.fromisoformat(said.certificate)
            if certificates.read(path).not_valid_after_utc > ends:
                found["certificate"] = path.read_text(encoding="ascii")
        if said.revocations and federation.revocations.digest != said.revocations:
            found["revocations"] = federation.revocations.table()
        return found

    def _send(self, name: str, token: str, body: dict[str, Any], admin_server: Any) -> None:
        try:
            answer = admin_server.send_request_to_client(Order(TOPIC, body), token, ANSWER_TIMEOUT)
            reply = None if answer is None else answer.reply
            if reply is None:
                return  # it is asked again
            if reply.get_header(MsgHeader.RETURN_CODE) != ReturnCode.OK:
                self._tell(name, reply.body)
            elif "certificate" in body:
                FederationFolder.open(self._federation).log_event("certificate taken", site=name)
        except Exception:  # of FLARE's, or a full disk: the next heartbeat is another occasion
            log.exception("site %s could not be sent an update", name)
        finally:
            self._free.release()

    def _tell(self, name: str, why: object) -> None:
        """Say it in the log, and again only once something else is wrong."""
        if self._told.get(name) != (said := printable(why, MAX_SHOWN)):
            self._told[name] = said
            log.warning("site %s: %s", name, said)


class UpdateProcessor(RequestProcessor):
    """Follows the order at a site; in its long-lived process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = float("-inf")
        self._refused = 0

    def get_topics(self) -> list[str]:
        """The order that it follows."""
        return [TOPIC]

    def process(self, req: Order, app_ctx: Any) -> Order:
        """Called by FLARE with an order; says whether the site has what was sent."""
        with self._lock:
            try:
                now = time.monotonic()
                if now - self._last < LEAST_INTERVAL:
                    raise ValueError("too often")
                self._last = now
                receive(Path(app_ctx.args.workspace).resolve().parent, req.body)
            except (FedSightError, ValueError, OSError) as error:
                return self._refusal(error)
        return ok_reply()

    def _refusal(self, why: Exception) -> Order:
        """Say so in the log the first time, and whenever the number has doubled."""
        self._refused += 1
        if not self._refused & (self._refused - 1):
            log.warning("refused %d updates of the server; the last one: %s", self._refused, why)
        refusal: Order = error_reply(f"refused by the site: {why}")
        return refusal


def receive(home: Path, body: object) -> None:
    """Keep at the site in `home` what the server has sent, as far as the authority has signed it.

    Raises ValueError, DeployError or StoreError, and keeps what is there, otherwise.
    """
    if not isinstance(body, dict) or not set(body) <= {"certificate", "revocations"}:
        raise ValueError("expected a certificate, or a list of revocations")
    startup = home / "kit" / "startup"
    if "revocations" in body:
        revocations.accept(home, startup / kits.AUTHORITY, body["revocations"])
    if "certificate" in body:
        text = body["certificate"]
        if not isinstance(text, str) or len(text) > certificates.MAX_BYTES:
            raise ValueError("expected a certificate as text")
        if certificates.take(startup, text.encode("utf-8", "replace")):
            log.info("the certificate of this site was renewed")
