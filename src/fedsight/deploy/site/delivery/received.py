"""The models that runs ended with, as the coordinator sent them: `received/KEY` of a site's folder.

They are kept for good, so that a site whose machine was off, or whose disk was full, makes its
recogniser later. What a run may fill is known before anything is made of its model, and does not
depend on what is made of it: `occupied` counts the same bytes from the first moment on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from fedsight.core.errors import SiteError, StoreError
from fedsight.core.files import make_folder, parse_json, write_atomically

if TYPE_CHECKING:  # whoever only looks for orders does without it
    from torch import Tensor

FOLDER = "received"
ORDER, MODEL, OUTCOME, WORK = "order.json", "model.safetensors", "outcome.json", "work"
ROOM = "room.json"  # what `ReceivedOrder.bytes` says: it is asked for before every answer
KEY = 16  # hex digits of the name of a folder
MAX_PROGRAM_NAME = 80  # characters of what a coordinator calls a program
COPIES = 3  # texts that hold a program: the order, and two files of a recogniser


@dataclass(frozen=True)
class ReceivedOrder:
    """What a run ended with: its program and site by name, and which memory counts."""

    run: str
    fingerprint: str
    program: Mapping[str, Any]  # as plain values
    site: str
    memory: str  # of the run, relative to the site's folder
    round: int  # the last one
    accepted: int  # the last round in which the site's update counted
    counted: int  # in how many rounds it did
    digest: str  # of the model, as that of an order
    bytes: int  # reserved for the model, for what is made of it, and for texts about both
    wanted: bool = True  # whether the owner wanted a recogniser when it came

    def with_texts(self) -> ReceivedOrder:
        """The order with room for its own text, and for those of a recogniser."""
        return replace(self, bytes=self.bytes + COPIES * len(json.dumps(asdict(self))))


@dataclass(frozen=True)
class Outcome:
    """What became of an order: `state` is `delivered` or `failed`."""

    state: str
    alone: bool = False  # whether a model trained at the site alone was compared
    folder: str = ""  # of the recogniser, relative to the site's folder
    why: str = ""
    cure: str = ""
    time: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


class Received:
    """The final models in the site's folder `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def folder(self, key: str) -> Path:
        """Where the order `key` is."""
        return self.home / FOLDER / key

    def accepts(self, key: str, digest: str) -> bool:
        """Whether the model `digest` is to be kept; False if it is there already.

        Raises SiteError if the run has ended with another one.
        """
        known = self.read(key)
        if known is not None and known.digest != digest:
            raise SiteError(
                "this site has received another final model of this run",
                "a run ends once; the site's owner can remove its folder below `received`, and it "
                "is taken",
            )
        return known is None

    def keep(self, key: str, order: ReceivedOrder, vectors: Mapping[str, Tensor]) -> None:
        """Keep an order, whole or not at all; StoreError if it cannot be written.

        A model that nobody wants a recogniser of is not kept, but that it came is.
        """
        from safetensors.torch import save

        folder = self.folder(key)
        make_folder(folder)
        if order.wanted:
            write_atomically(folder / MODEL, save(dict(vectors)))
        write_atomically(folder / ROOM, json.dumps(order.bytes).encode(), 0o600)
        write_atomically(folder / ORDER, json.dumps(asdict(order)).encode(), 0o600)

    def read(self, key: str) -> ReceivedOrder | None:
        """The order `key`; None if it has not come, StoreError if it is broken."""
        path = self.folder(key) / ORDER
        if not path.is_file():
            return None
        try:
            return ReceivedOrder(**parse_json(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise _broken(path, error) from error

    def vectors(self, key: str) -> dict[str, Tensor]:
        """The vectors that came with the order `key`; StoreError if they cannot be read."""
        import torch
        from safetensors.torch import load_file

        path = self.folder(key) / MODEL
        try:
            found = load_file(path)
            if any(one.dtype != torch.float32 or one.dim() != 1 for one in found.values()):
                raise ValueError("it does not hold vectors")
            return {"vector": found.pop("vector"), **found}
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise _broken(path, error) from error

    def outcome(self, key: str) -> Outcome | None:
        """What became of the order `key`; None if nothing did yet."""
        try:
            return Outcome(**parse_json((self.folder(key) / OUTCOME).read_bytes()))
        except (OSError, ValueError, TypeError):  # none, or one of another version
            return None

    def conclude(self, key: str, outcome: Outcome) -> None:
        """Record what became of the order `key`; StoreError if that fails."""
        data = json.dumps(asdict(outcome)).encode()
        write_atomically(self.folder(key) / OUTCOME, data, 0o600)

    def tidy(self, key: str) -> None:
        """Remove what was needed only until the recogniser of the order `key` was made."""
        shutil.rmtree(self.folder(key) / WORK, ignore_errors=True)

    def orders(self) -> list[str]:
        """All orders, the oldest first."""
        found = (self.home / FOLDER).glob(f"*/{ORDER}")
        return [path.parent.name for path in sorted(found, key=lambda path: path.stat().st_mtime)]

    def wanting(self, alone: bool) -> Iterator[str]:
        """The orders whose recogniser has not been made, or was made without comparing it with a
        model trained alone, which the owner wants by now.

        Those that were interrupted come last: one that takes long, and begins again after each
        interruption, would keep all others waiting.
        """
        for key in sorted(self.orders(), key=lambda key: (self.folder(key) / WORK).exists()):
            found = self.outcome(key)
            made = found is not None and found.state == "delivered" and found.alone >= alone
            if not made and (self.folder(key) / MODEL).is_file():
                yield key


def reserved(home: Path) -> int:
    """Bytes that orders take, with the recognisers that are made of them, or will be."""
    total = 0
    for path in (home / FOLDER).glob(f"*/{ORDER}"):
        try:
            total += int(parse_json((path.parent / ROOM).read_bytes()))
        except (OSError, ValueError, TypeError):
            total += sum(one.stat().st_size for one in path.parent.glob("*") if one.is_file())
    return total


def _broken(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"the final model in {path.parent} is broken: {error}",
        "remove the folder, and ask the operator for `fedsight resume` of the run, which sends it "
        "again",
    )
