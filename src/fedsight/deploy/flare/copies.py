"""Spares FLARE's processes work on large messages that changes nothing.

A model passes four processes of FLARE's in each direction. FLARE copies every chunk of it several
times in each, writes its whole content as text for a line that the log leaves out, and verifies the
same signature with each chunk. What is sent, checked and refused stays the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from nvflare.fuel.f3.connection import BytesAlike
from nvflare.fuel.f3.drivers.socket_conn import SocketConnection
from nvflare.fuel.f3.sfm.prefix import PREFIX_LEN, Prefix
from nvflare.fuel.f3.sfm.sfm_conn import SfmConnection
from nvflare.fuel.utils.buffer_list import ConsumableBufferList
from nvflare.private.fed.utils.identity_utils import TokenVerifier

LARGE = 64 << 10  # bytes from which a copy costs more than a second write, or a second section
MAX_VERIFIERS = 16  # certificates that a process remembers: its server's, with renewed ones
MAX_ASKED = 4096  # characters of what is remembered: FLARE's are some 500
MAX_VERIFIED = 1024  # signatures that a process remembers: one of each site and operator


class Chunks(ConsumableBufferList):
    """The chunks of a message. Its text says how many, not what is in them: FLARE makes it for a
    line of its log at a level that is off, of four characters for each byte."""

    def __repr__(self) -> str:
        return f"<{len(self)} chunks>"

    __str__ = __repr__


def send_frame(
    self: Any, prefix: Prefix, headers: Mapping[str, Any] | None, payload: BytesAlike | None
) -> None:
    """FLARE's `SfmConnection.send_frame`, which writes the head and the content of a large message
    one after the other; the bytes on the connection are the same."""
    if not payload or len(payload) < LARGE or not isinstance(self.conn, SocketConnection):
        _send_frame(self, prefix, headers, payload)
        return
    packed = self.headers_to_bytes(headers) or b""
    prefix.length = PREFIX_LEN + len(packed) + len(payload)
    prefix.header_len = len(packed)
    prefix.sequence = self.next_sequence()
    head = bytearray(PREFIX_LEN)
    prefix.to_buffer(head, 0)
    with self.lock:  # frames of several threads must not be mixed
        with self.send_state_lock:
            self.send_started_at = time.monotonic()
        try:
            self.conn.send_frame(head + packed)
            _finish(self.conn, payload)
        finally:
            with self.send_state_lock:
                self.send_started_at = 0.0


def _finish(connection: SocketConnection, payload: BytesAlike) -> None:
    """Send what follows a head that was sent: without it nobody could read the next frame."""
    try:
        connection.send_frame(payload)
    except BaseException:
        connection.close()
        raise


class Verified:
    """Signatures that were found to be valid, the newest ones of one verifier.

    A site's token and its signature come with each message, and the verifier's key never changes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, str], None] = {}

    def __contains__(self, what: object) -> bool:
        with self._lock:
            return what in self._known

    def add(self, what: tuple[str, str, str]) -> None:
        """Remember one, and forget the oldest if there are too many."""
        with self._lock:
            self._known[what] = None
            if len(self._known) > MAX_VERIFIED:
                del self._known[next(iter(self._known))]


def verify(self: Any, client_name: Any, token: Any, signature: Any) -> bool:
    """FLARE's `TokenVerifier.verify`, which knows a signature that it has found to be valid."""
    asked = client_name, token, signature
    if not all(type(part) is str for part in asked):
        return bool(_verify(self, *asked))
    known: Verified = self.__dict__.setdefault("verified", Verified())
    if asked in known:
        return True
    if not _verify(self, *asked):
        return False
    # A valid signature may be as long as a message: what is no base64 in it does not count.
    if sum(map(len, asked)) <= MAX_ASKED:
        known.add(asked)
    return True


def read_frame(self: Any) -> BytesAlike:
    """FLARE's `SocketConnection.read_frame`; the parts of a large frame are not copies of it."""
    frame = _read_frame(self)
    return memoryview(frame) if len(frame) >= LARGE else frame


def begin_verifier(self: Any, cert: Any) -> None:
    """FLARE's `TokenVerifier.__init__`: all verifiers of a certificate are one. FLARE makes one for
    each message."""
    with _LOCK:
        if cert not in _VERIFIERS:
            _begin_verifier(self, cert)
            if len(_VERIFIERS) >= MAX_VERIFIERS:
                _VERIFIERS.clear()
            _VERIFIERS[cert] = self.__dict__
        self.__dict__ = _VERIFIERS[cert]


_LOCK = threading.Lock()
_VERIFIERS: dict[Any, dict[str, Any]] = {}  # what they know, by certificate
# FLARE's own; AttributeError if this version has no such name.
_send_frame, _verify = SfmConnection.send_frame, TokenVerifier.verify
_begin_verifier = TokenVerifier.__init__
_read_frame = SocketConnection.read_frame


def spare_copies() -> None:
    """Have the FLARE of this process handle large messages so."""
    SfmConnection.send_frame = send_frame
    TokenVerifier.__init__ = begin_verifier
    TokenVerifier.verify = verify
    SocketConnection.read_frame = read_frame
