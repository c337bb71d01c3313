"""Who is on an image: a run's network, a gallery's templates, and a threshold between them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsight.core.errors import DataError, ModelError, StoreError
from fedsight.data.decode import decode
from fedsight.models.embedding import Embedding
from fedsight.run.ask import find_images
from fedsight.run.gallery import Gallery
from fedsight.run.saved import Saved, load
from fedsight.run.store import RunStore
from fedsight.tasks import verification

BATCH = 64


@dataclass(frozen=True)
class Match:
    """How near an image is to an enrolled person, and whether that is near enough."""

    name: str
    score: float  # cosine, -1 to 1
    accepted: bool

    def table(self) -> dict[str, Any]:
        """As plain values."""
        return {"name": self.name, "score": self.score, "accepted": self.accepted}


class Recogniser:
    """A finished run of the task `faces`."""

    def __init__(self, run: Path, site: str | None = None) -> None:
        """Raises ModelError if the run's network gives no vectors."""
        self.saved: Saved = load(run, site)
        if not isinstance(self.saved.module, Embedding):
            raise ModelError(
                f"the model of {run} tells classes apart, not people",
                "train one for faces: fedsight run --example faces",
            )
        self._network = self.saved.module
        self._summary = RunStore(run).read_json("summary.json")
        self.digest = _digest(self._network, self.saved)

    def open(self, gallery: Gallery) -> Gallery:
        """The gallery, if its templates are this model's; StoreError otherwise."""
        if gallery.model != self.digest:
            raise StoreError(
                "the gallery's templates were made by another model: they cannot be compared",
                "use the run that they were made with, or enrol everybody anew in a new gallery",
            )
        return gallery

    def vectors(self, files: Sequence[Path]) -> Tensor:
        """Unit vectors [n, d] of image files; DataError names one that cannot be read."""
        found = []
        for start in range(0, len(files), BATCH):
            pixels = [decode(path, self.saved.preprocess) for path in files[start : start + BATCH]]
            with torch.inference_mode():
                x = self.saved.preprocess.normalise(torch.stack(pixels))
                found.append(self._network.embed(x))
        return torch.cat(found)

    def threshold(self, gallery: Gallery, far: float) -> float:
        """The gallery's own, or the run's for `far`; StoreError if the run measured none."""
        if gallery.threshold is not None:
            return gallery.threshold
        value = self._summary.get(f"threshold_at_{far:g}")
        if value is None:
            raise StoreError(
                f"the run has no threshold for a false accept rate of {far:g}",
                "name one of task.fars with --far, or choose one on people of your own: "
                "fedsight faces calibrate",
            )
        return float(value)

    def matches(self, gallery: Gallery, vector: Tensor, far: float) -> list[Match]:
        """Everybody enrolled, the nearest first: `vector` [d] against the mean of templates."""
        threshold = self.threshold(gallery, far)
        found = []
        for name, templates in gallery.people.items():
            mean = torch.tensor(templates).mean(0)
            score = float(vector @ torch.nn.functional.normalize(mean, dim=0))
            found.append(Match(name, score, score >= threshold))
        return sorted(found, key=lambda match: -match.score)

    def calibrate(self, folder: Path, far: float) -> tuple[float, int]:
        """(threshold for `far`, impostor pairs it is from) on people of one's own: person/image.

        DataError when there are too few pairs of two people to tell such a rate.
        """
        people = (
            sorted(child for child in folder.iterdir() if child.is_dir())
            if (folder.is_dir())
            else []
        )
        files = [find_images([person]) for person in people]
        names = torch.repeat_interleave(torch.tensor([len(own) for own in files]))
        impostors = len(names) ** 2 - sum(len(own) ** 2 for own in files)
        if impostors // 2 * far < 1:
            raise DataError(
                f"'{folder}' has {impostors // 2} pairs of two people: a false accept rate of "
                f"{far:g} cannot be told from them",
                "add people (a folder each) or images, or ask for a higher rate with --far",
            )
        vectors = self.vectors([file for own in files for file in own])
        counts = verification.verify(vectors, names)["pairs"].total.sum(axis=0)
        return verification.threshold_at(counts, far), impostors // 2


def enrol(gallery: Gallery, name: str, vectors: Tensor) -> None:
    """Add templates [n, d] to a person's, who is new unless enrolled."""
    if not name.strip():
        raise DataError("a person needs a name", "give one")
    gallery.people.setdefault(name, []).extend(vectors.tolist())


def _digest(network: Embedding, saved: Saved) -> str:
    """SHA-256 over what turns an image into a vector: the body's weights and the preprocessing."""
    digest = hashlib.sha256(repr((saved.preprocess, dict(saved.model))).encode())
    for name, value in sorted(network.body.state_dict().items()):
        digest.update(name.encode() + np.ascontiguousarray(value.numpy()).tobytes())
    return digest.hexdigest()
