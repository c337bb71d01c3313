"""Renewal: every member of a federation gets a certificate for the key that it has.

The authority's key is needed while that is done, and not afterwards: what it has signed lies in the
federation's folder, and the server sends it to sites and operators (`deploy/flare/updates.py`,
`deploy/server/looking.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal

from cryptography import x509

from fedsight.core.errors import DeployError
from fedsight.core.files import write_atomically
from fedsight.deploy.membership import certificates
from fedsight.deploy.membership.certificates import AUTHORITY_SOON, CERTIFICATE_DAYS, SOON
from fedsight.deploy.membership.federation import OPERATOR, FederationFolder
from fedsight.deploy.membership.hosts import engine_name
from fedsight.deploy.membership.operators import FOLDER

CRT = "client.crt"  # of a kit
Kind = Literal["authority", "server", "operator", "site"]
_ROLES = {"server": ("server",), "operator": ("lead", "member"), "site": ("client",)}


@dataclass(frozen=True)
class Certified:
    """A member of a federation, and where its certificate is in the federation's folder."""

    kind: Kind
    name: str
    path: Path


@dataclass(frozen=True)
class Ending:
    """When a certificate ends."""

    kind: Kind
    name: str
    end: datetime | None  # None: the certificate cannot be read
    days: int  # from now; negative: it has ended

    @property
    def soon(self) -> bool:
        """Whether it is time to do something about it."""
        soon = AUTHORITY_SOON if self.kind == "authority" else SOON
        return self.end is None or self.days < soon

    def table(self) -> dict[str, Any]:
        """In plain values."""
        return {**asdict(self), "end": None if self.end is None else self.end.isoformat()}

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Ending:
        """From plain values; TypeError, ValueError or KeyError unless they are those of one."""
        end = None if table["end"] is None else datetime.fromisoformat(table["end"])
        return cls(table["kind"], str(table["name"]), end, int(table["days"]))


def certified(federation: FederationFolder) -> list[Certified]:
    """The server, the operators and the sites that were admitted and not revoked since."""
    folder, revoked = federation.folder, federation.revoked()
    found = [_server(federation)]
    for name in federation.operators():
        found.append(Certified("operator", name, folder / FOLDER / f"{name}.crt"))
    for name in federation.admitted():
        found.append(Certified("site", name, folder / "admitted" / f"{name}.crt"))
    return [one for one in found if one.name not in revoked]


def _server(federation: FederationFolder) -> Certified:
    path = federation.server_home / "kit" / "startup" / "server.crt"
    return Certified("server", federation.invitation.host, path)


def endings(federation: FederationFolder) -> list[Ending]:
    """When the certificates of the authority and of all members end."""
    authority = Certified("authority", federation.name, federation.authority)
    members = [authority, *certified(federation)]
    return [_ending(one) for one in members]


def server_ended(federation: FederationFolder) -> date | None:
    """When the certificate of the server has ended; None if it has not."""
    found = _ending(_server(federation))
    return found.end.date() if found.end is not None and found.days < 0 else None


def _ending(member: Certified) -> Ending:
    try:
        found = certificates.read(member.path)
    except DeployError:
        return Ending(member.kind, member.name, None, 0)
    days = certificates.days_left(found)
    return Ending(member.kind, member.name, found.not_valid_after_utc, days)


def renew(
    federation: FederationFolder, names: Sequence[str] = (), days: int = CERTIFICATE_DAYS
) -> list[Certified]:
    """Renew the certificates of these members, or of all that end earlier; returns whose.

    All are signed before the first one is written. Raises DeployError for a name that was revoked
    or never admitted, without the authority's key, if they would outlive its certificate, and if
    nobody's, or that of a member that is named, would end later than the one that is there.
    """
    known = {one.name: one for one in certified(federation)}
    for name in names:
        if name in (revoked := federation.revoked()):
            cure = "who returns needs another name"
            raise DeployError(f"'{name}' was revoked: {revoked[name]}", cure)
        if name not in known:
            cause = f"'{name}' has no certificate of this federation"
            raise DeployError(cause, f"those who have one are: {', '.join(known)}")
    chosen = [known[name] for name in dict.fromkeys(names)] or list(known.values())
    ca, startup = federation.folder / "ca", federation.operator_kit / "startup"
    signed = [(one, certificates.renewed(_own(one), ca, days)) for one in chosen]
    later = [(one, data) for one, data in signed if _ends_later(one, data, startup)]
    late = [one.name for one in chosen if one not in {one for one, _ in later}]
    if late and (names or not later):
        raise DeployError(
            f"these certificates are valid for at least as long already: {', '.join(late)}",
            "give more --days, or the names of those that are to be renewed",
        )
    for one, data in later:
        write_atomically(one.path, data)
        federation.log_event("renewed", **{one.kind: one.name}, days=days)
        if one.name == OPERATOR and (startup / CRT).exists():  # may be on another machine
            certificates.take(startup, data)
    return [one for one, _ in later]


def _ends_later(member: Certified, data: bytes, startup: Path) -> bool:
    """Whether a renewal ends later than all that its member has here: nobody takes another."""
    held = [member.path]
    if member.name == OPERATOR and (startup / CRT).exists():
        held.append(startup / CRT)
    return all(certificates.ends_later(data, certificates.read(path)) for path in held)


def _own(member: Certified) -> x509.Certificate:
    """The certificate of a member; DeployError if the file holds somebody else's, or another role:
    a renewal would have the same."""
    found = certificates.read(member.path)
    name, role = certificates.name_of(found), certificates.role_of(found)
    due = engine_name(member.name) if member.kind == "server" else member.name
    # FLARE cuts a long name of a server (RFC 5280, appendix A.1).
    if due[:64] != name or role not in _ROLES[member.kind]:
        raise DeployError(
            f"{member.path} is the certificate of '{name}' in the role '{role}'",
            "restore the file from a backup",
        )
    return found
