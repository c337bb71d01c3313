"""The list of revocations: signed by the federation's authority, and held by its sites.

It names sites and operators. The server sends it to the sites that are connected, and shows it with
every proposal. Nobody is ever taken off it, so a site refuses a list that lacks a name on its own,
whatever its number: a server that was restored from an older backup brings nobody back, however
many it has revoked since.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from fedsight.core import locks
from fedsight.core.errors import DeployError, SiteError, StoreError
from fedsight.core.files import parse_json, write_atomically
from fedsight.deploy.membership.kits import MAX_SITES

MAX_NAMES = 2 * MAX_SITES
FILE = "revocations.json"  # in a federation's folder, and in a site's
LOCK_TIMEOUT = 10.0  # seconds to wait for another job of this site
_CONTEXT = "FedSight revocations 1"  # of a signature, so that it means nothing else
_MAX_CHARACTERS = 64  # of a name
_PADDING = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)


@dataclass(frozen=True)
class Revocations:
    """A list of revoked sites and operators. Of two, none is newer unless it names all that are on
    the other."""

    number: int = 0  # of the federation's lists; it decides nothing
    names: tuple[str, ...] = ()  # of sites and operators, sorted
    signature: str = ""  # Base64 of RSASSA-PSS with SHA-256, by the authority's key

    @classmethod
    def of(cls, table: Any) -> Revocations:
        """From plain values, as another machine sent them; ValueError unless they are a list."""
        if table is None:
            return cls()
        if not isinstance(table, dict) or set(table) != {"number", "names", "signature"}:
            raise ValueError("expected a number, names and a signature")
        number, names, signature = (table[key] for key in ("number", "names", "signature"))
        if type(number) is not int or not 0 <= number < 1 << 31:
            raise ValueError("expected a number from 0 on")
        if not isinstance(names, list | tuple) or len(names) > MAX_NAMES:
            raise ValueError(f"expected a list of at most {MAX_NAMES:,} names")
        if not all(type(name) is str and len(name) <= _MAX_CHARACTERS for name in names):
            raise ValueError("expected names of sites and operators")
        if type(signature) is not str or len(signature) > 4096:
            raise ValueError("expected a signature")
        return cls(number, tuple(names), signature)

    @classmethod
    def read(cls, folder: Path) -> Revocations:
        """The list in a folder; the empty one if there is none. StoreError if it is broken."""
        path = folder / FILE
        try:
            return cls.of(parse_json(path.read_bytes()))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read: {error}", "restore the file") from None

    @classmethod
    def signed(cls, number: int, names: Iterable[str], key: Path) -> Revocations:
        """A list with the signature of the authority whose key is in the file `key`.

        Raises DeployError without the key, and for more names than `of` would read.
        """
        found = cls(number, tuple(sorted(names)))
        if len(found.names) > MAX_NAMES:
            raise DeployError(
                f"a list of revocations has at most {MAX_NAMES:,} names, and this one would have "
                f"{len(found.names):,}",
                "create a new federation; its members join it as they joined this one",
            )
        try:
            private = serialization.load_pem_private_key(key.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            cause = f"the authority's key {key} cannot be read: {error}"
            raise DeployError(cause, "restore the folder `ca` from your backup") from None
        assert isinstance(private, RSAPrivateKey)
        signature = private.sign(found._content, _PADDING, hashes.SHA256())
        return cls(number, found.names, base64.b64encode(signature).decode())

    def write(self, folder: Path) -> None:
        """Write the list to a folder, for `read`."""
        write_atomically(folder / FILE, json.dumps(self.table()).encode())

    def table(self) -> dict[str, Any]:
        """In plain values."""
        return {**asdict(self), "names": list(self.names)}

    def lacking(self, other: Revocations) -> list[str]:
        """Who is on another list and not on this one."""
        return sorted({*other.names} - {*self.names})

    def is_signed(self, certificate: Path) -> bool:
        """Whether the authority with this certificate has signed the list. The list before the
        first revocation needs no signature."""
        if self == Revocations():
            return True
        try:
            key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
            assert isinstance(key, RSAPublicKey)
            signature = base64.b64decode(self.signature, validate=True)
            key.verify(signature, self._content, _PADDING, hashes.SHA256())
        except (OSError, ValueError, binascii.Error, InvalidSignature):
            return False
        return True

    @property
    def digest(self) -> str:
        """Stands for who is on the list."""
        return hashlib.sha256(json.dumps(list(self.names)).encode()).hexdigest()

    @property
    def _content(self) -> bytes:
        """What is signed."""
        return json.dumps([_CONTEXT, self.number, list(self.names)]).encode()


class OutdatedError(DeployError):
    """The coordinator's list of revocations lacks names on the list `held` by this site."""

    def __init__(self, cause: str, cure: str, held: Revocations) -> None:
        super().__init__(cause, cure)
        self.held = held


def check_roster(home: Path, names: Iterable[str]) -> None:
    """Raise SiteError if the coordinator's roster names a site on the list that is held in `home`.

    That is not final: the site may have been revoked since the round began.
    """
    if gone := sorted({*Revocations.read(home).names}.intersection(names)):
        raise SiteError(
            f"the coordinator's roster names site '{gone[0]}', which was revoked",
            "the next round goes on without that site; if this recurs, ask the operator",
        )


def check_operators(home: Path, operators: Iterable[str]) -> None:
    """Raise DeployError if one of the operators who signed a job is on the list held in `home`."""
    if gone := sorted({*Revocations.read(home).names}.intersection(operators)):
        raise DeployError(
            f"operator '{gone[0]}', who signed this job, was revoked",
            "another operator has to start the run",
        )


def accept(home: Path, certificate: Path, shown: Any) -> None:
    """Keep at the site in `home` the list that the coordinator has shown, as plain values.

    Raises OutdatedError if a site on the list that is held is not on this one, DeployError if the
    authority with this certificate has not signed it, and SiteError if another process is at it.
    """
    try:
        found = Revocations.of(shown)
    except ValueError as error:
        cause = f"the coordinator's list of revocations is invalid: {error}"
        raise DeployError(cause, "update the coordinator") from None
    busy = SiteError("another process is reading this site's list of revocations", "try again")
    # A job that has read an older list must not write it over the one that another job accepts.
    with locks.hold(home / ".revocations.lock", LOCK_TIMEOUT, busy):
        held = Revocations.read(home)
        if lost := found.lacking(held):
            raise OutdatedError(
                f"the coordinator's list of revocations (number {found.number}) does not name "
                f"'{lost[0]}', which is on the list that this site holds (number {held.number}): "
                "who was revoked may be back",
                "the coordinator was restored from an older backup; it takes over what its list "
                "lacks when the run is started again",
                held,
            )
        if not found.is_signed(certificate):
            raise DeployError(
                "the federation's authority has not signed the coordinator's list of revocations",
                "ask the operator",
            )
        if held.lacking(found):
            found.write(home)
