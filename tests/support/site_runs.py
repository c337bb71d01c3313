"""A federation's folder with runs in it, and jobs that continue them at sites in this process."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import site_services
import tomli_w
from site_services import Places

from fedsight.coordinator.store import RunStore
from fedsight.deploy.membership.federation import FederationFolder, Invitation
from fedsight.deploy.server.job import JOB_FILE, run_job
from fedsight.program.program import Speed


class Runs:
    """A federation's folder with runs in it, and the sites that take part."""

    def __init__(self, folder: Path, images: Path, places: Places) -> None:
        (folder / "runs").mkdir()
        (folder / "server" / "sites").mkdir(parents=True)
        invitation = Invitation("wards", "localhost", 8002, "SHA256:00")
        (folder / "invitation.toml").write_text(tomli_w.dumps(asdict(invitation)))
        self.federation = FederationFolder.open(folder)
        self._images = images
        self.places = places

    def begin(self, name: str, **sections: Any) -> RunStore:
        """A run that has not started."""
        program = site_services.program(self._images, **sections)
        store = RunStore(self.federation.runs / name)
        facts = {"command": "run", "fingerprint": program.fingerprint, "id": f"job{name}"}
        store.create(program, Speed(workers=1), facts, force=True)
        return store

    def run_job(self, store: RunStore, link: Any = None) -> dict[str, Any]:
        """Run one job; returns its outcome."""
        fingerprint = store.program()[0].fingerprint
        link = link or self.places.sit()
        run_job(self.federation.folder, store.folder.name, fingerprint, 1, link)
        return json.loads((store.folder / JOB_FILE).read_text())


def owner(places: Places, site: str, **contract: Any) -> dict[str, Any]:
    table = tomllib.loads((places.root / site / "owner.toml").read_text())
    return {"data": table["data"], "contract": contract}
