"""Three sites with test images for each task whose answers are made large enough, and a simulation
of them."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import attacked_site
import pytest
import torch
from site_services import LocalLink, Places
from torch import Tensor

from fedsight.client.memory import MemoryStore
from fedsight.deploy.declaration import gather, grouped_tests, masked_tests, withheld
from fedsight.deploy.server.joining import propose
from fedsight.engines.remote.conversation import Link
from fedsight.engines.remote.engine import RemoteEngine, RunRecord
from fedsight.evaluation.overall import Final
from fedsight.evaluation.trust.covering_remote import controlled_remote
from fedsight.evaluation.trust.measure import Trusted
from fedsight.program.config import parse
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Program, Speed

KINDS = ("ordinal", "multilabel", "segment", "detect", "faces")
SOURCE = Path(__file__).parent / "parts" / "covered_images.py"
TESTS = {"east": 36, "north": 48, "south": 40, "west": 32}  # images
OF_A_PERSON = 2
MODELS: dict[str, dict[str, Any]] = {
    "ordinal": {"name": "small_cnn", "width": 4, "blocks": 1},
    "multilabel": {"name": "small_cnn", "width": 4, "blocks": 1},
    "segment": {"name": "unet", "width": 4, "levels": 2},
    "detect": {"name": "small_detector", "width": 4},
    "faces": {"name": "embedding", "backbone": "small_cnn", "dimension": 8, "norm": "group"},
}
ROUND = 2
_marks = itertools.count(7000)


def program(root: Path, kind: str, grouped: bool = False, **sections: Any) -> Program:
    """A program on the images of all sites, of a task whose answers cover."""
    # of a detector that has learnt nothing little is asked
    trust = {"coverage": 0.05 if kind == "detect" else 0.6, **sections.pop("trust", {})}
    table: dict[str, Any] = {
        "data": {"name": "covered", "path": str(root / "all"), "kind": kind, "grouped": grouped},
        "split": {"name": "natural"},
        "model": MODELS[kind],
        "task": {"name": kind},
        "train": {"batch": 4, "lr": 0.01},
        "rounds": {"rounds": ROUND},
        "trust": trust,
        "plugins": [str(SOURCE)],
        **sections,
    }
    return parse(table, base=root)[0]


class Sites:
    """The sites, with their trainers in this process."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        attacked_site.install(monkeypatch)
        self._data: dict[str, Any] = {"name": "covered"}
        self._contracts: dict[str, dict[str, Any]] = {}
        self.images, self.root = root, root / "sites"
        for name in ("all", "sites", *TESTS):
            (root / name).mkdir()
        self.places = Places(self.root, {name: {**self._data, "path": "."} for name in TESTS})
        for site in TESTS:
            self.owner(site)
            (self.root / site / "plugins").mkdir()
            shutil.copy(SOURCE, self.root / site / "plugins")
        self.places.sit()

    def owner(self, site: str, **contract: Any) -> None:
        """Write what a site's owner wants."""
        self._contracts[site] = contract
        data = {**self._data, "path": str(self.images / site)}
        permitted = {"plugins": [hashlib.sha256(SOURCE.read_bytes()).hexdigest()], **contract}
        self.places.write_owner(site, {"data": data, "contract": permitted})

    def join(self, of: Program, run: str, link: Link | None = None) -> tuple[Any, RemoteEngine]:
        """Begin a run; the images are those of its task."""
        known, self._data = self._data, {"name": "covered", **_owned(of)}
        if known != self._data:
            for site in TESTS:
                self.owner(site, **self._contracts.get(site, {}))
        link = link or LocalLink(self.places.seats)
        found, absent, *_ = propose(of, run, link, {})
        assert absent == {}, absent
        noised = [site for site, declared in found.items() if declared.figures == "noised"]
        told: dict[str, Any] = {
            "withheld": withheld(found),
            "tests": masked_tests(found),
            "groups": grouped_tests(found),
        }
        federation = gather(of, found)
        record = RunRecord({}, {}, lambda: 0, id=run, noised=noised, **told)
        return federation, RemoteEngine(federation, link, record)

    def measured(self, federation: Federation, engine: RemoteEngine, vector: Tensor) -> Trusted:
        """What becomes known of a model."""
        covering = federation.program.task.covering
        assert covering is not None
        return controlled_remote(
            federation, covering, partial(engine.add_up, (vector, ROUND)), engine.site_sums.groups
        )

    def mark(self) -> int:
        """A number that no question had before."""
        return next(_marks)

    def close(self) -> None:
        """End all jobs."""
        for seat in self.places.seats.values():
            seat.close()


def _owned(of: Program) -> dict[str, Any]:
    """What an owner says of the images of a program."""
    data = of.table()["data"]
    return {key: data[key] for key in ("kind", "grouped") if key in data}


def vector_of(federation: Federation) -> Tensor:
    """A model that has learnt nothing, and is not the same for all classes."""
    start = federation.initial[federation.layout.travelling].clone()
    return start + 0.1 * torch.randn(len(start), generator=torch.Generator().manual_seed(1))


def final(of: Program, vector: Tensor, folder: Path) -> Final:
    """The end of a simulation with this model."""
    return Final(federate(of), Speed(device="cpu"), vector, MemoryStore(folder / "memory"))
