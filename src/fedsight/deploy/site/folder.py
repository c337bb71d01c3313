"""A site's folder: its identity, its kit, its settings, its log; and the start of the site."""

from __future__ import annotations

import contextlib
import os
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from fedsight.core.errors import DataError, DeployError
from fedsight.core.files import write_atomically
from fedsight.deploy.membership import hosts, kits, presence
from fedsight.deploy.membership.federation import (
    Invitation,
    check_empty,
    check_site_folder,
)
from fedsight.deploy.membership.requests import certificate_in, check_name
from fedsight.deploy.monitoring.job import Job
from fedsight.deploy.monitoring.keeper import MonitorKeeper, kept
from fedsight.deploy.monitoring.lines import MESSAGES, Lines, Output, output, reporting
from fedsight.deploy.processes import prefork, supervisor
from fedsight.deploy.processes.supervisor import Supervisor
from fedsight.deploy.site import opening, state
from fedsight.deploy.site.delivery.maker import RecogniserMaker
from fedsight.deploy.site.log import SiteLog
from fedsight.deploy.site.opening import Opened
from fedsight.deploy.site.told import RefusalsTold
from fedsight.deploy.site.unanswered import certificate_ended, why_unanswered

# Files of a site that may name images.
LOGS = ("log.jsonl", "*.txt", "kit/*.txt*", "kit/*/*.txt*")


