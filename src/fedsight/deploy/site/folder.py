"""A site's folder: its key, its kit, its owner's word, its log."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from fedsight.coordinator.store import without_none
from fedsight.core.errors import DeployError
from fedsight.core.files import is_taken, write_atomically
from fedsight.deploy.membership import kits, presence
from fedsight.deploy.membership.federation import Invitation, check_name
from fedsight.deploy.processes import prefork, supervisor, upkeep
from fedsight.deploy.site.log import SiteLog
from fedsight.deploy.site.owner import TEMPLATE, Owner, lenient, parse_owner, read_owner
from fedsight.governance.ledger import Ledger


@dataclass(frozen=True)
class SiteFolder:
    """A site's folder on the site's own machine."""

    folder: Path
    name: str
    invitation: Invitation

    @classmethod
    def open(cls, folder: Path) -> SiteFolder:
        """The site in `folder`; DeployError if there is none."""
        path = folder / "identity.toml"
        try:
            facts = tomllib.loads(path.read_text(encoding="utf-8"))
            return cls(folder.resolve(), facts["name"], Invitation(**facts["federation"]))
        except (OSError, KeyError, ValueError, TypeError):
            cure = "make one with: fedsight site init INVITATION --name NAME"
            raise DeployError(f"{folder} holds no site", cure) from None

    @classmethod
    def create(cls, folder: Path, name: str, invitation: Invitation) -> Path:
        """Make the site's key in `folder`; returns the signing request for the operator."""
        check_name(name, "the site")
        if is_taken(folder):
            raise DeployError(f"{folder} is not empty", "choose another folder")
        kits.make_private(folder)
        request = kits.request(folder.resolve() / "request", invitation.federation, name, "client")
        out = folder / request.name
        out.write_bytes(request.read_bytes())
        write_atomically(folder / "site.toml", TEMPLATE.encode())
        facts = {"name": name, "federation": asdict(invitation)}
        write_atomically(folder / "identity.toml", tomli_w.dumps(facts).encode())
        return out

    def moved(self, invitation: Invitation) -> None:
        """The federation's server is on another port: change what this site connects to."""
        if replace(invitation, port=self.invitation.port) != self.invitation:
            raise DeployError(
                f"{self.folder} belongs to another federation ('{self.invitation.federation}', "
                f"{self.invitation.host})",
                "choose another folder with --dir",
            )
        facts = {"name": self.name, "federation": asdict(invitation)}
        write_atomically(self.folder / "identity.toml", tomli_w.dumps(facts).encode())
        if self.kit.exists():
            kits.set_port(self.kit, invitation.port)

    @property
    def kit(self) -> Path:
        """What FLARE starts from, once the site was admitted."""
        return self.folder / "kit"

    @property
    def log(self) -> SiteLog:
        """What left this site."""
        return SiteLog(self.folder)

    def settle(self, admission: Path | None = None) -> None:
        """Put the kit together from the operator's answer, unless that was done.

        The answer is `admission`, or NAME.signed.zip in the site's folder. DeployError if there
        is none, or if another authority than the invitation's has signed it.
        """
        signed = admission or self.folder / f"{self.name}.signed.zip"
        if self.kit.exists() and admission is None:
            return
        if not signed.is_file():
            raise DeployError(
                f"site '{self.name}' has not been admitted yet: {signed} is not there",
                f"send {self.name}.request.zip to the operator and put the answer into "
                f"{self.folder}",
            )
        fingerprint = self.invitation.fingerprint
        kits.unpack(signed.resolve(), self.folder / "request", fingerprint, self.kit)

    def start(
        self,
        data: str | None,
        contract: Path | None,
        say: Callable[[str], None],
        admission: Path | None = None,
    ) -> None:
        """Look at the images, then stay connected until SIGTERM or Ctrl-C."""
        with supervisor.only_one(self.folder, f"site '{self.name}'"):
            self.settle(admission)
            upkeep.refuse_readable_keys(self.folder)
            owner = read_owner(contract or self.folder / "site.toml", data)

            def looked() -> dict[str, Any]:
                Ledger(self.folder)  # one that was altered is told now, not at the first run
                return looked_at(owner)

            facts = prefork.aside(looked)  # this process stays as it is: others are forked from it
            self._write_owner(owner)
            announced = facts if owner.contract.announce else None
            write_atomically(self.folder / "declared.json", json.dumps(announced).encode())
            self.log.write("started", images=facts["train"], classes=len(facts["classes"]))
            say(
                f"site '{self.name}': {facts['train']:,} training images and {facts['test']:,} "
                f"test images of {len(facts['classes'])} classes"
                + (f", {facts['skipped']} corrupt ones left out" if facts["skipped"] else "")
            )
            upkeep.clear_jobs(self.kit)
            kits.write_policies(self.kit, "site")
            say(f"connecting to {self.invitation.host}:{self.invitation.port}")
            supervisor.site(self.kit, self.folder, self.name).run(
                say, presence.Hearing(self.folder, say).look
            )

    def _write_owner(self, owner: Owner) -> None:
        """What this start agreed to; jobs read it, so that a later edit needs a restart."""
        table = {
            "data": owner.data.table(),
            "contract": owner.contract.table(),
            "secure": owner.secure.table(),
            "speed": owner.pace.table(),
        }
        text = tomli_w.dumps(without_none(table))
        write_atomically(self.folder / "owner.toml", text.encode())
        parse_owner(tomllib.loads(text), self.folder)  # or a job would be the first to notice


def looked_at(owner: Owner) -> dict[str, Any]:
    """Open the owner's images, as a check before the site joins; DataError names what is wrong."""
    dataset = lenient(owner.data).open()
    return {
        "source": owner.data.registered,
        "share": owner.share,
        "train": len(dataset.train),
        "test": len(dataset.test),
        "classes": list(dataset.classes),
        "skipped": len(dataset.skipped),
    }
