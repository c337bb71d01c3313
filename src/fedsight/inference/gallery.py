"""A gallery of enrolled people: one file, encrypted at rest, from which people can be erased.

The file is a line with the gallery's number and how the key is made, then AES-256-GCM over
everything else: names, templates, threshold, and which model made them. The line is authenticated
with it. Every change writes the whole file anew, and the bytes of the old one are overwritten.
Where the key is a file, erasing a person also changes the key: copies of the old gallery, in a
backup, say, then cannot be opened with the key that is left. A key file has a key for each gallery
by its number, and only that gallery's is changed. A copy of a gallery under a passphrase can be
opened as long as the passphrase is known.
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

VERSION = 2
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
    # how many templates people had when it was chosen
    calibrated: list[int] = field(default_factory=list)
    # the number that its key goes by
    number: str = field(default_factory=lambda: secrets.token_hex(16), compare=False)

    def templates(self, name: str) -> list[list[float]]:
        """A person's templates; StoreError if nobody is enrolled under `name`."""
        if name not in self.people:
            raise StoreError(
                f"nobody called '{name}' is enrolled", "`fedsight faces list` shows who is"
            )
        return self.people[name]


@dataclass(frozen=True)
class KeyFile:
    """Keys in a file of their own, which nobody but its owner may read; made when first needed.

    A line for each key: a gallery's number and the key. Of one gallery the newest comes first; two
    lie there while its key is being changed.
    """

    path: Path

    def header(self) -> dict[str, Any]:
        """What the gallery says of its key."""
        return {"key": "file"}

    def make(self, header: dict[str, Any]) -> list[bytes]:
        """The keys to try for the gallery of this header: the newest first; none if there is none.

        Raises StoreError for a missing or broken file, DeployError for one that others may read.
        """
        if header.get("key") != "file":
            raise StoreError("this gallery has a passphrase, not a key file", "use --passphrase")
        if not self.path.is_file():
            raise StoreError(
                f"there is no key file {self.path}", "give the gallery's key file with --key"
            )
        return [key for number, key in self._lines() if number == header.get("number")]

    def add(self, number: str) -> None:
        """A new key for the gallery `number`, before those that it has."""
        with locked(self.path):
            lines = self._lines() if self.path.exists() else []
            self._write([(number, secrets.token_bytes(KEY)), *lines])

    def settle(self, number: str) -> None:
        """Only the newest key of the gallery `number` stays; other galleries' keys do."""
        with locked(self.path):
            lines = self._lines()
            own = [line for line in lines if line[0] == number]
            if len(own) > 1:
                self._write([own[0], *(line for line in lines if line[0] != number)])

    def _lines(self) -> list[tuple[str, bytes]]:
        refuse_readable(self.path, "the key file")
        try:
            pairs = [line.split() for line in self.path.read_text("ascii").splitlines()]
            lines = [(number, bytes.fromhex(key)) for number, key in pairs]
        except ValueError:
            lines = []
        if not lines or any(len(key) != KEY for _, key in lines):
            raise StoreError(
                f"{self.path} is no key file",
                "restore it from a backup; for a new gallery give another file with --key",
            )
        return lines

    def _write(self, lines: Sequence[tuple[str, bytes]]) -> None:
        """Replace the file; what it held is overwritten."""
        with _shredding(self.path):
            text = "".join(f"{number} {key.hex()}\n" for number, key in lines)
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


def write(path: Path, gallery: Gallery, secret: Secret) -> None:
    """Write the whole gallery, or leave the old one; the old one's bytes are overwritten.

    It is written under its newest key, and only then are older ones forgotten: whatever a crash
    has left half done, a change of the key included, the next writing finishes.
    """
    header = {"fedsight_gallery": VERSION, "number": gallery.number, **secret.header()}
    if isinstance(secret, KeyFile) and not (secret.path.exists() and secret.make(header)):
        secret.add(gallery.number)
    line = json.dumps(header).encode()
    sealed = seal(secret.make(header)[0], json.dumps(asdict(gallery)).encode(), line)
    with _shredding(path):
        write_atomically(path, line + b"\n" + sealed, 0o600)
    if isinstance(secret, KeyFile):
        secret.settle(gallery.number)


def erase(path: Path, name: str, secret: Secret) -> int:
    """Remove a person for good; how many templates there were.

    StoreError if nobody is called so. With a key file, the gallery's key changes: first the new key
    joins the old one in the file, then the gallery is written under the new one, then the old one
    goes. A crash in between leaves a gallery that one of the two opens; erasing again, and any
    other change of the gallery, finishes it, even if the person is gone already.
    """
    with locked(path):
        gallery = read(path, secret)
        header = {"number": gallery.number, **secret.header()}
        if isinstance(secret, KeyFile) and len(secret.make(header)) > 1:
            write(path, gallery, secret)  # a change of the key was interrupted
        count = len(gallery.templates(name))
        del gallery.people[name]
        if isinstance(secret, KeyFile):
            secret.add(gallery.number)
        write(path, gallery, secret)
    return count


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time changes the gallery or the key file `path`."""
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
