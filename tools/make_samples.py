"""Make the built-in sample sets in src/fedsight/data/samples from the full published sets.

Fashion-MNIST comes from a folder with its four IDX files (.gz), for instance the one that the
Debian package `dataset-fashion-mnist` installs:

    python tools/make_samples.py fashion-mnist FOLDER

The textures come from the folder `skimage/data` of the package scikit-image 0.26.0:

    python tools/make_samples.py textures FOLDER

Of each class the first 1,000 training and the first 200 test images are kept, in their original
order. Textures are halved to 256 x 256. The same input always makes the same file, byte for byte.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedsight.data.sources.idx import read_idx

SAMPLES = Path(__file__).parents[1] / "src/fedsight/data/samples"


def first_of_each(labels: npt.NDArray[Any], count: int) -> npt.NDArray[np.int64]:
    """Indices of the first `count` samples of each class, ascending."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in np.unique(labels)]))


def fashion_mnist(folder: Path) -> Path:
    """Write `fashion_mnist_12k.npz` and return its path."""
    arrays = {}
    for part, stem, count in (("train", "train", 1000), ("test", "t10k", 200)):
        images = read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz")
        keep = first_of_each(labels, count)
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = images[keep], labels[keep]
    path = SAMPLES / "fashion_mnist_12k.npz"
    np.savez_compressed(path, **arrays)
    return path


def textures(folder: Path) -> Path:
    """Write `textures.npz` and return its path."""
    arrays = {}
    for name in ("brick", "grass", "gravel"):
        with Image.open(folder / f"{name}.png") as image:
            arrays[name] = np.asarray(image.convert("L").reduce(2))
    path = SAMPLES / "textures.npz"
    np.savez_compressed(path, **arrays)
    return path


MAKERS = {"fashion-mnist": fashion_mnist, "textures": textures}

if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in MAKERS:
        sys.exit(__doc__)
    print(MAKERS[sys.argv[1]](Path(sys.argv[2])))
