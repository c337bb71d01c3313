"""Data sources, opened as a program does, or refused with a cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, sources


def opened(name: str, path: Path | None = None, **options: Any) -> Dataset:
    """The data set of a source with these settings."""
    given = options if path is None else {"path": path, **options}
    return sources.get(name)(**given).open()


def refused(name: str, path: Path | None = None, **options: Any) -> DataError:
    """The error of a source that does not open, which has a cure."""
    with pytest.raises(DataError) as caught:
        opened(name, path, **options)
    assert caught.value.cure
    return caught.value


def save(path: Path, pixels: np.ndarray) -> None:
    """Write pixels [h, w] or [h, w, c] as an image, in a folder that is made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
