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
from fedsight.evaluation.trust.conformal import smallest
from fedsight.evaluation.trust.risk import level
from fedsight.inference.gallery import Gallery
from fedsight.inference.inputs import find_files
from fedsight.inference.saved import Saved, load
from fedsight.models.embedding import Embedding
from fedsight.tasks.covering.levels import Tally
from fedsight.tasks.covering.pairs import places, threshold
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
        """The gallery's own, or else the run's for `far` (None: 0.01), guaranteed if possible.

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
        known = self._guaranteed(gallery, far)
        if known is not None:
            return known
        value = self._summary.get(f"threshold_at_{far:g}")
        if value is None:
            raise StoreError(
                f"the run has no threshold for a false accept rate of {far:g}",
                "give one of task.fars with --far, or calibrate one on people of your own: "
                "fedsight faces calibrate",
            )
        return float(value)

    def guarantees(self, gallery: Gallery, far: float | None = None) -> bool:
        """Whether the rate of `threshold` is guaranteed: for strangers drawn like the people that
        the gallery's was chosen on, or that the run held out."""
        if gallery.threshold is not None:
            return gallery.guaranteed
        return self._guaranteed(gallery, FAR if far is None else far) is not None

    def _guaranteed(self, gallery: Gallery, far: float) -> float | None:
        """The run's guaranteed threshold; None where it has none, or people have several templates:
        it is one of pairs of images."""
        risk = self.saved.trust.risk
        if risk is None or any(len(one) != 1 for one in gallery.people.values()):
            return None
        try:
            return threshold(int(risk.levels(1 - far, self.saved.trust.site)["answer"][0]))
        except DataError:
            return None

    def matches(self, gallery: Gallery, vector: Tensor, far: float | None = None) -> list[Match]:
        """All enrolled people by similarity of `vector` [d] to the mean of their templates, best
        first."""
        least = self.threshold(gallery, far)
        found = []
        for name, templates in gallery.people.items():
            score = float(vector @ mean(torch.tensor(templates)))
            found.append(Match(name, score, score >= least))
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
    """Estimate the gallery's threshold for `far` on people [n, d] who are not in it.

    With few people it may let twice as many pass: see `guarantee`. Comparisons follow the rule used
    for matching: each image against means of another person's images, as many as the gallery's
    people have templates. If their numbers of templates differ,
    each number is weighted by how often it occurs. Returns the number of comparisons, for the
    number of templates with the fewest.

    Raises StoreError if nobody is enrolled, and DataError if there are too few comparisons for such
    a rate.
    """
    occurs = Counter(len(templates) for templates in gallery.people.values())
    if not occurs:
        raise _nobody()
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
    gallery.calibrated, gallery.guaranteed = sorted(occurs), False
    return fewest


def guarantee(gallery: Gallery, people: Sequence[Tensor], far: float) -> int:
    """Choose the gallery's threshold so that a stranger drawn like these people [n, d] passes for
    the people in it in at most a share `far` of comparisons, on average over all draws.

    Conformal risk control (Angelopoulos et al. 2022, equation 4), in which the people are the
    units: the loss of one is the share of comparisons of his images with those who are enrolled
    that are accepted. It holds for the gallery as it is, whatever the model. Returns the number of
    comparisons.

    Raises StoreError if nobody is enrolled, and DataError with the smallest number of people that
    is enough.
    """
    if not gallery.people:
        raise _nobody()
    enrolled = torch.stack([mean(torch.tensor(one)) for one in gallery.people.values()])
    tally = Tally.nothing(1)
    for vectors in people:
        tally.add(0, places(vectors @ enrolled.T).flatten())
    shown = int(tally.units[0])
    found = level(shown, tally.losses[0], 1 - far)
    if found is None:
        raise DataError(
            f"{shown} people are too few to guarantee a false accept rate of {far:g}",
            f"give at least {smallest(1 - far)}, one folder each; or ask for a higher rate with "
            "--far, or for an estimate, which may let more pass, with --estimate",
        )
    gallery.threshold, gallery.far = threshold(found), far
    gallery.calibrated = sorted({len(templates) for templates in gallery.people.values()})
    gallery.guaranteed = True
    return sum(len(vectors) for vectors in people) * len(enrolled)


def _nobody() -> StoreError:
    return StoreError(
        "nobody is enrolled, and the threshold depends on how many templates people have",
        "enrol somebody first",
    )


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
    gallery.guaranteed = False  # the rate was that of those who were enrolled before


def _digest(network: Embedding, saved: Saved) -> str:
    """SHA-256 of what makes an image a vector: the body's weights and the preprocessing."""
    digest = hashlib.sha256(repr((saved.preprocess, dict(saved.model))).encode())
    for name, value in sorted(network.body.state_dict().items()):
        digest.update(name.encode() + np.ascontiguousarray(value.numpy()).tobytes())
    return digest.hexdigest()
