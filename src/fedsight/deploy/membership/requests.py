"""Archives that come by mail: a site's signing request, and the operator's answer to it.

Whoever sends one chooses what is in it. So an archive is measured before it is unpacked, at most
so many bytes of it are unpacked, and only what was read and checked is passed on to be signed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedsight.core.errors import DeployError
from fedsight.core.text import is_printable, printable
from fedsight.deploy.membership.kits import Role

MAX_ARCHIVE_BYTES = 1 << 20  # of the file; a real one has about 3,000
MAX_MEMBER_BYTES = 64 << 10  # of a member, unpacked; a real one has about 1,200
MAX_MEMBERS = 16  # a request has three, an answer five
NAME_RULE = "letters, digits, - and _ only, at most 63, starting with a letter or a digit"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
OPERATOR_RULE = (
    "the form of an e-mail address, for example anna@lyon.example, at most 64 characters"
)
_OPERATOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*\.[A-Za-z]{2,}")
MAX_OPERATOR = 64  # characters of a name in a certificate (RFC 5280, appendix A.1)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may need gigabytes to unpack
# What reading a file that is not such an archive may raise.
_READ_ERRORS = (
    *(OSError, EOFError, zlib.error, struct.error, zipfile.BadZipFile, zipfile.LargeZipFile),
    *(KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError),
)


def check_name(name: str, whose: str) -> None:
    """Raise DeployError unless `name` is valid for a site, a folder and a certificate."""
    if not _NAME.fullmatch(name):
        cause = f"'{printable(name, 80)}' cannot be the name of {whose}"
        raise DeployError(cause, f"use {NAME_RULE}")
    if name.lower() == "server":  # FLARE's name for the coordinator
        raise DeployError(
            f"'{name}' cannot be the name of {whose}: it is reserved for the coordinator",
            "choose another name",
        )


def check_operator_name(name: str) -> None:
    """Raise DeployError unless `name` is valid for an operator; no site can have such a name."""
    if not _OPERATOR.fullmatch(name) or ".." in name or len(name) > MAX_OPERATOR:
        cause = f"'{printable(name, 80)}' cannot be the name of an operator"
        raise DeployError(cause, f"use {OPERATOR_RULE}; nothing is sent there")


def is_operators(name: str) -> bool:
    """Whether a name is an operator's; no site's has this sign."""
    return "@" in name


@dataclass(frozen=True)
class SigningRequest:
    """A request for the certificate of a site or an operator, read and checked."""

    name: str
    role: Role  # `client`: a site; `lead`: an operator; `member`: an operator who only reads
    fingerprint: str  # SHA-256 of the signing request, which is compared over another channel
    data: bytes  # of the archive

    @classmethod
    def read(cls, path: Path) -> SigningRequest:
        """Read a request file; DeployError if it is not one, or neither a site's nor an
        operator's."""
        try:
            data = _read_bounded(path)
            members = read_archive(data)
            facts = json.loads(members["request.json"].decode("utf-8"))  # as FLARE decodes it
            name = facts["name"]
            if not isinstance(name, str):
                raise ValueError("its name is not text")
            asked = {key: facts.get(key) for key in ("kind", "cert_type", "cert_role")}
        except _READ_ERRORS as error:
            raise _not_a_request(path, error) from None
        role = _role(asked, facts.get("participant_type", _ABSENT))
        if role is None:
            shown = facts.get("cert_role") or facts.get("cert_type") or facts.get("kind")
            raise DeployError(
                f"{path} is a request for the role '{printable(shown, 40)}'",
                "only sites and operators can be admitted",
            )
        if role == "client":
            check_name(name, "the site")
        else:
            check_operator_name(name)
        if set(members) != {"request.json", "site.yaml", f"{name}.csr"}:
            raise _not_a_request(path, "it contains other files than a request does")
        return cls(name, role, hashlib.sha256(members[f"{name}.csr"]).hexdigest(), data)

    @property
    def is_site(self) -> bool:
        """Whether a site has made it."""
        return self.role == "client"

    @contextlib.contextmanager
    def file(self) -> Iterator[Path]:
        """A private copy of the file, which nobody can exchange after it was checked."""
        with tempfile.TemporaryDirectory(prefix="fedsight-") as folder:
            path = Path(folder) / f"{self.name}.request.zip"
            path.write_bytes(self.data)
            yield path


def certificate_in(answer: Path, name: str) -> bytes:
    """The certificate of `name` in the operator's answer, as PEM.

    Raises DeployError if the file is too large to unpack, or not an answer to that request.
    """
    try:
        return read_archive(_read_bounded(answer))[f"{name}.crt"]
    except _READ_ERRORS as error:
        raise DeployError(
            f"{answer} is not the answer to a request: {printable(error, 200)}",
            "ask the operator for it again",
        ) from None


def read_archive(data: bytes) -> dict[str, bytes]:
    """The members of a small archive by name; ValueError if it is larger than it says or may be."""
    members: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_MEMBERS:
            raise ValueError(f"it contains {len(entries):,} files")
        for entry in entries:
            name = entry.filename
            if name in members or entry.is_dir() or not is_printable(name) or "/" in name:
                raise ValueError("it contains two files of one name, folders, or odd names")
            if entry.compress_type not in _METHODS or entry.file_size > MAX_MEMBER_BYTES:
                raise ValueError(f"'{name[:80]}' is larger than {MAX_MEMBER_BYTES:,} bytes")
            with archive.open(entry) as file:
                members[name] = file.read(MAX_MEMBER_BYTES + 1)
            if len(members[name]) > MAX_MEMBER_BYTES:  # the directory of the archive lies
                raise ValueError(f"'{name[:80]}' is larger than it says")
    return members


_ABSENT = object()
_ROLES: dict[tuple[object, object, object], Role] = {
    ("site", "client", None): "client",
    ("user", "lead", "lead"): "lead",
    ("user", "member", "member"): "member",
}


def _role(asked: dict[str, object], participant: object) -> Role | None:
    """The role that a request is for; None if it is none that is given.

    FLARE signs the role in `cert_type`; nothing else in the file may make it look like another one.
    `participant_type` has no meaning to it, so it may only repeat the role.
    """
    try:
        role = _ROLES.get((asked["kind"], asked["cert_type"], asked["cert_role"]))
    except TypeError:  # a list or a table
        return None
    return role if participant is _ABSENT or participant == role else None


def _read_bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_ARCHIVE_BYTES + 1)
    if len(data) > MAX_ARCHIVE_BYTES:
        raise ValueError(f"it is larger than {MAX_ARCHIVE_BYTES:,} bytes")
    return data


def _not_a_request(path: Path, error: object) -> DeployError:
    return DeployError(
        f"{path} is not a signing request: {printable(error, 200)}",
        "give the .request.zip that `fedsight site init` or `fedsight operator init` wrote",
    )
