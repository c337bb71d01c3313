"""The tokens of a console that outlive it: for whom each is, what it permits, and when it ends.

They are in a file that only its owner can read, as SHA-256 of 256 random bits each: the file gives
nobody a token. A console looks at it again and again, so whoever is taken off it is out within a
second.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedsight.console.rights import Right, Rights, of_token
from fedsight.core import locks
from fedsight.core.errors import FedSightError, StoreError
from fedsight.core.files import make_folder, parse_json, refuse_readable, write_atomically
from fedsight.core.text import is_printable
from fedsight.data.fetch.cache import cache

if TYPE_CHECKING:
    from fedsight.deploy.membership.federation import FederationFolder

PLACE, FILE = "console", "tokens.json"
DAYS = 30  # for which a token holds by default
MAX_DAYS = 366
MAX_NAME = 80  # characters of a name
MAX_TOKENS = 200
GLANCE = 1.0  # seconds for which the file is not looked at again
LOCK_TIMEOUT = 10.0  # seconds to wait for another process that writes it
_DAY = 86400
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Token:
    """A token on file."""

    name: str  # of whom it is for
    hash: str  # SHA-256 of the token, in hexadecimal digits
    read_only: bool
    made: int  # seconds since 1970
    until: int  # the same

    @property
    def ended(self) -> bool:
        """Whether its time is over."""
        return time.time() >= self.until

    @property
    def days(self) -> int:
        """For how many days it was made."""
        return max(1, round((self.until - self.made) / _DAY))


@dataclass(frozen=True)
class Content:
    """What is on file."""

    base: str  # the path of the console's pages, which stays the same
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class TokenFile:
    """The file with the tokens of one console."""

    path: Path

    @classmethod
    def within(cls, folder: Path) -> TokenFile:
        """That of the console of the federation, or of the site, in `folder`."""
        return cls(folder / PLACE / FILE)

    @classmethod
    def of_runs(cls, root: Path) -> TokenFile:
        """That of the console of a folder of runs: in the user's own folder, since the runs may be
        from somebody else, and their tokens with them."""
        name = hashlib.sha256(bytes(root.resolve())).hexdigest()[:32]
        return cls(cache() / PLACE / name / FILE)

    def read(self) -> Content | None:
        """What is on file; None if there is none. StoreError if it is broken, DeployError if others
        may read or write it."""
        try:
            refuse_readable(self.path, "the list of tokens")
            table = parse_json(self.path.read_bytes())
            tokens = tuple(_token(one) for one in table["tokens"])
            return Content(_base(table["base"]), tokens)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            cure = "remove the file, and make new tokens: fedsight tokens add NAME"
            raise StoreError(f"{self.path} cannot be read: {error}", cure) from None

    def add(self, name: str, read_only: bool = False, days: int = DAYS) -> tuple[str, Token]:
        """Make a token for somebody; returns it, and what is on file of it.

        Raises StoreError if there is one for that name.
        """
        if not (is_printable(name) and 0 < len(name) <= MAX_NAME):
            cause = f"a name has 1 to {MAX_NAME} printable characters"
            raise StoreError(cause, "choose another name")
        with self._changing() as (content, write):
            if any(one.name == name for one in content.tokens):
                cause = f"'{name}' has a token already"
                raise StoreError(cause, f"replace it with: fedsight tokens rotate {name}")
            if len(content.tokens) >= MAX_TOKENS:
                cause = f"there are {MAX_TOKENS} tokens already"
                raise StoreError(cause, "take some away: fedsight tokens revoke NAME")
            secret, made = _made(name, read_only, days)
            write(replace(content, tokens=(*content.tokens, made)))
        return secret, made

    def rotate(self, name: str) -> tuple[str, Token]:
        """Make another token in place of somebody's, for as long; the old one ends at once."""
        with self._changing() as (content, write):
            old = _named(content, name)
            secret, made = _made(name, old.read_only, old.days)
            others = (one for one in content.tokens if one is not old)
            write(replace(content, tokens=(*others, made)))
        return secret, made

    def revoke(self, name: str) -> None:
        """Take somebody's token away; StoreError if there is none."""
        with self._changing() as (content, write):
            old = _named(content, name)
            others = tuple(one for one in content.tokens if one is not old)
            write(replace(content, tokens=others))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[Content, _Write]]:
        make_folder(self.path.parent)
        self.path.parent.chmod(0o700)
        busy = StoreError(f"another process is changing {self.path}", "try again")
        with locks.hold(self.path.parent / ".lock", LOCK_TIMEOUT, busy):
            yield self.read() or Content(f"/{secrets.token_urlsafe(9)}"), _Write(self.path)


