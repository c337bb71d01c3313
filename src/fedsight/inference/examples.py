"""Explanation by example: a site's own images that a model sees as most like the one asked about.

They are looked for where they are, and shown to whoever has them; nothing of it goes into a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fedsight.core.errors import DataError, ModelError
from fedsight.data.images.decode import decode
from fedsight.evaluation.explanations.overlays import captioned
from fedsight.evaluation.pictures import picture
from fedsight.evaluation.trust.answers import watched
from fedsight.inference.drawing import opened
from fedsight.inference.inputs import find_files
from fedsight.inference.saved import Saved
from fedsight.inference.simulated import simulated, site_number
from fedsight.models.embedding import Embedding
from fedsight.program.federation import Federation

TOGETHER = 64  # images that go through the network at once


@dataclass(frozen=True)
class Example:
    """An image of the site, its label ("" if that is not known), and how far its features are from
    those of the image asked about."""

    name: str
    label: str
    distance: float
    picture: Callable[[], Image.Image]

    def table(self) -> dict[str, Any]:
        """As plain values."""
        known = {"label": self.label} if self.label else {}
        return {"name": self.name, **known, "distance": self.distance}


@dataclass(frozen=True)
class Examples:
    """Images of one site with their features [n, d], to be compared with others."""

    saved: Saved
    features: Tensor
    entries: Sequence[tuple[str, str, Callable[[], Image.Image]]]  # name, label, picture

    def nearest(self, path: Path, count: int) -> list[Example]:
        """The `count` images whose features are nearest to those of the image in a file.

        DataError if it cannot be read."""
        x = self.saved.preprocess.normalise(decode(path, self.saved.preprocess)[None])
        apart = torch.cdist(features(self.saved, x), self.features)[0]
        order = apart.argsort(stable=True)[:count].tolist()
        found = [(*self.entries[at], float(apart[at])) for at in order]
        return [Example(name, label, far, shown) for name, label, shown, far in found]


def of_site(saved: Saved, run: Path, site: str | None) -> Examples:
    """The training images of a site of a simulation.

    Raises DataError if no site is named, there is none of this name, or the images are not here.
    """
    federation = simulated(run)
    _require_features(saved)
    names = [federation.partition.name(number) for number in range(len(federation.partition))]
    if site is None:
        raise DataError(
            "examples are images of one site, and none is named",
            f"name one with --at: {', '.join(names[:10])}",
        )
    return _of_data(saved, federation, site_number(federation, site))


def among(saved: Saved, folder: Path) -> Examples:
    """The images in a folder; DataError for one that cannot be read."""
    _require_features(saved)
    files = find_files([folder], "image")
    found = []
    for start in range(0, len(files), TOGETHER):
        pixels = [decode(path, saved.preprocess) for path in files[start : start + TOGETHER]]
        found.append(features(saved, saved.preprocess.normalise(torch.stack(pixels))))
    entries = [(str(path), "", partial(opened, path, saved.preprocess)) for path in files]
    return Examples(saved, torch.cat(found), entries)


def features(saved: Saved, x: Tensor) -> Tensor:
    """What the head sees [n, d] of normalised images [n, c, h, w]; of faces their vectors."""
    with torch.inference_mode():
        if isinstance(saved.module, Embedding):
            return saved.module.embed(x)
        with watched(_head(saved)) as seen:
            saved.module(x)
        return seen[-1].float()


def drawn(asked: Image.Image, found: Sequence[Example]) -> Image.Image:
    """The image, and beside it its examples, with their labels and distances."""
    captions = [f"{one.label} {one.distance:.2f}".strip() for one in found]
    pictures = [asked, *(one.picture() for one in found)]
    return captioned(list(zip(["", *captions], pictures, strict=True)))


def _of_data(saved: Saved, federation: Federation, site: int) -> Examples:
    data, classes = federation.client(site), federation.dataset.classes
    images, labels = data.part.images, data.labels().tolist()
    found = [
        features(saved, federation.batch(data, some).x)
        for some in torch.arange(len(data)).split(TOGETHER)
    ]
    entries = [
        (images.name(number), classes[label], lambda place=place: picture(data, place).image)
        for place, (number, label) in enumerate(zip(data.indices.tolist(), labels, strict=True))
    ]
    return Examples(saved, torch.cat(found), entries)


def _head(saved: Saved) -> nn.Linear | None:
    """The linear layer that the classes are told by; None if the head is anything else."""
    layers = {name.rpartition(".")[0] for name in saved.head}
    layer = saved.module.get_submodule(layers.pop()) if len(layers) == 1 else None
    return layer if isinstance(layer, nn.Linear) else None


def _require_features(saved: Saved) -> None:
    if not isinstance(saved.module, Embedding) and _head(saved) is None:
        raise ModelError(
            "the network's answers do not come from one vector of features, so no images can be "
            "compared with the one asked about",
            "leave out --examples, or use a run that classifies images or compares faces",
        )
