"""Site services in this process, with real trainer processes, on images that are quickly drawn.

The trainer processes of the sites are kept from test to test, unless a test asks for new ones.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import federations
import numpy as np
import tomli_w
from attacked_site import InlineTrainer
from PIL import Image

from fedsight.coordinator.loop import Trained, run
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import Checkpoint
from fedsight.core.package import installed
from fedsight.deploy.declaration import gather
from fedsight.deploy.server.joining import propose
from fedsight.deploy.site.memories import folder_of
from fedsight.deploy.site.service import SiteService
from fedsight.engines.remote import conversation, engine
from fedsight.engines.remote.conversation import Link
from fedsight.engines.remote.engine import RemoteEngine, RunRecord
from fedsight.program.config import parse
from fedsight.program.federation import Federation
from fedsight.program.program import Program

CLASSES = ("ant", "bee", "cat")
# Training and test images of each class: unequal sites, and one without any cat.
SITES = {
    "north": {"ant": (6, 2), "bee": (4, 2), "cat": (4, 1)},
    "south": {"ant": (2, 1), "bee": (4, 1), "cat": (5, 2)},
    "west": {"ant": (5, 2), "bee": (4, 1)},
}
SECTIONS: dict[str, Any] = {
    "split": {"name": "natural"},
    "model": {"name": "small_cnn", "width": 4, "blocks": 1},
    "algorithm": {"name": "fedavg"},
    "train": {"batch": 8, "lr": 0.1},
    "rounds": {"rounds": 2},
}
Alter = Callable[[str, dict[str, Any], str, bytes], tuple[Any, Any]]


def draw(root: Path) -> None:
    """`root/SITE/train/CLASS/N.png` and so on; `root/all` holds the same files by part and site."""
    for site, classes in SITES.items():
        for name, counts in classes.items():
            for part, count in zip(("train", "test"), counts, strict=True):
                folder = root / site / part / name
                folder.mkdir(parents=True)
                for number in range(count):
                    rng = np.random.default_rng(zlib.crc32(f"{folder.parts[-3:]}{number}".encode()))
                    pixels = rng.integers(0, 160, (8, 8)) + 40 * CLASSES.index(name)
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        for part in ("train", "test"):
            (root / "all" / part).mkdir(parents=True, exist_ok=True)
            (root / "all" / part / site).symlink_to(root / site / part)


def program(images: Path, **sections: Any) -> Program:
    """A program on the images of all sites in one tree, which an embedded engine can open too."""
    data = {"name": "folder", "path": str(images / "all"), "sites_in_path": True, "size": 8}
    tables = {name: {**table, **sections.pop(name, {})} for name, table in SECTIONS.items()}
    data |= {"channels": 1, "classes": list(CLASSES), **sections.pop("data", {})}
    made, _ = parse({**tables, **sections, "data": data}, base=images)
    return made


class Places:
    """The folders of some sites, and the site services in them."""

    def __init__(self, root: Path, data: Mapping[str, Mapping[str, Any]]) -> None:
        self.root = root
        self.seats: dict[str, SiteService] = {}
        self.names = list(data)
        self._runs = 0
        self._program: Program | None = None  # of the last run
        for site, table in data.items():
            (root / site).mkdir()
            self.write_owner(site, {"data": dict(table)})

    @property
    def run(self) -> str:
        """The name under which the last run was proposed, unless `meet` was told one."""
        return f"run{self._runs}"

    def write_owner(self, site: str, table: Mapping[str, Any]) -> None:
        """Write the owner's settings of a site, which may have few test images."""
        contract = {"test_images": 1, **table.get("contract", {})}
        table = {**table, "contract": contract}
        (self.root / site / "owner.toml").write_text(tomli_w.dumps(dict(table)))

    def sit(self, fresh: Sequence[str] = ()) -> LocalLink:
        """Start a new service at each site, as a new job does; all trainers but those of the sites
        `fresh` are kept."""
        for site in self.names:
            old, self.seats[site] = self.seats.get(site), SiteService(self.root / site, site)
            if old is None:
                continue
            trainer = old._trainer
            if trainer is not None and site not in fresh and _lives(trainer) and _newest(old):
                self.seats[site]._trainer, old._trainer = trainer, None
                self.seats[site]._token = old._token  # the trainer would end for a newer one
            old.close()
        return LocalLink(self.seats)

    def meet(
        self, program: Program, link: Link | None = None, run: str | None = None
    ) -> tuple[Federation, Link]:
        """Begin a run: ask the sites to take part, and gather what they declare of their images."""
        link = link or self.sit()
        self._runs += 1
        self._program = program
        found, absent, _, _ = propose(program, run or self.run, link, {})
        assert absent == {}, absent
        return gather(program, found), link

    def memory(self, site: str) -> Path:
        """Where the site keeps what it remembers of the last run."""
        assert self._program is not None
        return folder_of(self.root / site, self._program, self.run)

    def log(self, site: str) -> list[dict[str, Any]]:
        """The site's log."""
        return self.seats[site]._log.read()

    def close(self) -> None:
        """End all processes."""
        for seat in self.seats.values():
            seat.close()
        shutil.rmtree(self.root, ignore_errors=True)


