"""Four sites with test images of their own, and a coordinator that has them add up, under masks,
what a model makes of these."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attacked_site
import numpy as np
import pytest
import site_services
import torch
from PIL import Image
from site_services import LocalLink, Places
from torch import Tensor

from fedsight.coordinator.session import Session
from fedsight.coordinator.store import RunStore
from fedsight.deploy.declaration import gather, grouped_tests, masked_tests, withheld
from fedsight.deploy.server.joining import propose
from fedsight.deploy.site.trainer_process import SiteTrainer
from fedsight.engines.remote import messages
from fedsight.engines.remote.conversation import Link
from fedsight.engines.remote.engine import RemoteEngine, RunRecord
from fedsight.evaluation.conclusion import Conclusion
from fedsight.evaluation.description import describe
from fedsight.evaluation.trust.fit import FitFile
from fedsight.evaluation.trust.measure import Trusted
from fedsight.evaluation.trust.remote import trusted_remote
from fedsight.program.federation import Federation
from fedsight.program.program import Program, Speed
from fedsight.report.page import build
from fedsight.runs import lifecycle

CLASSES = ("ant", "bee", "cat")
TESTS = {"east": 16, "north": 20, "south": 12, "west": 14}  # of each class
MASKED = {"name": "secagg", "dropout": 0.25}
TRUST = {"unlike": "energy", "coverage": 0.8, "false_alarm": 0.1}
ROUND = 2
_marks = itertools.count(9000)


def draw(root: Path, tested: Mapping[str, int] = TESTS, trained: int = 3) -> Path:
    """The images of all sites, each in a folder of its own, and all in one tree: of each class so
    many `tested` ones by site, and so many `trained` ones at each."""
    for site, tests in tested.items():
        for part, count in (("train", trained), ("test", tests)):
            for label, name in enumerate(CLASSES):
                folder = root / site / part / name
                folder.mkdir(parents=True)
                for number in range(count):
                    rng = np.random.default_rng(zlib.crc32(f"{site}{part}{name}{number}".encode()))
                    pixels = rng.integers(0, 160, (8, 8)) + 40 * label
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        for part in ("train", "test"):
            (root / "all" / part).mkdir(parents=True, exist_ok=True)
            (root / "all" / part / site).symlink_to(root / site / part)
    return root


def fails_at(monkeypatch: pytest.MonkeyPatch, name: str, task: str) -> None:
    """Have the trainer of the site `name` run out of memory in this task, unless it is blank."""
    honest = getattr(SiteTrainer, task)

    def failing(trainer: SiteTrainer, step: Any) -> Any:
        if trainer.name == name and not step.blank:
            raise MemoryError("no room")
        return honest(trainer, step)

    monkeypatch.setattr(SiteTrainer, task, failing)


def program(images: Path, secure: Mapping[str, Any] = MASKED, **sections: Any) -> Program:
    """A program with masks, unless `secure` says otherwise."""
    trust = {**TRUST, **sections.pop("trust", {})}
    return site_services.program(images, secure=dict(secure), trust=trust, **sections)


class Sites:
    """The sites, their trainers in this process."""

    def __init__(self, images: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        attacked_site.install(monkeypatch)
        self.images, self.root = images, root
        data = {name: {"name": "folder", "path": str(images / name)} for name in TESTS}
        root.mkdir()
        self.places = Places(root, data)
        self.names = [*TESTS]
        self.places.sit()

    def owner(self, site: str, **contract: Any) -> None:
        """Write what a site's owner wants."""
        data = {"name": "folder", "path": str(self.images / site)}
        self.places.write_owner(site, {"data": data, "contract": contract})

    def join(
        self, of: Program, run: str, sites: Iterable[str] = TESTS, link: Link | None = None
    ) -> tuple[Federation, RemoteEngine]:
        """Begin a run of some of the sites."""
        seats = {name: self.places.seats[name] for name in sites}
        link = link or LocalLink(seats)
        found, absent, *_ = propose(of, run, link, {})
        assert absent == {}, absent
        noised = [site for site, declared in found.items() if declared.figures == "noised"]
        told: dict[str, Any] = {"withheld": withheld(found), "tests": masked_tests(found)}
        told |= {"noised": noised, "groups": grouped_tests(found)}
        federation = gather(of, found)
        return federation, RemoteEngine(
            federation, link, RunRecord({}, {}, lambda: 0, id=run, **told)
        )

    def measured(self, federation: Federation, engine: RemoteEngine, vector: Tensor) -> Trusted:
        """What becomes known of a model."""
        folder = self.root.parent / f"folder-{next(_marks)}"
        folder.mkdir()
        model = (vector, ROUND)
        ask = partial(engine.add_up, model)
        file = FitFile(RunStore(folder), model)
        return trusted_remote(federation, ask, file, engine.site_sums.groups)

    def run(self, of: Program, run: str, folder: Path) -> tuple[dict[str, Any], str]:
        """A whole run: its summary, and its report."""
        federation, engine = self.join(of, run)
        session, store = Session(federation), RunStore(folder)
        store.create(of, Speed(), describe(session, "run"))
        whole = Conclusion(session, Speed(), store, "run", [], pictures=False, sums=engine)
        return lifecycle.go(whole, engine, None), build([folder]).read_text()

    def ask(self, site: str, vector: Tensor, **fields: Any) -> dict[str, Any]:
        """A question as any coordinator could put it; the answer's header."""
        seat, mark = self.places.seats[site], next(_marks)
        data = bytes(messages.pack([vector]))
        piece = {"name": "vector", "mark": mark, "start": 0, "total": len(data)}
        seat.answer("piece", json.dumps(piece), data)
        header = {"round": ROUND, "attempt": mark, "vector": mark, "temperature": None}
        text, _ = seat.answer("calibrate", json.dumps({**header, "seconds": 30, **fields}), b"")
        return dict(json.loads(text))

    def close(self) -> None:
        """End all jobs."""
        for seat in self.places.seats.values():
            seat.close()


def vector_of(federation: Federation) -> Tensor:
    """A model that has learnt nothing, and is not the same for all classes."""
    start = federation.initial[federation.layout.travelling].clone()
    return start + 0.3 * torch.randn(len(start), generator=torch.Generator().manual_seed(1))
