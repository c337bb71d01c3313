"""The operator's folder of a federation: its certificate authority, its members, its runs."""

from __future__ import annotations

import json
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

import tomli_w

from fedsight.core import locks
from fedsight.core.errors import DeployError, StoreError
from fedsight.core.files import (
    append_line,
    is_taken,
    make_folder,
    records,
    trim,
    write_atomically,
)
from fedsight.core.text import is_printable, printable
from fedsight.deploy.membership import certificates, hosts, kits
from fedsight.deploy.membership.certificates import CERTIFICATE_DAYS
from fedsight.deploy.membership.operators import FOLDER, REVOKED, Operator, operators, read_revoked
from fedsight.deploy.membership.requests import (
    SigningRequest,
    certificate_in,
    check_name,
    is_operators,
)
from fedsight.deploy.membership.revocations import Revocations

OPERATOR = "operator@fedsight.local"
MAX_INVITATION_BYTES = 16 << 10
MAX_TEXT = 253  # characters of a text in an invitation, like a host's name (RFC 1035)
EVENT_BYTES = 1 << 20  # of events.jsonl; then older lines about what sites did are dropped
_BY_SITES = (b'"event": "absent"', b'"event": "certificate taken"')
LOCK_TIMEOUT = 20.0  # seconds to wait for another process that writes an event or revokes


