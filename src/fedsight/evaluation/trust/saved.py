"""What a run folder keeps so that answers can be trusted later: `trust.json` and the tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import StoreError
from fedsight.core.files import content, file_name, write_atomically
from fedsight.evaluation.trust import scaling
from fedsight.evaluation.trust.measure import Trusted
from fedsight.evaluation.trust.scaling import Scaling
from fedsight.evaluation.trust.sets import Sets
from fedsight.evaluation.trust.unlike import Distance, energy

FILE, TENSORS = "trust.json", "unlike.safetensors"
PLACE = "trust"  # the folder for the models that sites got, beside these


@dataclass(frozen=True)
class SavedTrust:
    """What a run knows of its model's answers: their scaling, the counts that sets are made of
    and for whom they hold, and above which score an image is unlike those of the training.

    `scaling` is what sets are made by, `probable` what probabilities are. `head` is the name of the
    layer whose input the distance is measured of; None: the score is the energy. `limit` is None
    where too few images were held out. `apart`: each site has a model of its own. `one_in`: all of
    this is one site's, and rests on one in so many of its test images.
    """

    scaling: Scaling
    probable: Scaling
    sets: Sets
    guarantee: str
    apart: bool
    head: str | None
    limit: float | None
    distance: Distance | None
    mixing: Tensor | None  # [features, d], what features are mixed by before that
    one_in: int | None = None

    def calibrated(self, logits: Tensor) -> Tensor:
        """Probabilities [n, classes] of logits [n, classes]."""
        return self.probable.shares(logits)

    def inside(self, limits: Tensor, logits: Tensor) -> Tensor:
        """Which classes the set of each image holds: bool [n, classes]."""
        return self.sets.inside(limits, self.scaling.shares(logits), logits)

    def unlike(self, logits: Tensor, features: Tensor | None) -> Tensor | None:
        """Which images are unlike those of the training: bool [n]; None: that is not known."""
        if self.limit is None:
            return None
        if self.distance is None or self.mixing is None:
            return energy(logits) > self.limit
        if features is None:
            return None
        return self.distance.scores(features.float() @ self.mixing) > self.limit


def keep(store: RunStore, trust: Trusted, model: Path) -> None:
    """Write what is known of the model in this file, if anything is."""
    if not trust.facts:
        return
    facts = {**trust.facts, "model": _sha256(model)}
    if trust.tensors:
        tensors = {name: value.contiguous() for name, value in trust.tensors.items()}
        write_atomically(store.folder / TENSORS, save(tensors))
        facts["tensors"] = _sha256(store.folder / TENSORS)
    store.write_json(FILE, facts)


def facts_of(store: RunStore, model: Path) -> dict[str, Any] | None:
    """What `trust.json` in a folder says of the model in this file; None: there is no `trust.json`.

    StoreError if it belongs to another model: its promise would not hold for the answers of this
    one, and nothing would show it.
    """
    path = store.folder / FILE
    if not path.is_file():
        return None
    facts = store.read_json(FILE)
    if facts.get("model") != _sha256(model):
        raise StoreError(
            f"{path} belongs to another model than {model}: what it promises does not hold for it",
            f"copy both files from the same folder, or remove {path} to do without sets",
        )
    return facts


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(content(path)).hexdigest()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}", "restore it from a copy") from error


def kept(store: RunStore, classes: int, model: Path) -> SavedTrust | None:
    """What a folder knows of the model of so many classes in this file; None: nothing. StoreError
    if a file is broken, or belongs to another model."""
    path, facts = store.folder / FILE, facts_of(store, model)
    if facts is None or "risk" in facts:  # see `saved_risk.py`
        return None
    try:
        scaled, ood = scaling.of(facts["scaling"], classes), facts["ood"]
        other = facts.get("calibrated")
        probable = scaled if other is None else scaling.of(other, classes)
        limit, head = ood.get("threshold"), facts["head"]
        if limit is not None and not math.isfinite(limit := float(limit)):
            raise ValueError(f"the threshold is {limit}")
        if not (head is None or isinstance(head, str)):
            raise TypeError("the name of the layer is not a text")
        distance = mixing = None
        if limit is not None and ood["score"] == "distance":
            tensors = _tensors(store.folder / TENSORS, facts["tensors"])
            if not all(bool(torch.isfinite(one).all()) for one in tensors.values()):
                raise ValueError("the tensors are not finite")
            distance = Distance(tensors["whitening"], tensors["means"])
            mixing = tensors["mixing"]
            d = len(distance.whitening)
            shapes = [tuple(tensors[name].shape) for name in ("mixing", "whitening", "means")]
            if shapes != [(len(mixing), d), (d, d), (len(distance.means), d)]:
                raise ValueError(f"the tensors have shapes {shapes}")
        return SavedTrust(
            scaled, probable, Sets.of(facts["sets"], classes), str(facts["sets"]["guarantee"]),
            bool(facts["apart"]), head, limit, distance, mixing, _one_in(facts),
        )  # fmt: skip
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is broken: {error!r:.200}", "run it again") from error
    except (OSError, SafetensorError, RuntimeError) as error:
        path = store.folder / TENSORS
        raise StoreError(f"{path} is broken: {error}", "run it again") from error


def _tensors(path: Path, sha256: object) -> dict[str, Tensor]:
    if _sha256(path) != sha256:
        cause = f"{path} is broken: it is not the file that {FILE} was written with"
        raise StoreError(cause, "restore both files from a copy")
    return load(content(path))


def _one_in(facts: Mapping[str, Any]) -> int | None:
    found = facts.get("one_in")
    if not (found is None or (type(found) is int and 0 < found < 1 << 16)):
        raise ValueError("the share of images that it rests on is not a whole number")
    return found


def place_of(folder: Path, site: str) -> Path:
    """Where it is kept for the model of a site, in the folder of all of these."""
    return folder / PLACE / file_name(site)
