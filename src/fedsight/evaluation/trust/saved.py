"""What a run folder keeps so that answers can be trusted later: `trust.json` and the tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import StoreError
from fedsight.core.files import content, write_atomically
from fedsight.evaluation.trust import scaling
from fedsight.evaluation.trust.measure import Trusted
from fedsight.evaluation.trust.scaling import Scaling
from fedsight.evaluation.trust.sets import Sets
from fedsight.evaluation.trust.unlike import Distance, energy

FILE, TENSORS = "trust.json", "unlike.safetensors"


@dataclass(frozen=True)
class SavedTrust:
    """What a run knows of its model's answers: their scaling, the counts that sets are made of
    and for whom they hold, and above which score an image is unlike those of the training.

    `head` is the name of the layer whose input the distance is measured of; None: the score is the
    energy. `limit` is None where too few images were held out. `apart`: each site has a model of
    its own.
    """

    scaling: Scaling
    sets: Sets
    guarantee: str
    apart: bool
    head: str | None
    limit: float | None
    distance: Distance | None
    mixing: Tensor | None  # [features, d], what features are mixed by before that

    def calibrated(self, logits: Tensor) -> Tensor:
        """Probabilities [n, classes] of logits [n, classes]."""
        return self.scaling.shares(logits)

    def unlike(self, logits: Tensor, features: Tensor | None) -> Tensor | None:
        """Which images are unlike those of the training: bool [n]; None: that is not known."""
        if self.limit is None:
            return None
        if self.distance is None or self.mixing is None:
            return energy(logits) > self.limit
        if features is None:
            return None
        return self.distance.scores(features.float() @ self.mixing) > self.limit


def keep(store: RunStore, trust: Trusted) -> None:
    """Write what is known, if anything is."""
    if not trust.facts:
        return
    if trust.tensors:
        tensors = {name: value.contiguous() for name, value in trust.tensors.items()}
        write_atomically(store.folder / TENSORS, save(tensors))
    store.write_json(FILE, trust.facts)


def kept(store: RunStore, classes: int) -> SavedTrust | None:
    """What the run folder knows of a model of so many classes; None: nothing. StoreError if a file
    is broken."""
    path = store.folder / FILE
    if not path.is_file():
        return None
    facts = store.read_json(FILE)
    if "risk" in facts:  # see `saved_risk.py`
        return None
    try:
        scaled, ood = scaling.of(facts["scaling"], classes), facts["ood"]
        limit, head = ood.get("threshold"), facts["head"]
        if limit is not None and not math.isfinite(limit := float(limit)):
            raise ValueError(f"the threshold is {limit}")
        if not (head is None or isinstance(head, str)):
            raise TypeError("the name of the layer is not a text")
        distance = mixing = None
        if limit is not None and ood["score"] == "distance":
            tensors = load(content(store.folder / TENSORS))
            if not all(bool(torch.isfinite(one).all()) for one in tensors.values()):
                raise ValueError("the tensors are not finite")
            distance = Distance(tensors["whitening"], tensors["means"])
            mixing = tensors["mixing"]
            d = len(distance.whitening)
            shapes = [tuple(tensors[name].shape) for name in ("mixing", "whitening", "means")]
            if shapes != [(len(mixing), d), (d, d), (len(distance.means), d)]:
                raise ValueError(f"the tensors have shapes {shapes}")
        return SavedTrust(
            scaled, Sets.of(facts["sets"], classes), str(facts["sets"]["guarantee"]),
            bool(facts["apart"]), head, limit, distance, mixing,
        )  # fmt: skip
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is broken: {error!r:.200}", "run it again") from error
    except (OSError, SafetensorError, RuntimeError) as error:
        path = store.folder / TENSORS
        raise StoreError(f"{path} is broken: {error}", "run it again") from error