@dataclass(frozen=True)
class Invitation:
    """What a site's owner needs to request admission; nothing in it is secret."""

    federation: str
    host: str
    port: int
    fingerprint: str  # SHA-256 of the authority's certificate, to be compared over another channel

    @classmethod
    def read(cls, path: Path) -> Invitation:
        """Read an invitation file; DeployError if it is not one."""
        cure = "ask the federation's operator for invitation.toml"
        try:
            with path.open("rb") as file:
                data = file.read(MAX_INVITATION_BYTES + 1)
            if len(data) > MAX_INVITATION_BYTES:
                raise ValueError("it is too large")
            return cls.of(tomllib.loads(data.decode("utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            cause = f"{path} is not an invitation: {printable(error, 200)}"
            raise DeployError(cause, cure) from None

    @classmethod
    def of(cls, table: Any) -> Invitation:
        """From plain values; TypeError or ValueError unless they are an invitation."""
        found = cls(**table)
        texts = (found.federation, found.host, found.fingerprint)
        if not all(isinstance(one, str) and is_printable(one) for one in texts):
            raise ValueError("federation, host and fingerprint are printable texts")
        if any(len(one) > MAX_TEXT for one in texts):
            raise ValueError("a text is too long")
        if type(found.port) is not int or not 1 <= found.port <= 65535:
            raise ValueError("the port is a whole number from 1 to 65535")
        check_name(found.federation, "a federation")
        return found


class Signer(Protocol):
    """Submits jobs in the name of an operator on another machine."""

    @property
    def operator(self) -> str:
        """The operator's name."""

    def submit(
        self,
        run: str,
        sites: Sequence[str],
        arguments: Mapping[str, Any],
        patience: float,
        still: Callable[[], None],
    ) -> str:
        """Submit a job of a run; returns its ID. DeployError after `patience` seconds."""


@dataclass(frozen=True)
class FederationFolder:
    """A federation's folder on the coordinator's machine."""

    folder: Path
    invitation: Invitation
    # whose kit opens sessions with the server, and where it is; by default that which was made here
    acting: tuple[str, Path] | None = None
    signer: Signer | None = None  # submits jobs instead, with another operator's key

    @classmethod
    def open(cls, folder: Path) -> FederationFolder:
        """The federation in `folder`; DeployError if there is none."""
        path = folder / "invitation.toml"
        if not path.is_file():
            raise DeployError(
                f"{folder} does not contain a federation",
                f"create one with: fedsight federation init {folder}",
            )
        return cls(folder.resolve(), Invitation.read(path))

    @classmethod
    def create(cls, folder: Path, host: str, port: int) -> FederationFolder:
        """Create a federation in the new folder `folder`, named after it, completely or not at all.

        Raises DeployError if the folder is not empty or its name is invalid.
        """
        check_name(folder.name, "the federation")
        host = hosts.checked_host(host)
        check_empty(folder, "choose another name")
        make_folder(folder.resolve().parent)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.resolve().parent) as scratch:
            made = Path(scratch) / folder.name
            kits.make_private(made)
            name = hosts.engine_name(host)
            fingerprint = kits.make_authority(made, folder.name, name, port)
            invitation = Invitation(folder.name, host, port, fingerprint)
            self = cls(made, invitation)
            self._make_kit(name, "server", made / "server")
            for part in ("admitted", FOLDER, "runs", "server/sites"):
                make_folder(made / part)
            self._make_kit(OPERATOR, "lead", made / "operator")
            write_atomically(made / "invitation.toml", tomli_w.dumps(asdict(invitation)).encode())
            self.log_event("created", host=host, port=port)
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
        """The folder of the federation's runs."""
        return self.folder / "runs"

    @property
    def server_home(self) -> Path:
        """The folder that the server runs from."""
        return self.folder / "server"

    @property
    def operator_kit(self) -> Path:
        """The kit with which the operator's commands open sessions with the server."""
        return self.folder / "operator" / "kit" if self.acting is None else self.acting[1]

    @property
    def operator_name(self) -> str:
        """The operator whose kit that is."""
        return OPERATOR if self.acting is None else self.acting[0]

    @property
    def authority(self) -> Path:
        """The authority's certificate: the folder `ca` need not be on this machine."""
        own = self.folder / "ca" / kits.AUTHORITY
        return own if own.exists() else self.server_home / "kit" / "startup" / kits.AUTHORITY

    @property
    def presences(self) -> Path:
        """The folder in which the server records which sites are connected."""
        return self.server_home / "sites"

    def admit(self, request: Path, days: int = CERTIFICATE_DAYS) -> Path:
        """Sign a site's request; returns the signed file, which goes back to the site.

        A name belongs to one key. Raises DeployError if the name was admitted with another key, was
        revoked, or is the server's own, and if the certificate would outlive the authority's.
        """
        found = SigningRequest.read(request)
        if not found.is_site:
            raise DeployError(
                f"{request} is the request of an operator, '{found.name}'",
                "use: fedsight federation operator add",
            )
        if found.name in ((host := self.invitation.host), hosts.engine_name(host)):
            cause = f"'{found.name}' is the server's own name"
            raise DeployError(cause, "choose another name for the site")
        with self._admitting():
            return self._sign_request(found, request, days)

    def add_operator(self, request: Path, read_only: bool, days: int = CERTIFICATE_DAYS) -> Path:
        """Sign the request of another operator; returns the signed file, which goes back.

        Raises DeployError as `admit` does, and if the request is not for the role `read_only`.
        """
        found = SigningRequest.read(request)
        if found.is_site:
            raise DeployError(
                f"{request} is the request of a site, '{found.name}'",
                "use: fedsight federation admit",
            )
        if read_only != (found.role == "member"):
            asks = "only read" if found.role == "member" else "start and stop runs"
            raise DeployError(
                f"'{found.name}' asks to {asks}, and that is not what you want to permit",
                "add or leave out --read-only; or let them make another request, in another folder",
            )
        with self._admitting():
            for known in self.operators():
                if known != found.name and known.lower() == found.name.lower():
                    raise DeployError(
                        f"there is an operator '{known}', who could be mistaken for '{found.name}'",
                        "choose another name",
                    )
            return self._sign_request(found, request, days)

    def operators(self) -> dict[str, Operator]:
        """All operators that were ever admitted, by name; StoreError if a record is broken."""
        return operators(self.folder)

    def _admitting(self) -> IO[bytes]:
        """The lock under which a request is checked, signed and recorded: of two processes that
        admit the same name at once, both would find that no key has it yet."""
        busy = StoreError(f"another process is admitting members of {self.folder}", "try again")
        return locks.hold(self.folder / ".admitted.lock", LOCK_TIMEOUT, busy)

    def _sign_request(self, found: SigningRequest, request: Path, days: int) -> Path:
        name = found.name
        kind, where = ("site", "admitted") if found.is_site else ("operator", FOLDER)
        if name in self.revoked():
            raise DeployError(
                f"{kind} '{name}' was revoked: {self.revoked()[name]}",
                "who returns needs another name",
            )
        record = self.folder / where / f"{name}.toml"
        if record.exists():
            facts = tomllib.loads(record.read_text(encoding="utf-8"))
            known = facts.get("request")
            if known != found.fingerprint:
                raise DeployError(
                    f"{kind} '{name}' was admitted with another key (request {str(known)[:16]}, "
                    f"this one is {found.fingerprint[:16]})",
                    f"if the {kind} lost its key, revoke it and let it join under another name",
                )
            # Both certificates would be valid, so the fewer rights would be none.
            if not found.is_site and facts.get("read_only") != (found.role != "lead"):
                raise DeployError(
                    f"operator '{name}' was admitted with other rights",
                    "revoke the operator and let them join under another name",
                )
        if not (key := self.folder / "ca" / kits.AUTHORITY_KEY).exists():
            cure = "put the authority's key there for a moment, from where you keep it"
            raise DeployError(f"the authority's key {key} is not here", cure)
        certificates.check_days(self.authority, days)
        signed = request.resolve().with_name(f"{name}.signed.zip")
        with (
            tempfile.TemporaryDirectory(prefix=".new-", dir=signed.parent) as scratch,
            found.file() as checked,
        ):
            answer = Path(scratch) / signed.name
            kits.approve(self.folder, checked, answer, days)
            self._record(found, certificate_in(answer, name), days)
            answer.replace(signed)  # nobody has a certificate that is not recorded
        who = {"site": name} if found.is_site else {"operator": name, "role": found.role}
        self.log_event("admitted", **who, days=days, request=found.fingerprint)
        return signed

    def _record(self, found: SigningRequest, certificate: bytes, days: int) -> None:
        """Record whom a request has admitted: the certificate first, which gives no right here."""
        home = self.folder / ("admitted" if found.is_site else FOLDER)
        facts = {"admitted": _now(), "days": days, "request": found.fingerprint}
        if not found.is_site:
            facts["read_only"] = found.role != "lead"
        write_atomically(home / f"{found.name}.crt", certificate)
        write_atomically(home / f"{found.name}.toml", tomli_w.dumps(facts).encode())

    def admitted(self) -> list[str]:
        """The sites that were admitted and not revoked since."""
        revoked = self.revoked()
        names = (path.stem for path in (self.folder / "admitted").glob("*.toml"))
        return sorted(name for name in names if name not in revoked)

    def is_admitted(self, site: str) -> bool:
        """Whether this is one of them."""
        return (self.folder / "admitted" / f"{site}.toml").exists() and site not in self.revoked()

    def revoke(self, name: str, why: str) -> None:
        """Count nothing from a site, or follow nothing of an operator, from now on.

        `server.disable_site` drops a site's connection, and `sign_revocations` has the sites told.
        """
        known = self.operators() if is_operators(name) else self.admitted()
        home = self.folder / (FOLDER if is_operators(name) else "admitted")
        if not (home / f"{name}.toml").exists():
            kind = "operators" if is_operators(name) else "sites"
            names = ", ".join(known) or "none yet"
            raise DeployError(f"'{name}' was never admitted", f"the admitted {kind} are: {names}")
        with self._revoking():
            self._write_revoked({**self.revoked(), name: why or "revoked"})
        self.log_event("revoked", **_member(name), why=why)

    def revoked(self) -> dict[str, str]:
        """The revoked sites and operators, and why; StoreError if the file is broken."""
        return read_revoked(self.folder)

    @property
    def revocations(self) -> Revocations:
        """The list of who was revoked, which is shown to the sites."""
        return Revocations.read(self.folder)

    @property
    def lists_revoked(self) -> bool:
        """Whether that list names all who were revoked; it is signed with the authority's key."""
        return set(self.revoked()) <= {*self.revocations.names}

    def sign_revocations(self) -> None:
        """Sign that list anew; DeployError without the authority's key."""
        with self._revoking():
            self._sign(self.revocations.number)

    def take_over(self, table: object) -> list[str] | None:
        """Revoke whom a signed list names that a site has sent, as plain values, and sign the
        list of these and of those that were revoked here since.

        Returns who is revoked again; None if the signed list of this folder lacks none.
        Nothing happens if the authority has not signed the site's list. Without the authority's key
        that list is taken over only if it names all that are on the signed one here; otherwise
        `lists_revoked` is false afterwards.
        """
        try:
            found = Revocations.of(table)
        except ValueError:
            return None
        if not found.is_signed(self.authority):
            return None
        with self._revoking():
            own, known = self.revocations, self.revoked()
            if not own.lacking(found):
                return None
            again = [name for name in found.names if name not in known]
            why = dict.fromkeys(again, "revoked before this folder was restored from a backup")
            self._write_revoked(known | why)
            for name in again:
                self.log_event("revoked", **_member(name), why=why[name])
            if (self.folder / "ca" / kits.AUTHORITY_KEY).exists():
                self._sign(max(own.number, found.number))
            elif not found.lacking(own):
                found.write(self.folder)
        return again

    def _revoking(self) -> IO[bytes]:
        """The lock under which the list is read and written: of two processes that revoke at once,
        one would drop what the other has revoked."""
        busy = StoreError(f"another process is revoking members of {self.folder}", "try again")
        return locks.hold(self.folder / ".revoked.lock", LOCK_TIMEOUT, busy)

    def _write_revoked(self, revoked: Mapping[str, str]) -> None:
        write_atomically(self.folder / REVOKED, json.dumps(revoked, indent=1).encode())

    def _sign(self, number: int) -> None:
        """Sign the list of all that are revoked, or were on the last list, after list `number`."""
        names = {*self.revoked(), *self.revocations.names}
        key = self.folder / "ca" / kits.AUTHORITY_KEY
        Revocations.signed(number + 1, names, key).write(self.folder)

    def move_to_port(self, port: int) -> FederationFolder:
        """Change the server's port in the invitation and in the kits; returns the new state."""
        profile = self.folder / "profile.yml"
        table = json.loads(profile.read_text(encoding="utf-8"))
        table["server"] |= {"fed_learn_port": port, "admin_port": port}
        write_atomically(profile, json.dumps(table, indent=1).encode())
        for part in ("server", "operator"):
            kits.set_port(self.folder / part / "kit", port)
        invitation = replace(self.invitation, port=port)
        path = self.folder / "invitation.toml"
        write_atomically(path, tomli_w.dumps(asdict(invitation)).encode())
        self.log_event("moved", port=port)
        return replace(self, invitation=invitation)

    def log_event(self, event: str, **facts: Any) -> None:
        """Add an event to the federation's history."""
        path = self.folder / "events.jsonl"
        # Several processes write events. A line added while another one trims would be lost.
        busy = StoreError(f"another process is writing {path}", "end the process that hangs")
        with locks.hold(self.folder / ".events.lock", LOCK_TIMEOUT, busy):
            append_line(path, {"time": _now(), "event": event, **facts})
            # Sites choose how often these happen; what operators did stays.
            trim(path, EVENT_BYTES, lambda line: not any(one in line for one in _BY_SITES))

    def events(self) -> list[dict[str, Any]]:
        """The federation's history."""
        return records(self.folder / "events.jsonl")

    def _make_kit(self, name: str, role: kits.Role, home: Path) -> None:
        make_folder(home)
        request, signed = (
            kits.request(home / "request", self.name, name, role),
            home / "kit.signed.zip",
        )
        kits.approve(self.folder, request, signed, CERTIFICATE_DAYS)
        kits.unpack(signed, home / "request", self.invitation.fingerprint, home / "kit")
        if role == "lead":
            found = SigningRequest.read(request)
            self._record(found, certificate_in(signed, name), CERTIFICATE_DAYS)
        shutil.rmtree(home / "request")
        signed.unlink()


def _member(name: str) -> dict[str, str]:
    """Whom an event of the history is about."""
    return {"operator" if is_operators(name) else "site": name}


def check_empty(folder: Path, cure: str) -> None:
    """Raise DeployError with `cure` unless `folder` is an empty folder or does not exist."""
    if is_taken(folder):
        raise DeployError(f"{folder} is not empty", cure)


def check_site_folder(folder: Path) -> None:
    """Raise DeployError unless `folder` is a site's folder."""
    if not (folder / "identity.toml").is_file():
        raise DeployError(
            f"{folder} does not contain a site",
            "create one with: fedsight site init INVITATION --name NAME",
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