@dataclass(frozen=True)
class SiteFolder:
    """A site's folder on the site's own machine."""

    folder: Path
    name: str
    invitation: Invitation

    @classmethod
    def open(cls, folder: Path) -> SiteFolder:
        """The site in `folder`; DeployError if there is none."""
        check_site_folder(folder)
        path = folder / "identity.toml"
        try:
            facts = tomllib.loads(path.read_text(encoding="utf-8"))
            return cls(folder.resolve(), facts["name"], Invitation.of(facts["federation"]))
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise DeployError(
                f"{path} cannot be read: {error}",
                "restore it from a backup, or create the site again in another folder",
            ) from None

    @classmethod
    def create(cls, folder: Path, name: str, invitation: Invitation) -> Path:
        """Create the site's key in `folder`; returns the signing request for the operator."""
        from fedsight.deploy.site.owner import TEMPLATE

        check_name(name, "the site")
        check_empty(folder, "choose another folder with --dir")
        kits.make_private(folder)
        request = kits.request(folder.resolve() / "request", invitation.federation, name, "client")
        out = folder / request.name
        out.write_bytes(request.read_bytes())
        write_atomically(folder / "site.toml", TEMPLATE.encode())
        _write_identity(folder, name, invitation)
        return out

    def update_invitation(self, invitation: Invitation) -> None:
        """Connect to the port in a newer invitation; DeployError if it is another federation's."""
        if replace(invitation, port=self.invitation.port) != self.invitation:
            raise DeployError(
                f"{self.folder} belongs to another federation ('{self.invitation.federation}', "
                f"{self.invitation.host})",
                "choose another folder with --dir",
            )
        _write_identity(self.folder, self.name, invitation)
        if self.kit.exists():
            kits.set_port(self.kit, invitation.port)

    @property
    def kit(self) -> Path:
        """The folder that FLARE starts from, once the site was admitted."""
        return self.folder / "kit"

    @property
    def log(self) -> SiteLog:
        """The log of what left this site."""
        return SiteLog(self.folder)

    def install_kit(self, admission: Path | None = None) -> None:
        """Assemble the kit from the operator's answer, unless it is there already.

        The answer is `admission`, or NAME.signed.zip in the site's folder. Raises DeployError if
        there is none, or if another authority than the invitation's signed it.
        """
        signed = admission or self.folder / f"{self.name}.signed.zip"
        if self.kit.exists() and admission is None:
            return
        if not signed.is_file():
            raise DeployError(
                f"site '{self.name}' has not been admitted yet: {signed} does not exist",
                f"send {self.name}.request.zip to the operator and put the answer into "
                f"{self.folder}",
            )
        certificate_in(signed, self.name)
        fingerprint = self.invitation.fingerprint
        kits.unpack(signed.resolve(), self.folder / "request", fingerprint, self.kit)

    def start(
        self,
        data: str | None,
        contract: Path | None,
        notify: Callable[[str], None],
        admission: Path | None = None,
        wanted: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the images, then stay connected until SIGTERM or Ctrl-C.

        `wanted` is what the user wants this time instead of [monitoring] in site.toml. All files
        that the site's processes write meanwhile are the owner's alone: logs name images, and so
        patients.
        """
        with _files_of_owner(self.folder), supervisor.exclusive(self.folder, f"site '{self.name}'"):
            self.install_kit(admission)
            kits.check_keys_private(self.folder)
            with supervisor.site(self.kit, self.folder, self.name) as supervised:
                file = contract or self.folder / "site.toml"
                opened = supervised.forks.call(
                    partial(opening.opened, self.folder, self.name, file, data, wanted or {})
                )
                log, hooks = opened.monitoring.log, opened.hooks
                party = {"site": self.name, "federation": self.invitation.federation}
                out = output(log, notify, party, self.folder)
                job = Job("site", str(self.folder), party, hooks.table(), log, time.time())
                with reporting(out):
                    self._tell(opened, out)
                    kits.write_policies(self.kit, "site", opened.keep)
                    kits.clear_old_jobs(self.kit)
                    state.arrive(self.folder)
                    with kept(job, opened.monitoring, hooks, out) as keeper:
                        self._serve(supervised, opened, keeper, out)

    def _tell(self, opened: Opened, out: Output) -> None:
        """Say what the site has; raise why it cannot use its images, if so."""
        error = opened.error
        if isinstance(error, DataError) and isinstance(out, Lines):  # which go elsewhere
            out.private(str(error))
            cause = f"the site cannot use its images ({error.told or type(error).__name__})"
            raise DataError(cause, f"see {MESSAGES} in the site's folder") from None
        if error is not None:
            raise error
        for line in opened.lines:
            out.private(line)

    def _serve(
        self, supervised: Supervisor, opened: Opened, keeper: MonitorKeeper | None, out: Output
    ) -> None:
        """Stay connected until SIGTERM or Ctrl-C."""
        why = partial(why_unanswered, self.folder, self.kit, self.name)
        monitor = presence.ConnectionMonitor(
            self.folder, lambda text: out.notice(text, event="connection"), why
        )
        address = hosts.written(self.invitation.host, self.invitation.port)
        out.notice(f"connecting to {address}", event="started")
        if ended := certificate_ended(self.kit, self.name):
            out.notice(ended, event="certificate", level="warning")
        maker = RecogniserMaker(self.folder, opened.delivery, out.private)
        refusals = RefusalsTold(self.folder, out.private)

        def poll(forks: prefork.PreforkServer) -> None:
            monitor.poll()
            refusals.poll()
            maker.poll(forks)
            if keeper is not None:
                keeper.poll(forks)

        def farewell() -> bool:
            """Tell the server, if it answers, so that nobody waits for this site."""
            state.leave(self.folder)
            return not monitor.connected or presence.has_told(self.folder, "leaving")

        if state.is_drained(self.folder):
            out.notice(
                "this site is drained: it takes part in nothing until `site drain --end`",
                event="drained",
            )
        with contextlib.closing(maker):
            supervised.run(
                lambda text: out.notice(text, event="process_ended", level="warning"),
                poll,
                farewell,
            )


@contextlib.contextmanager
def _files_of_owner(folder: Path) -> Iterator[None]:
    """What this process and its forks write meanwhile, and what earlier versions have written, can
    be read by the owner alone."""
    before = os.umask(0o077)
    try:
        logs = [path for pattern in LOGS for path in folder.glob(pattern)]
        for path in logs:
            with contextlib.suppress(OSError):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode & 0o700)
        yield
    finally:
        os.umask(before)


def _write_identity(folder: Path, name: str, invitation: Invitation) -> None:
    facts = {"name": name, "federation": asdict(invitation)}
    write_atomically(folder / "identity.toml", tomli_w.dumps(facts).encode())
