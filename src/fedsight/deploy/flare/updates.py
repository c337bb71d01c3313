"""What a site should have of the federation between runs: its renewed certificate, and the list of
revocations. The server sends both as an order of its own; the site checks them and keeps them.

The server cannot make either: the authority has signed them. What a site states with its heartbeats
only says what to send.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Sequence
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
MAX_INTERVAL = 3600.0  # seconds, for a site that has not answered, or late, again and again
PROMPT = 2.0  # seconds in which a site answers
ANSWER_TIMEOUT = 10.0  # seconds
MAX_AT_ONCE = 4  # orders whose answers are waited for
LEAST_INTERVAL = 1.0  # seconds between two orders that a site looks at
MAX_SHOWN = 200  # characters of a site's answer in the log
log = logging.getLogger(__name__)


def held(home: Path) -> tuple[str, str]:
    """What the site in the folder `home` has: when its certificate ends, and what stands for its
    list of revocations. What cannot be read is empty; then nothing is sent for it."""
    ends = digest = ""
    with contextlib.suppress(FedSightError):
        crt = certificates.read(home / "kit" / "startup" / "client.crt")
        ends = crt.not_valid_after_utc.isoformat()
    with contextlib.suppress(FedSightError):
        digest = Revocations.read(home).digest
    return ends, digest


class Updates:
    """Sends sites what they lack; in the server's long-lived process."""

    def __init__(self, federation: Path) -> None:
        self._federation = federation
        self._next: dict[str, float] = {}  # when a site is looked at again
        self._waits: dict[str, float] = {}  # seconds until then, after a site that did not answer
        self._sent: dict[str, str] = {}  # when the certificate ends that a site was sent
        self._taken: dict[str, str] = {}  # when the last one ends that was noted as taken
        self._told: dict[str, str] = {}  # what was wrong with a site
        self._free = threading.Semaphore(MAX_AT_ONCE)

    def offer(self, name: str, token: str, said: Heartbeat, admin_server: Any) -> None:
        """After a heartbeat of the site `name`, send it what it lacks, if it is time to look."""
        self._note_taken(name, said)
        now = time.monotonic()
        if now < self._next.get(name, 0.0) or not self._free.acquire(blocking=False):
            return
        self._next[name] = now + OFFER_INTERVAL
        sending = False
        try:
            if body := self.lacking(name, said):
                work = (name, token, body, admin_server)
                self._next[name] = math.inf  # until it has answered
                threading.Thread(target=self._send, args=work, daemon=True).start()
                sending = True
        except FedSightError as error:
            self._tell(name, f"cannot be sent an update: {error}")
        finally:
            if not sending:
                self._next[name] = now + OFFER_INTERVAL
                self._free.release()

    def lacking(self, name: str, said: Heartbeat) -> dict[str, Any]:
        """What a site lacks by its own account; nothing for a site that was not admitted, or was
        revoked. What cannot be read here is said in the log, and the rest is sent."""
        federation = FederationFolder.open(self._federation)
        if not federation.is_admitted(name):
            return {}
        path = federation.folder / "admitted" / f"{name}.crt"
        found: dict[str, Any] = {}
        wrong: list[Exception] = []
        try:
            with contextlib.suppress(ValueError, TypeError):  # of a time that a site has made up
                given = datetime.fromisoformat(said.certificate)
                ends = certificates.read(path).not_valid_after_utc
                if ends > given:
                    found["certificate"] = path.read_text(encoding="ascii")
                    self._sent[name] = ends.isoformat()
        except (FedSightError, OSError) as error:
            wrong.append(error)
        try:
            if said.revocations and federation.revocations.digest != said.revocations:
                found["revocations"] = federation.revocations.table()
        except FedSightError as error:
            wrong.append(error)
        if wrong:
            self._tell(name, f"cannot be sent an update: {_joined(wrong)}")
        return found

    def _note_taken(self, name: str, said: Heartbeat) -> None:
        """Write to the history that a site has the certificate that it was sent, once for each: it
        says so as often as it likes."""
        ends = self._sent.get(name)
        if ends is None or said.certificate != ends or self._taken.get(name) == ends:
            return
        self._taken[name] = ends
        try:
            FederationFolder.open(self._federation).log_event("certificate taken", site=name)
        except (FedSightError, OSError) as error:
            log.warning("site %s has its renewed certificate, which is not noted: %s", name, error)

    def _send(self, name: str, token: str, body: dict[str, Any], admin_server: Any) -> None:
        begun, prompt = time.monotonic(), False
        try:
            answer = admin_server.send_request_to_client(Order(TOPIC, body), token, ANSWER_TIMEOUT)
            reply = None if answer is None else answer.reply
            if reply is None:
                return  # it is asked again, later and later
            prompt = time.monotonic() - begun <= PROMPT
            if reply.get_header(MsgHeader.RETURN_CODE) != ReturnCode.OK:
                self._tell(name, reply.body)
        except Exception:  # of FLARE's: a later heartbeat is another occasion
            log.exception("site %s could not be sent an update", name)
        finally:
            wait = OFFER_INTERVAL
            if not prompt:  # a few such sites would keep the others from their updates
                wait = min(2 * self._waits.get(name, OFFER_INTERVAL), MAX_INTERVAL)
            self._waits[name] = wait
            self._next[name] = time.monotonic() + wait
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

    Raises ValueError, OSError or a FedSightError, and keeps what is there, for the rest.
    """
    if not isinstance(body, dict) or not set(body) <= {"certificate", "revocations"}:
        raise ValueError("expected a certificate, or a list of revocations")
    startup = home / "kit" / "startup"
    wrong: list[Exception] = []
    try:
        if "revocations" in body:
            revocations.accept(home, startup / kits.AUTHORITY, body["revocations"])
    except (FedSightError, ValueError, OSError) as error:
        wrong.append(error)  # and the certificate is taken all the same
    try:
        if "certificate" in body:
            _take(startup, body["certificate"])
    except (FedSightError, ValueError, OSError) as error:
        wrong.append(error)
    if wrong:
        raise wrong[0] if len(wrong) == 1 else ValueError(_joined(wrong))


def _take(startup: Path, text: object) -> None:
    if not isinstance(text, str) or len(text) > certificates.MAX_BYTES:
        raise ValueError("expected a certificate as text")
    if certificates.take(startup, text.encode("utf-8", "replace")):
        log.info("the certificate of this site was renewed")


def _joined(wrong: Sequence[Exception]) -> str:
    return "; ".join(str(error) for error in wrong)