@dataclass(frozen=True)
class _Write:
    path: Path

    def __call__(self, content: Content) -> None:
        table = {"base": content.base, "tokens": [asdict(one) for one in content.tokens]}
        write_atomically(self.path, json.dumps(table, indent=1).encode(), 0o600)


class Known:
    """Who the tokens on file are for, and what each may do now."""

    def __init__(self, file: TokenFile, rights: Rights = of_token) -> None:
        """Raises StoreError or DeployError if the file cannot be used."""
        self._file, self._rights = file, rights
        self._tokens: tuple[Token, ...] = ()
        self._until = 0.0
        content = file.read()
        self.base = None if content is None else content.base

    @property
    def names(self) -> list[str]:
        """For whom there are tokens that hold."""
        return [one.name for one in self._now() if self._right(one)]

    def holder(self, hash: bytes) -> tuple[str, Right] | None:
        """Whose token has this SHA-256, and what they may do; None for no token that holds."""
        found = None
        for one in self._now():
            if hmac.compare_digest(bytes.fromhex(one.hash), hash):  # and the others all the same
                found = one
        if found is None or not (right := self._right(found)):
            return None
        return found.name, right

    def _right(self, token: Token) -> Right:
        if token.ended:
            return Right.NONE
        most = self._rights(token.name)
        return min(most, Right.LOOK) if token.read_only else most

    def _now(self) -> tuple[Token, ...]:
        """The tokens on file; none if it cannot be read."""
        if (now := time.monotonic()) >= self._until:
            self._until = now + GLANCE
            try:
                content = self._file.read()
            except FedSightError as error:
                log.warning("no token on file is taken: %s", error)
                content = None
            self._tokens = () if content is None else content.tokens
        return self._tokens


def hash_of(secret: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def require_operator(federation: FederationFolder, name: str) -> None:
    """Raise StoreError unless `name` is an operator of the federation who was not revoked: their
    role says what they may do, and their revocation ends it."""
    known = federation.operators()
    if name not in known:
        cause = f"'{name}' is not an operator of the federation '{federation.name}'"
        cure = f"its operators are: {', '.join(known)}; add one: fedsight federation operator add"
        raise StoreError(cause, cure)
    if known[name].revoked:
        raise StoreError(f"'{name}' was revoked: {known[name].revoked}", "choose another operator")


def _made(name: str, read_only: bool, days: int) -> tuple[str, Token]:
    if not 1 <= days <= MAX_DAYS:
        raise StoreError(f"a token holds for 1 to {MAX_DAYS} days", "choose such a number")
    secret, now = secrets.token_urlsafe(32), int(time.time())
    return secret, Token(name, hash_of(secret).hex(), read_only, now, now + days * _DAY)


def _named(content: Content, name: str) -> Token:
    found = next((one for one in content.tokens if one.name == name), None)
    if found is None:
        names = ", ".join(one.name for one in content.tokens) or "nobody yet"
        raise StoreError(f"'{name}' has no token", f"there are tokens for: {names}")
    return found


def _base(value: object) -> str:
    if not (isinstance(value, str) and value.startswith("/") and value[1:].isascii()):
        raise ValueError("the path is malformed")
    if len(value) < 10 or not value[1:].replace("-", "").replace("_", "").isalnum():
        raise ValueError("the path is malformed")
    return value


def _token(table: dict[str, object]) -> Token:
    found = Token(**table)  # type: ignore[arg-type]
    texts, numbers = (found.name, found.hash), (found.made, found.until)
    if not all(isinstance(one, str) for one in texts) or len(bytes.fromhex(found.hash)) != 32:
        raise ValueError("an entry is malformed")
    if type(found.read_only) is not bool or not all(type(one) is int for one in numbers):
        raise ValueError("an entry is malformed")
    return found
