"""The folder of an operator: the key, made where it is used, and the kit once admitted."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tomli_w

from fedsight.core.errors import DeployError
from fedsight.core.files import write_atomically
from fedsight.deploy.membership import certificates, kits
from fedsight.deploy.membership.federation import FederationFolder, Invitation, check_empty
from fedsight.deploy.membership.operators import FOLDER
from fedsight.deploy.membership.requests import certificate_in, check_operator_name

IDENTITY = "operator.toml"


@dataclass(frozen=True)
class OperatorFolder:
    """An operator's folder: nobody else has to be able to read it."""

    folder: Path
    name: str
    invitation: Invitation

    @classmethod
    def open(cls, folder: Path) -> OperatorFolder:
        """The operator in `folder`; DeployError if there is none."""
        path = folder / IDENTITY
        if not path.is_file():
            raise DeployError(
                f"{folder} is not an operator's folder",
                "create one with: fedsight operator init INVITATION --name NAME",
            )
        try:
            facts = tomllib.loads(path.read_text(encoding="utf-8"))
            return cls(folder.resolve(), str(facts["name"]), Invitation.of(facts["federation"]))
        except (OSError, KeyError, ValueError, TypeError) as error:
            cure = "restore it from a backup, or make another request in another folder"
            raise DeployError(f"{path} cannot be read: {error}", cure) from None

    @classmethod
    def create(cls, folder: Path, name: str, invitation: Invitation, read_only: bool) -> Path:
        """Create the operator's key in `folder`; returns the request to be sent."""
        check_operator_name(name)
        check_empty(folder, "choose another folder with --dir")
        kits.make_private(folder)
        role: kits.Role = "member" if read_only else "lead"
        request = kits.request(folder.resolve() / "request", invitation.federation, name, role)
        out = folder / request.name
        out.write_bytes(request.read_bytes())
        facts = {"name": name, "federation": asdict(invitation)}
        write_atomically(folder / IDENTITY, tomli_w.dumps(facts).encode())
        return out

    @property
    def kit(self) -> Path:
        """The folder with the key and the certificate, once the operator was admitted."""
        return self.folder / "kit"

    def install_kit(self) -> None:
        """Assemble the kit from the answer NAME.signed.zip in this folder, unless it is there.

        Raises DeployError if there is none, or another authority than the invitation's signed it.
        """
        if self.kit.exists():
            return
        signed = self.folder / f"{self.name}.signed.zip"
        if not signed.is_file():
            raise DeployError(
                f"operator '{self.name}' has not been admitted yet: {signed} does not exist",
                f"send {self.name}.request.zip to who created the federation and put the answer "
                f"into {self.folder}",
            )
        certificate_in(signed, self.name)
        kits.unpack(signed, self.folder / "request", self.invitation.fingerprint, self.kit)

    def take_renewal(self, data: bytes) -> None:
        """Take a certificate over if it ends later than the one that is here.

        Raises DeployError if it does and is not the renewal of that one.
        """
        startup = self.kit / "startup"
        if certificates.ends_later(data, certificates.read(startup / "client.crt")):
            certificates.take(startup, data)

    @property
    def role(self) -> str:
        """The role in the certificate: `lead`, or `member` for who only reads."""
        return certificates.role_of(certificates.read(self.kit / "startup" / "client.crt"))


def act_as(federation: FederationFolder, folder: Path) -> FederationFolder:
    """The federation, with whose server the operator in `folder` opens sessions.

    A renewed certificate is taken over. Raises DeployError for somebody whom the server would
    refuse: an operator of another federation, one who was revoked, or may only read.
    """
    own = OperatorFolder.open(folder)
    if own.invitation.fingerprint != federation.invitation.fingerprint:
        cause = f"'{own.name}' is an operator of another federation ('{own.invitation.federation}')"
        raise DeployError(cause, "give the folder of an operator of this one with --operator")
    own.install_kit()
    kits.check_keys_private(own.folder)
    known = federation.operators().get(own.name)
    if known is None:
        cause = f"'{own.name}' is not an operator of this federation"
        raise DeployError(cause, "see: fedsight federation operator list")
    if known.revoked:
        raise DeployError(f"'{own.name}' was revoked: {known.revoked}", "ask another operator")
    if known.read_only or own.role != "lead":
        raise DeployError(
            f"'{own.name}' may look on, and start, stop and revoke nothing",
            "ask an operator who may",
        )
    own.take_renewal((federation.folder / FOLDER / f"{own.name}.crt").read_bytes())
    if own.invitation.port != federation.invitation.port:
        kits.set_port(own.kit, federation.invitation.port)
    return replace(federation, acting=(own.name, own.kit))
