"""A gallery of enrolled people: one file, encrypted at rest, from which people can be erased.

The file is a line that says how the key is made, then AES-256-GCM over everything else: names,
templates, threshold, and which model made them. The line is authenticated with it. Every change
writes the whole file anew, and the bytes of the old one are overwritten. Where the key is a file,
erasing a person also changes the key: copies of the old gallery, in a backup, say, then cannot be
opened with the key that is left. A copy of a gallery under a passphrase can be, as long as the
passphrase is known.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fedsight.core.errors import StoreError
from fedsight.core.files import refuse_readable, write_atomically
from fedsight.core.locks import hold
from fedsight.privacy.secagg.keys import seal, unseal

VERSION = 1
KEY = 32  # bytes
# 64 MiB and about a fifth of a second: what a guess costs (RFC 7914, section 2).
SCRYPT = {"n": 1 << 16, "r": 8, "p": 1}
_PATIENCE = 30.0  # seconds to wait for another process that changes the gallery


@dataclass
class Gallery:
    """What the file holds: templates are unit vectors by person, in the order of enrolment."""

    model: str  # digest of the network that made the templates
    people: dict[str, list[list[float]]] = field(default_factory=dict)
    threshold: float | None = None  # the site's own; None: the run's
    far: float | None = None  # the false accept rate that the threshold was chosen for

    def templates(self, name: str) -> list[list[float]]:
        """A person's templates; StoreError if nobody is enrolled under `name`."""
        if name not in self.people:
            raise StoreError(
                f"nobody called '{name}' is enrolled", "`fedsight faces list` shows who is"
            )
        return self.people[name]


@dataclass(frozen=True)
class KeyFile:
    """A key in a file of its own, which nobody but its owner may read; made when first needed."""

    path: Path

    def header(self) -> dict[str, Any]:
        """What the gallery says of its key."""
        return {"key": "file"}

    def make(self, header: dict[str, Any]) -> list[bytes]:
        """The keys to try: the newest first. Two lie there while a key is being changed."""
        if header.get("key") != "file":
            raise StoreError("this gallery has a passphrase, not a key file", "use --passphrase")
        if not self.path.is_file():
            raise StoreError(
                f"there is no key file {self.path}", "give the gallery's key file with --key"
            )
        refuse_readable(self.path, "the key file")
        try:
            keys = [bytes.fromhex(line) for line in self.path.read_text("ascii").split()]
        except ValueError:
            keys = []
        if not keys or any(len(key) != KEY for key in keys):
            raise StoreError(f"{self.path} is no key file", "restore it from a backup")
        return keys

    def create(self) -> None:
        """A new key, unless the file is there."""
        if not self.path.exists():
            self.write([secrets.token_bytes(KEY)])

    def write(self, keys: Sequence[bytes]) -> None:
        """Replace the file; what it held is overwritten."""
        with _shredding(self.path):
            text = "".join(f"{key.hex()}\n" for key in keys)
            write_atomically(self.path, text.encode(), 0o600)


@dataclass(frozen=True)
class Passphrase:
    """A key from a passphrase and the gallery's salt, through scrypt."""

    text: str

    def header(self) -> dict[str, Any]:
        """What the gallery says of its key: a fresh salt."""
        return {"key": "scrypt", **SCRYPT, "salt": secrets.token_hex(16)}

    def make(self, header: dict[str, Any]) -> list[bytes]:
        """The key under the header's salt."""
        if header.get("key") != "scrypt":
            raise StoreError("this gallery has a key file, no passphrase", "give it with --key")
        known = {key: header.get(key) for key in SCRYPT} == SCRYPT
        salt = header.get("salt")
        if not known or not isinstance(salt, str) or len(salt) != 32:
            raise StoreError("the gallery's first line was altered", "restore it from a backup")
        with contextlib.suppress(ValueError):
            return [Scrypt(bytes.fromhex(salt), KEY, **SCRYPT).derive(self.text.encode())]
        raise StoreError("the gallery's first line was altered", "restore it from a backup")


Secret = KeyFile | Passphrase


def read(path: Path, secret: Secret) -> Gallery:
    """The gallery in the file `path`.

    Raises StoreError for a missing or altered file and for a wrong key.
    """
    try:
        line, sealed = path.read_bytes().split(b"\n", 1)
    except (OSError, ValueError) as error:
        raise StoreError(f"there is no gallery {path}", "enrol somebody first") from error
    try:
        header = json.loads(line)
        version = header["fedsight_gallery"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoreError(f"{path} is no gallery", "check the path") from error
    if version != VERSION:
        raise StoreError(f"{path} has format {version}, not {VERSION}", "use another FedSight")
    for key in secret.make(header):
        plain = unseal(key, sealed, line)
        if plain is not None:
            return Gallery(**json.loads(plain))
    raise StoreError(
        f"{path} cannot be opened: the key is another one, or the file was altered",
        "give the right key; if it is right, restore the file from a backup",
    )


def write(path: Path, gallery: Gallery, secret: Secret, key: bytes | None = None) -> None:
    """Write the whole gallery, or leave the old one; the old one's bytes are overwritten."""
    if isinstance(secret, KeyFile):
        secret.create()
    header = {"fedsight_gallery": VERSION, **secret.header()}
    line = json.dumps(header).encode()
    sealed = seal(key or secret.make(header)[0], json.dumps(asdict(gallery)).encode(), line)
    with _shredding(path):
        write_atomically(path, line + b"\n" + sealed, 0o600)


def erase(path: Path, name: str, secret: Secret) -> int:
    """Remove a person for good; how many templates there were.

    StoreError if nobody is called so. With a key file, the key changes: first the new key joins
    the old one in the file, then the gallery is written under the new one, then the old one goes.
    A crash in between leaves a gallery that one of the two opens; erasing again finishes it.
    """
    with locked(path):
        gallery = read(path, secret)
        count = len(gallery.templates(name))
        del gallery.people[name]
        if isinstance(secret, KeyFile):
            new = secrets.token_bytes(KEY)
            secret.write([new, *secret.make(secret.header())])
            write(path, gallery, secret, new)
            secret.write([new])
        else:
            write(path, gallery, secret)
    return count


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time changes the gallery `path`."""
    busy = StoreError(f"another process changes {path}", "wait until it has finished")
    try:
        lock = hold(path.with_name(f".{path.name}.lock"), _PATIENCE, busy)
    except OSError as error:
        raise StoreError(
            f"cannot write in {path.parent}: {error.strerror}",
            "choose a folder that you may write to",
        ) from error
    with lock:
        yield


@contextlib.contextmanager
def _shredding(path: Path) -> Iterator[None]:
    """Overwrite what the file `path` held once it has been replaced.

    The best that a program can do: a solid-state disk, a file system that copies on writing, and
    a backup may still have the bytes, which are ciphertext.
    """
    old = None
    with contextlib.suppress(OSError):
        old = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        yield
        if old is not None and os.fstat(old).st_nlink == 0:  # it was replaced
            os.pwrite(old, bytes(os.fstat(old).st_size), 0)
            os.fsync(old)
    finally:
        if old is not None:
            os.close(old)
