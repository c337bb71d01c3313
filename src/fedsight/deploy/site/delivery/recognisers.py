"""A site's own recognisers: `recognisers/RUN` of its folder, ready for `predict` and `export`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import StoreError
from fedsight.core.files import make_folder
from fedsight.data.base import Preprocess
from fedsight.deploy.site.delivery.received import ReceivedOrder
from fedsight.evaluation.trust.measure import Trusted
from fedsight.evaluation.trust.saved import keep
from fedsight.program.program import Program, Speed

FOLDER = "recognisers"
MAX_NAME = 40  # characters of a program's name in that of a folder


@dataclass(frozen=True)
class Recogniser:
    """What a recogniser consists of: its tensors by name, and how images become its input."""

    tensors: Mapping[str, Tensor]
    classes: tuple[str, ...]
    preprocess: Preprocess
    facts: Mapping[str, Any]  # how it was chosen, and how it compares
    trust: Trusted  # how far its answers can be trusted
    look: Mapping[str, Any] | None = None  # of this site's images; None: images need none


def place(home: Path, key: str, name: str) -> Path:
    """The folder of the recogniser of the order `key` for a program called `name`, which is the
    coordinator's choice. Two runs may have the same name: the whole key follows it, because a
    coordinator could choose a run whose key begins like an earlier one's."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:MAX_NAME]
    return home / FOLDER / f"{plain or 'run'}-{key}"


def write(folder: Path, program: Program, order: ReceivedOrder, made: Recogniser) -> None:
    """Write a recogniser, whole or not at all; StoreError if that fails.

    One of the same run that is there already is replaced; StoreError for one of another.
    """
    if folder.exists() and not _is_of(folder, order):
        raise StoreError(
            f"{folder} holds the recogniser of another run, or something else",
            "move it elsewhere, and the site tries again by itself",
        )
    partial, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    try:
        store = RunStore(partial)
        model = store.save_model(made.tensors)
        store.write_program(program, Speed())
        keep(store, made.trust, model)
        store.write_json(
            "run.json",
            {
                "name": program.name,
                "fingerprint": program.fingerprint,
                "id": order.run,
                "classes": list(made.classes),
                "preprocess": asdict(made.preprocess),
                "sites": [{"name": order.site, "look": made.look}],
                "recogniser": {"site": order.site, "rounds": order.round, **made.facts},
            },
        )
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.replace(old)
        partial.replace(folder)
    except (OSError, StoreError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        cure = "free some space: the site tries again by itself"
        if isinstance(error, StoreError):
            raise StoreError(error.cause, cure) from error
        why = error.strerror or error
        raise StoreError(f"cannot write {folder}: {why}", cure) from error
    shutil.rmtree(old, ignore_errors=True)


def _is_of(folder: Path, order: ReceivedOrder) -> bool:
    """Whether a folder holds the recogniser of this order's run."""
    try:
        facts = RunStore(folder).read_json("run.json")
        return (facts["id"], facts["fingerprint"]) == (order.run, order.fingerprint)
    except (StoreError, KeyError, TypeError):
        return False
