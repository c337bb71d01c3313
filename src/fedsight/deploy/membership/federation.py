"""The operator's folder of a federation: its authority, its members, its runs."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import tomllib
import zipfile
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w

from fedsight.core.errors import DeployError
from fedsight.core.files import append_line, is_taken, make_folder, records, write_atomically
from fedsight.deploy.membership import kits

OPERATOR = "operator@fedsight.local"
DAYS = 825  # how long a certificate is good for
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
# What reading a file that is no signing request may raise.
_NO_REQUEST = (OSError, KeyError, TypeError, ValueError, RuntimeError, zipfile.BadZipFile)
NAME_RULE = "letters, digits, - and _ only, up to 63, beginning with a letter or digit"


@dataclass(frozen=True)
class Invitation:
    """What a site's owner needs to ask for admission; nothing in it is secret."""

    federation: str
    host: str
    port: int
    fingerprint: str  # SHA-256 of the authority's certificate: compare it over another channel

    @classmethod
    def read(cls, path: Path) -> Invitation:
        """From an invitation file; DeployError if it is none."""
        try:
            return cls(**tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            cure = "ask the federation's operator for invitation.toml"
            raise DeployError(f"{path} is no invitation: {error}", cure) from None


@dataclass(frozen=True)
class FederationFolder:
    """A federation's folder on the coordinator's machine."""

    folder: Path
    invitation: Invitation

    @classmethod
    def open(cls, folder: Path) -> FederationFolder:
        """The federation in `folder`; DeployError if there is none."""
        path = folder / "invitation.toml"
        if not path.is_file():
            raise DeployError(
                f"{folder} holds no federation", f"make one with: fedsight federation init {folder}"
            )
        return cls(folder.resolve(), Invitation.read(path))

    @classmethod
    def create(cls, folder: Path, host: str, port: int) -> FederationFolder:
        """A new federation in the new folder `folder`, whose last part is its name.

        Whole or not at all. Raises DeployError when the folder is taken or the name unfit.
        """
        check_name(folder.name, "the federation")
        if is_taken(folder):
            raise DeployError(f"{folder} is not empty", "choose another name")
        make_folder(folder.resolve().parent)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.resolve().parent) as scratch:
            made = Path(scratch) / folder.name
            kits.make_private(made)
            fingerprint = kits.make_authority(made, folder.name, host, port)
            invitation = Invitation(folder.name, host, port, fingerprint)
            self = cls(made, invitation)
            self._make_kit(host, "server", made / "server")
            self._make_kit(OPERATOR, "lead", made / "operator")
            for part in ("admitted", "runs", "server/sites"):
                make_folder(made / part)
            write_atomically(made / "invitation.toml", tomli_w.dumps(asdict(invitation)).encode())
            self.note("created", host=host, port=port)
            if folder.exists():
                folder.rmdir()
            made.rename(folder)
        return cls.open(folder)

    @property
    def name(self) -> str:
        """The federation's name."""
        return self.invitation.federation

    @property
    def runs(self) -> Path:
        """Where run folders lie."""
        return self.folder / "runs"

    @property
    def operator_kit(self) -> Path:
        """What the operator's commands open a session with the server from."""
        return self.folder / "operator" / "kit"

    @property
    def presences(self) -> Path:
        """Where the server notes who is connected."""
        return self.folder / "server" / "sites"

    def admit(self, request: Path, days: int = DAYS) -> Path:
        """Sign a site's request; returns the file that goes back to the site.

        A name belongs to one key: a request by another key under a name that was admitted is
        refused, and so is the server's own name. DeployError names the cause.
        """
        site = self._requested(request)
        mark = key_mark(request)
        record = self.folder / "admitted" / f"{site}.toml"
        if record.exists():
            known = tomllib.loads(record.read_text(encoding="utf-8")).get("request")
            if known != mark:
                raise DeployError(
                    f"site '{site}' was admitted with another key (request {str(known)[:16]}, "
                    f"this one is {mark[:16]})",
                    "if it lost its key, revoke it and let it come back under another name",
                )
        signed = request.resolve().with_name(f"{site}.signed.zip")
        kits.approve(self.folder, request.resolve(), signed, days)
        facts = {"admitted": _now(), "days": days, "request": mark}
        write_atomically(record, tomli_w.dumps(facts).encode())
        self.note("admitted", site=site, days=days, request=mark)
        return signed

    def admitted(self) -> list[str]:
        """The sites that were admitted and not revoked since."""
        revoked = self.revoked()
        names = (path.stem for path in (self.folder / "admitted").glob("*.toml"))
        return sorted(name for name in names if name not in revoked)

    def revoke(self, site: str, why: str) -> None:
        """Count nothing of the site from now on; the server shuts it out (`Operator`)."""
        if not (self.folder / "admitted" / f"{site}.toml").exists():
            known = ", ".join(self.admitted()) or "nobody yet"
            raise DeployError(f"'{site}' was never admitted", f"admitted are: {known}")
        revoked = {**self.revoked(), site: why or "revoked"}
        write_atomically(self.folder / "revoked.json", json.dumps(revoked, indent=1).encode())
        self.note("revoked", site=site, why=why)

    def revoked(self) -> dict[str, str]:
        """Revoked sites and why."""
        path = self.folder / "revoked.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    def moved(self, port: int) -> FederationFolder:
        """The federation with its server on another port: invitation and kits are changed."""
        profile = self.folder / "profile.yml"
        table = json.loads(profile.read_text(encoding="utf-8"))
        table["server"] |= {"fed_learn_port": port, "admin_port": port}
        write_atomically(profile, json.dumps(table, indent=1).encode())
        for part in ("server", "operator"):
            kits.set_port(self.folder / part / "kit", port)
        invitation = replace(self.invitation, port=port)
        path = self.folder / "invitation.toml"
        write_atomically(path, tomli_w.dumps(asdict(invitation)).encode())
        self.note("moved", port=port)
        return replace(self, invitation=invitation)

    def note(self, event: str, **facts: Any) -> None:
        """Add a line to the federation's history."""
        append_line(self.folder / "events.jsonl", {"time": _now(), "event": event, **facts})

    def events(self) -> list[dict[str, Any]]:
        """The federation's history."""
        return records(self.folder / "events.jsonl")

    def _make_kit(self, name: str, role: kits.Role, home: Path) -> None:
        make_folder(home)
        request = kits.request(home / "request", self.name, name, role)
        kits.approve(self.folder, request, home / "kit.signed.zip", DAYS)
        fingerprint = self.invitation.fingerprint
        kits.unpack(home / "kit.signed.zip", home / "request", fingerprint, home / "kit")
        shutil.rmtree(home / "request")
        (home / "kit.signed.zip").unlink()

    def _requested(self, request: Path) -> str:
        """The name in a signing request, which must be a site's."""
        try:
            with zipfile.ZipFile(request) as archive:
                facts = json.loads(archive.read("request.json"))
            name, kind = str(facts["name"]), str(facts.get("participant_type") or facts.get("kind"))
        except _NO_REQUEST as error:
            cure = "give the .request.zip that `fedsight site init` wrote"
            raise DeployError(f"{request} is no signing request: {error}", cure) from None
        check_name(name, "the site")
        if kind not in ("client", "site"):
            raise DeployError(f"{request} asks to be a {kind}", "only sites can be admitted")
        if name == self.invitation.host:
            raise DeployError(f"'{name}' is the server's own name", "choose another for the site")
        if name in self.revoked():
            raise DeployError(
                f"site '{name}' was revoked: {self.revoked()[name]}",
                "a site that comes back needs another name",
            )
        return name


def key_mark(request: Path) -> str:
    """SHA-256 over the signing request in the file, by which operator and owner compare it."""
    try:
        with zipfile.ZipFile(request) as archive:
            found = [name for name in archive.namelist() if name.endswith(".csr")]
            return hashlib.sha256(archive.read(found[0])).hexdigest()
    except (*_NO_REQUEST, IndexError) as error:
        cure = "give the .request.zip that `fedsight site init` wrote"
        raise DeployError(f"{request} is no signing request: {error}", cure) from None


def check_name(name: str, whose: str) -> None:
    """DeployError unless `name` can be a name of a site, a folder and a certificate."""
    if not _NAME.fullmatch(name):
        raise DeployError(f"'{name}' cannot be the name of {whose}", f"use {NAME_RULE}")
    if name.lower() == "server":  # what FLARE calls the coordinator among a job's members
        cause = f"'{name}' cannot be the name of {whose}: the coordinator is called so"
        raise DeployError(cause, "choose another name")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