def _lives(trainer: Any) -> bool:
    return isinstance(trainer, InlineTrainer) or trainer._process.poll() is None


def _newest(service: SiteService) -> bool:
    """Whether no other service has joined its run since: its trainer ends a moment after that."""
    opened = service._opened
    return opened is None or (opened.memory / ".lease").read_text() == service._token


@dataclass
class LocalLink:
    """A link to site services in this process."""

    seats: Mapping[str, SiteService]

    @property
    def sites(self) -> list[str]:
        """All sites."""
        return sorted(self.seats)

    def ask(
        self, site: str, kind: str, header: Mapping[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        """One question and its answer."""
        with _PROPOSED if kind == "propose" else contextlib.nullcontext():
            return self.seats[site].answer(kind, json.dumps(header), body)


# Each site imports the plug-ins of a program that it is proposed. Real sites do so in processes of
# their own; these share one, and its registries.
_PROPOSED = threading.Lock()


@dataclass
class FaultyLink:
    """A link that alters the answers of `site`; `asked` lists the questions as (site, kind)."""

    link: Link
    site: str
    alter: Alter
    asked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def sites(self) -> list[str]:
        """Those of the link within."""
        return list(self.link.sites)

    def ask(
        self, site: str, kind: str, header: Mapping[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        """One question and its answer, altered if it comes from `site`."""
        self.asked.append((site, kind))
        answer = self.link.ask(site, kind, header, body, timeout)
        return self.alter(kind, dict(header), *answer) if site == self.site else answer


@dataclass
class OtherCoordinator(LocalLink):
    """A link at whose other end the coordinator has other FedSight code."""

    def ask(
        self, site: str, kind: str, header: Mapping[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        """One question and its answer; a proposal states that code."""
        if kind == "propose":
            header = {**header, "package": {**installed().table(), "sha256": "f" * 64}}
        return super().ask(site, kind, header, body, timeout)


class Clock:
    """A clock for conversations that stands still but for what is slept, so that no test waits."""

    def __init__(self) -> None:
        self._now = 0.0
        self._lock = threading.Lock()

    def monotonic(self) -> float:
        """The time in seconds."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Move the clock instead of waiting."""
        with self._lock:
            self._now += seconds

    def rule(self, monkeypatch: Any) -> Clock:
        """Make conversations use this clock."""
        stand_in = SimpleNamespace(monotonic=self.monotonic, sleep=self.sleep)
        monkeypatch.setattr(conversation, "time", stand_in)
        monkeypatch.setattr(engine, "time", stand_in)
        return self


def learn(
    federation: Federation,
    link: Link,
    diary: federations.Diary | None = None,
    start: Checkpoint | None = None,
    accepted: Mapping[str, int] | None = None,
    durable: Callable[[], int] = lambda: 0,
    name: str = "",
) -> Trained:
    """The whole run through the real loop, on the sites at the other end of `link`; `name` is what
    the run was proposed as, which the keys of secure aggregation are bound to."""
    engine = RemoteEngine(federation, link, RunRecord({}, accepted or {}, durable, id=name))
    return run(
        Session(federation),
        engine,
        federations.overall(federation),
        [diary] if diary else [],
        start,
    )


def figures(diary: federations.Diary) -> list[dict[str, Any]]:
    """The lines of the history without the time that rounds took."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in diary.lines]
