"""A gallery of enrolled people: one encrypted file, from which people can be erased.

The file is a line with the gallery's number and how the key is made, then AES-256-GCM over
everything else: names, templates, threshold, and which model made them. The line is authenticated
with it. Every change rewrites the whole file and overwrites the bytes of the old one. If the key is
in a file, erasing a person also changes the key: older copies of the gallery, for example in a
backup, can then not be opened with the remaining key. A key file holds one key for each gallery,
by its number, and only that gallery's key changes. A copy of a gallery under a passphrase can be
opened by anyone who knows the passphrase.
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
# Each guess of a passphrase costs 64 MiB and about 0.2 s (RFC 7914, section 2).
SCRYPT = {"n": 1 << 16, "r": 8, "p": 1}
_PATIENCE = 30.0  # seconds to wait for another process that changes the gallery


@dataclass
class Gallery:
    """The content of the file: unit vectors (templates) by person, in the order of enrolment."""

    model: str  # digest of the network that made the templates
    people: dict[str, list[list[float]]] = field(default_factory=dict)
    threshold: float | None = None  # the site's own; None: the run's
    far: float | None = None  # the false accept rate that the threshold was chosen for
    # how many templates people had when it was chosen
    calibrated: list[int] = field(default_factory=list)
    guaranteed: bool = False  # whether that rate is guaranteed, for those who were enrolled then
    # identifies its key in a key file
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
    """A file of keys that only its owner may read; created when first needed.

    Each line is a gallery's number and a key, the newest key of a gallery first. A gallery has two
    keys while its key is being changed.
    """

    path: Path

    def header(self) -> dict[str, Any]:
        """The gallery's header fields for this kind of key."""
        return {"key": "file"}

    def make(self, header: dict[str, Any]) -> list[bytes]:
        """The keys to try for the gallery with this header, newest first; may be empty.

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
        """Add a new key for the gallery `number`, before its older ones."""
        with locked(self.path):
            lines = self._lines() if self.path.exists() else []
            self._write([(number, secrets.token_bytes(KEY)), *lines])

    def settle(self, number: str) -> None:
        """Remove all but the newest key of the gallery `number`."""
        with locked(self.path):
            lines = self._lines()
            own = [line for line in lines if line[0] == number]
            if len(own) > 1:
                self._write([own[0], *(line for line in lines if line[0] != number)])

    def _lines(self) -> list[tuple[str, bytes]]:
        refuse_readable(self.path, "the key file")
        try:
            text = _content(self.path).decode("ascii")
            pairs = [line.split() for line in text.splitlines()]
            lines = [(number, bytes.fromhex(key)) for number, key in pairs]
        except ValueError:
            lines = []
        if not lines or any(len(key) != KEY for _, key in lines):
            raise StoreError(
                f"{self.path} is not a key file",
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
        """The gallery's header fields for this kind of key, with a fresh salt."""
        return {"key": "scrypt", **SCRYPT, "salt": secrets.token_hex(16)}

    def make(self, header: dict[str, Any]) -> list[bytes]:
        """The key under the header's salt."""
        if header.get("key") != "scrypt":
            raise StoreError(
                "this gallery has a key file, not a passphrase", "give the file with --key"
            )
        known = {key: header.get(key) for key in SCRYPT} == SCRYPT
        salt = header.get("salt")
        if not known or not isinstance(salt, str) or len(salt) != 32:
            raise StoreError("the gallery's first line was altered", "restore it from a backup")
        with contextlib.suppress(ValueError):
            return [Scrypt(bytes.fromhex(salt), KEY, **SCRYPT).derive(self.text.encode())]
        raise StoreError("the gallery's first line was altered", "restore it from a backup")


Secret = KeyFile | Passphrase


def read(path: Path, secret: Secret) -> Gallery:
    """The gallery in the file `path`, as it is before or after a change that goes on meanwhile.

    Raises StoreError for a missing or altered file and for a wrong key.
    """
    content = None
    while True:
        before = content
        try:
            content = _content(path)
        except OSError as error:
            raise StoreError(f"there is no gallery {path}", "enrol somebody first") from error
        if content == before:  # no other process has just changed it, and its key
            raise StoreError(
                f"{path} cannot be opened: the key is wrong, or the file was altered",
                "give the right key; if it is right, restore the file from a backup",
            )
        gallery = _opened(path, content, secret)
        if gallery is not None:
            return gallery


def _opened(path: Path, content: bytes, secret: Secret) -> Gallery | None:
    """The gallery in `content`, which was read from `path`; None if no key opens it."""
    line, separator, sealed = content.partition(b"\n")
    if not separator:
        raise StoreError(f"there is no gallery {path}", "enrol somebody first")
    try:
        header = json.loads(line)
        version = header["fedsight_gallery"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoreError(f"{path} is not a gallery", "check the path") from error
    if version != VERSION:
        raise StoreError(f"{path} has format {version}, not {VERSION}", "use another FedSight")
    for key in secret.make(header):
        plain = unseal(key, sealed, line)
        if plain is not None:
            return Gallery(**json.loads(plain))
    return None


def write(path: Path, gallery: Gallery, secret: Secret) -> None:
    """Write the whole gallery, or leave the old one; the old one's bytes are overwritten.

    It is encrypted under its newest key; older keys are removed only afterwards. If a crash
    interrupts this, the next write completes it, including a change of the key.
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
    """Remove a person for good; returns the number of templates removed.

    Raises StoreError if there is no such person. With a key file, the gallery's key changes: the
    new key is added to the file, the gallery is written under it, and the old key is removed. A
    crash in between leaves a gallery that one of the two keys opens; the next change of the
    gallery, or erasing again, completes the work, even if the person is already gone.
    """
    with locked(path):
        gallery = read(path, secret)
        header = {"number": gallery.number, **secret.header()}
        if isinstance(secret, KeyFile) and len(secret.make(header)) > 1:
            write(path, gallery, secret)  # a change of the key was interrupted
        count = len(gallery.templates(name))
        del gallery.people[name]
        gallery.guaranteed = False  # the rate was that of all who were enrolled
        if isinstance(secret, KeyFile):
            secret.add(gallery.number)
        write(path, gallery, secret)
    return count


def _content(path: Path) -> bytes:
    """All bytes of a gallery or key file.

    Whoever replaces it overwrites the old bytes, which must not be taken for the content by who was
    just reading them: that file has no name any more, so the new one is read.
    """
    while True:
        with path.open("rb") as file:
            content = file.read()
            if os.fstat(file.fileno()).st_nlink:
                return content


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the gallery or key file `path`: one process at a time changes it."""
    busy = StoreError(f"another process is changing {path}", "wait until it has finished")
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
    """Overwrite the old content of the file `path` after it has been replaced.

    This is the best a program can do: a solid-state disk, a copy-on-write file system or a backup
    may still hold the bytes, which are ciphertext.
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
