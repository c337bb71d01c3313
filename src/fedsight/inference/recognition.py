"""Recognises people: a run's network, a gallery's templates, and a threshold of similarity."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import DataError, ModelError, StoreError
from fedsight.data.images.decode import decode
from fedsight.inference.gallery import Gallery
from fedsight.inference.inputs import find_files
from fedsight.inference.saved import Saved, load
from fedsight.models.embedding import Embedding
from fedsight.tasks.faces import verification

BATCH = 64
FAR = 0.01  # the default false accept rate


@dataclass(frozen=True)
class Match:
    """How similar an image is to an enrolled person, and whether that is enough."""

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
                f"the model of {run} recognises classes, not people",
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
                "use the run that made them, or enrol everybody again in a new gallery",
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

    def threshold(self, gallery: Gallery, far: float | None = None) -> float:
        """The gallery's own, or else the run's for `far` (None: 0.01).

        StoreError if the gallery's is for another rate, or if the run measured none.
        """
        if gallery.threshold is not None:
            if far is not None and far != gallery.far:
                raise StoreError(
                    f"the gallery's threshold is for a false accept rate of {gallery.far}, "
                    f"not {far:g}",
                    f"leave --far out, or calibrate again: fedsight faces calibrate --far {far:g}",
                )
            return gallery.threshold
        far = FAR if far is None else far
        value = self._summary.get(f"threshold_at_{far:g}")
        if value is None:
            raise StoreError(
                f"the run has no threshold for a false accept rate of {far:g}",
                "give one of task.fars with --far, or calibrate one on people of your own: "
                "fedsight faces calibrate",
            )
        return float(value)

    def matches(self, gallery: Gallery, vector: Tensor, far: float | None = None) -> list[Match]:
        """All enrolled people by similarity of `vector` [d] to the mean of their templates, best
        first."""
        threshold = self.threshold(gallery, far)
        found = []
        for name, templates in gallery.people.items():
            score = float(vector @ mean(torch.tensor(templates)))
            found.append(Match(name, score, score >= threshold))
        return sorted(found, key=lambda match: -match.score)

    def volunteers(self, folder: Path) -> list[Tensor]:
        """Vectors [n, d] of each person in `folder` (person/image); DataError names a bad file."""
        if not folder.is_dir():
            raise DataError(f"there is no folder '{folder}'", "give one with a folder per person")
        people = sorted(child for child in folder.iterdir() if child.is_dir())
        return [self.vectors(find_files([person], "image")) for person in people]


def mean(templates: Tensor) -> Tensor:
    """The normalised mean [..., d] of templates [..., n, d], which images are compared with."""
    return torch.nn.functional.normalize(templates.mean(-2), dim=-1)


def calibrate(gallery: Gallery, people: Sequence[Tensor], far: float) -> int:
    """Choose the gallery's threshold for `far` on people [n, d] who are not in it.

    Comparisons follow the rule used for matching: each image against means of another person's
    images, as many as the gallery's people have templates. If their numbers of templates differ,
    each number is weighted by how often it occurs. Returns the number of comparisons, for the
    number of templates with the fewest.

    Raises StoreError if nobody is enrolled, and DataError if there are too few comparisons for such
    a rate.
    """
    occurs = Counter(len(templates) for templates in gallery.people.values())
    if not occurs:
        raise StoreError(
            "nobody is enrolled, and the threshold depends on how many templates people have",
            "enrol somebody first",
        )
    impostors, fewest = np.zeros(verification.BINS), 0
    for size, times in sorted(occurs.items()):
        counts = _impostors(people, size)
        # With one template, either image of a pair is compared with the other: one comparison.
        found = int(counts.sum()) // (2 if size == 1 else 1)
        if found * far < 1:
            raise DataError(
                f"there are {found} comparisons of one person's image with {size} of another's, "
                f"too few to estimate a false accept rate of {far:g}",
                "add people (one folder each), or images until each has as many as those "
                "enrolled, or ask for a higher rate with --far",
            )
        impostors += counts / counts.sum() * times
        fewest = min(found, fewest or found)
    both = np.stack([np.zeros_like(impostors), impostors])
    gallery.threshold, gallery.far = verification.threshold_at(both, far), far
    gallery.calibrated = sorted(occurs)
    return fewest


def _impostors(people: Sequence[Tensor], size: int) -> npt.NDArray[np.float64]:
    """A histogram of the scores of all images against means of `size` images of other people.

    A person's images are divided into as many groups of this size as possible.
    """
    counts = torch.zeros(verification.BINS, dtype=torch.float64)
    for person, vectors in enumerate(people):
        groups = len(vectors) // size
        if not groups:
            continue
        means = mean(vectors[: groups * size].unflatten(0, (groups, size)))
        for other, probes in enumerate(people):
            if other != person:
                counts += verification.count((probes @ means.T).flatten())
    return counts.numpy()


def enrol(gallery: Gallery, name: str, vectors: Tensor) -> None:
    """Add templates [n, d] for a person, who may be new."""
    if not name.strip():
        raise DataError("a person needs a name", "give one")
    gallery.people.setdefault(name, []).extend(vectors.tolist())


def _digest(network: Embedding, saved: Saved) -> str:
    """SHA-256 of what makes an image a vector: the body's weights and the preprocessing."""
    digest = hashlib.sha256(repr((saved.preprocess, dict(saved.model))).encode())
    for name, value in sorted(network.body.state_dict().items()):
        digest.update(name.encode() + np.ascontiguousarray(value.numpy()).tobytes())
    return digest.hexdigest()
