"""Published weights by name: what `fedsight data get` fetches, and what they expect of an image."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from fedsight.data.fetch.cache import cache, fetched, is_here

Rename = Callable[[str], str | None]

_LAYERS = {  # of a block, in the package and in timm; the first stage has no expansion
    "separable": {"_depthwise_conv": "conv_dw", "_bn1": "bn1"}
    | {"_project_conv": "conv_pw", "_bn2": "bn2"},
    "inverted": {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
    | {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"},
}
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}


@dataclass(frozen=True)
class Published:
    """Weights of a classifier that a package carries; its name is that of the fetched data set.

    `mean` and `std` are those of the channels [3] of pixels in [0, 1] that it was trained on, and
    `size` the side of its images.
    """

    name: str
    model: str  # `model.name`
    architecture: str
    file: str
    sha256: str  # of the file
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    rename: Rename | None = None

    @property
    def is_here(self) -> bool:
        """Whether the file has been fetched, and is as it was published."""
        if not is_here(self.name):
            return False
        try:
            digest = hashlib.sha256((cache() / self.name / self.file).read_bytes()).hexdigest()
        except OSError:
            return False
        return digest.startswith(self.sha256)

    @property
    def path(self) -> Path:
        """The fetched file; DataError, saying how to fetch it, if it is not here."""
        return fetched(self.name) / self.file


def _efficientnet(repeats: tuple[int, ...]) -> Rename:
    """Names of the package efficientnet-lite-pytorch -> timm's; `repeats`: blocks by stage."""
    starts = [0, *accumulate(repeats)]

    def rename(name: str) -> str:
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            block, layer, tensor = int(match[1]), match[2], match[3]
            stage = max(index for index, start in enumerate(starts) if start <= block)
            layers = _LAYERS["inverted" if stage else "separable"]
            return f"blocks.{stage}.{block - starts[stage]}.{layers.get(layer, layer)}.{tensor}"
        layer, _, tensor = name.partition(".")
        return f"{ {**_ENDS, '_fc': 'classifier'}.get(layer, layer) }.{tensor}"

    return rename


_HALF = (0.5, 0.5, 0.5)
PUBLISHED = {
    one.name: one
    for one in (
        Published(
            "mobilenet-weights",
            "torchvision",
            "mobilenet_v2",
            "mobilenet_v2-b0353104.pth",
            "b0353104",
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
            224,
        ),
        *(
            Published(
                f"efficientnet-lite{number}",
                "timm",
                f"tf_efficientnet_lite{number}",
                f"efficientnet-lite{number}-{digits}.pth",
                digits,
                _HALF,
                _HALF,
                size,
                _efficientnet(repeats),
            )
            for number, digits, size, repeats in (
                (0, "57934424", 224, (1, 2, 2, 3, 3, 4, 1)),
                (1, "77cc7160", 240, (1, 3, 3, 4, 4, 5, 1)),
                (2, "9656183e", 260, (1, 3, 3, 4, 4, 5, 1)),
            )
        ),
    )
}


def published(weights: Path | None) -> Published | None:
    """The published weights that `model.weights` names; None if it is a file."""
    return PUBLISHED.get(str(weights))
