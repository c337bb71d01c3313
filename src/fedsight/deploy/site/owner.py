"""The owner's word: where a site's images are, and what the site agrees to (`site.toml`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from fedsight.core.errors import ConfigError, Problem
from fedsight.core.settings import Settings
from fedsight.data.base import Source, sources
from fedsight.governance.contract import Contract
from fedsight.privacy.secagg.client import Minimums
from fedsight.program import config

TEMPLATE = """\
# What this site agrees to. Its own process enforces it; the coordinator cannot raise it.

[data]
# Where the images are: a folder per class, or any other source that FedSight reads.
# name = "folder"
# path = "/images"

[contract]
# tasks = ["classify"]    # what may be trained; leave out for any task
# programs = []           # fingerprints of the only programs to take part in; empty: any
# operators = ["operator@fedsight.local"]  # who may ask; leave out for any operator
# sites = 2               # sites that a run needs at least before this one takes part
# rounds = 100            # most rounds of a program
# require = ["secure_aggregation"]  # protections without which nothing leaves
# figures = true          # sums over the test images may leave
# announce = true         # the server may be told how many images of which classes there are
# epsilon = 8.0           # what all updates together may cost, over all runs; needs noise
# delta = 1e-5            # at which epsilon is meant

[secure]
# cohort = 3              # sites that must be summed at least
# threshold = 2           # sites that must help to reveal a secret, at least

[speed]
# threads = 1             # compute threads for training
"""


class Guarded(Settings):
    """What a site insists on in secure aggregation: `[secure]` of its owner's file.

    What the program's stated rates ask for is insisted on anyway, where it is more.
    """

    cohort: int = Field(3, ge=3)  # sites in a round
    threshold: int = Field(2, ge=2)  # shares that reveal a secret
    neighbours: int = Field(2, ge=2)  # that this site masks with
    survivors: int = Field(2, ge=2)  # updates in a sum

    @property
    def minimums(self) -> Minimums:
        """As the protocol takes them."""
        return Minimums(self.cohort, self.threshold, self.neighbours, self.survivors)


class Pace(Settings):
    """How fast a site trains: `[speed]` of its owner's file."""

    threads: int = Field(1, ge=1)  # compute threads for training


@dataclass(frozen=True)
class Owner:
    """All of `site.toml`."""

    data: Source
    contract: Contract
    pace: Pace
    secure: Guarded = field(default_factory=Guarded)
    share: bool = False  # the source is a sample that every site has; this site has its split


def lenient(source: Source) -> Source:
    """The source of one site, which may well have no image of a class."""
    if "missing" not in type(source).model_fields:
        return source
    return source.model_copy(update={"missing": "allow"})


def read_owner(path: Path | None, data: str | None) -> Owner:
    """The owner's file, with `data` (a folder or file, or a built-in sample) in place of [data].

    Raises ConfigError with every problem.
    """
    table: dict[str, Any] = config.read(path) if path is not None else {}
    if data is not None:
        table["data"] = described(data)
    base = path.resolve().parent if path is not None else Path.cwd()
    return parse_owner(table, base)


def read_contract(path: Path) -> Contract:
    """The contract in the owner's file alone; the one of a site without such a file."""
    table = config.read(path) if path.exists() else {}
    found = config.section("contract", Contract, table.get("contract", {}), path.parent)
    assert isinstance(found, Contract)
    return found


def parse_owner(table: dict[str, Any], base: Path) -> Owner:
    """The owner's word in `table`; relative paths are meant from `base`."""
    problems = config.unknown(table, ["data", "contract", "secure", "speed"], "")
    kinds: dict[str, Any] = {"data": (sources, None), "contract": Contract}
    kinds |= {"secure": Guarded, "speed": Pace}
    made: dict[str, Any] = {}
    for section, kind in kinds.items():
        try:
            made[section] = config.section(section, kind, table.get(section, {}), base)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    data: Source = made["data"]
    # Without a location it ships with FedSight: every site has it, and takes its split of it.
    share = not any(isinstance(getattr(data, key), Path) for key in type(data).model_fields)
    return Owner(data, made["contract"], made["speed"], made["secure"], share)


def described(data: str) -> dict[str, Any]:
    """The [data] section that `--data` stands for."""
    if data in sources.names():
        return {"name": data}
    path = Path(data)
    if not path.exists():
        cause = f"'{data}' is neither a file or folder nor a built-in sample"
        raise ConfigError([Problem("--data", cause, "give the folder of this site's images")])
    kinds = {".npz": "medmnist", ".json": "coco", ".csv": "manifest"}
    kind = "folder" if path.is_dir() else kinds.get(path.suffix.lower())
    if kind is None:
        cause = f"what '{data}' holds cannot be told from its name"
        raise ConfigError([Problem("--data", cause, "write a [data] section into site.toml")])
    return {"name": kind, "path": str(path.resolve())}
