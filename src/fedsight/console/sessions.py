"""The browsers that have shown a token of the console, and what each may do now."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass

from fedsight.console.rights import Right
from fedsight.console.tokens import Known, hash_of

MOST_SESSIONS = 64  # browsers that are logged in at once; the oldest has to log in again
MOST_OF_ONE = 8  # of them with the same token, so that nobody logs all others out
HOURS = 12  # after which somebody with a token on file has to log in again
MOST_WRONG = 10  # wrong tokens from one address
WRONG_WITHIN = 300.0  # in so many seconds
MOST_ADDRESSES = 1000  # whose wrong tokens are counted; of more, the oldest are forgotten
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Somebody who is logged in."""

    name: str  # empty: whoever started the console
    right: Right


@dataclass(frozen=True)
class _Session:
    hash: bytes  # of its secret, so that a dump of the memory gives no session
    token: bytes  # the same of its token
    until: float | None  # monotonic seconds; None: as long as the console


class Sessions:
    """The tokens of a console, and the browsers that have shown one.

    Its own token is made when it starts, and printed. With `known`, tokens on file are taken too,
    and with `own` false, those alone.
    """

    def __init__(self, known: Known | None = None, own: bool = True) -> None:
        self.token = secrets.token_urlsafe(32) if own else ""
        self._own = hash_of(self.token) if own else None
        self._known = known
        # The path of all pages, which stays the same where tokens do.
        on_file = None if known is None or own else known.base
        self.base = on_file or f"/{secrets.token_urlsafe(9)}"
        self._sessions: list[_Session] = []
        self.attempts = Attempts()

    @property
    def names(self) -> list[str]:
        """Whose tokens on file are taken."""
        return [] if self._known is None else self._known.names

    def enter(self, token: str) -> str | None:
        """The secret of a new session for whoever has a token; None for another text."""
        hash = hash_of(token)
        holder = self._holder(hash)
        if holder is None:
            return None
        secret = secrets.token_urlsafe(32)
        until = time.monotonic() + HOURS * 3600 if holder.name else None
        own = [one for one in self._sessions if hmac.compare_digest(one.token, hash)]
        over = own[: max(0, len(own) + 1 - MOST_OF_ONE)]
        others = [one for one in self._sessions if one not in over]
        self._sessions = [*others[1 - MOST_SESSIONS :], _Session(hash_of(secret), hash, until)]
        return secret

    def who(self, secret: str) -> Holder | None:
        """Whose session this is, and what they may do now; None if it is none, or has ended."""
        hash, found = hash_of(secret), None
        for one in self._sessions:
            if hmac.compare_digest(one.hash, hash):  # and the others all the same
                found = one
        if found is None:
            return None
        over = found.until is not None and time.monotonic() >= found.until
        holder = None if over else self._holder(found.token)
        if holder is None:
            self._sessions = [one for one in self._sessions if one is not found]
        return holder

    def leave(self, secret: str) -> None:
        """End a session."""
        hash = hash_of(secret)
        self._sessions = [one for one in self._sessions if not hmac.compare_digest(one.hash, hash)]

    def _holder(self, token: bytes) -> Holder | None:
        if self._own is not None and hmac.compare_digest(token, self._own):
            return Holder("", Right.ALL)
        found = None if self._known is None else self._known.holder(token)
        return None if found is None else Holder(*found)


class Attempts:
    """Wrong tokens, by the address that they came from.

    Nobody guesses 256 random bits; but who tries is to be slow, and noticed. Addresses of this
    machine are not limited: all its users have the same one, and so have all who come through a
    proxy, and one could lock out the others.
    """

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, list[float]] = OrderedDict()
        self._all = 0

    def may_try(self, address: str) -> bool:
        """Whether somebody there may try another token now."""
        since = time.monotonic() - WRONG_WITHIN
        group = _group(address)
        late = [at for at in self._wrong.get(group, []) if at > since]
        return not group or len(late) < MOST_WRONG

    def wrong(self, address: str) -> None:
        """Note a wrong token. The 1st, 2nd, 4th and so on are told."""
        self._all += 1
        if self._all & (self._all - 1) == 0:
            log.warning("wrong tokens so far: %d; the latest from %s", self._all, address)
        if not (group := _group(address)):
            return
        now = time.monotonic()
        late = [at for at in self._wrong.pop(group, []) if at > now - WRONG_WITHIN]
        self._wrong[group] = [*late, now][-MOST_WRONG:]
        while len(self._wrong) > MOST_ADDRESSES:
            self._wrong.popitem(last=False)


def _group(address: str) -> str:
    """Addresses that count as one: an IPv4 address, a /64 of IPv6; empty for this machine's."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        found = found.ipv4_mapped or found
    if found.is_loopback:
        return ""
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
