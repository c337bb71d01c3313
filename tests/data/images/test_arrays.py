"""Built-in images at another size: the pixels that a file of them would give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedsight.data.images.decode import decode
from fedsight.data.sources.samples import FashionMnist12k


@pytest.mark.parametrize(("size", "fit"), [(96, "stretch"), ((20, 40), "pad"), (14, "crop")])
def test_a_scaled_image_equals_its_file(tmp_path: Path, size: object, fit: str) -> None:
    plain = FashionMnist12k().open()
    found = FashionMnist12k(size=size, channels=3, fit=fit).open()
    assert found.preprocess.mean == (0.286,) * 3
    chosen = torch.tensor([5, 11_3, 9_999])
    for index, image in zip(chosen, found.train.images.read(chosen), strict=True):
        pixels = (plain.train.images.read(index[None])[0, 0] * 255).round().to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "one.png")
        assert torch.equal(decode(tmp_path / "one.png", found.preprocess), image)
    np.testing.assert_array_equal(found.train.labels, plain.train.labels)
    assert found.train.images.name(3) == plain.train.images.name(3)


def test_images_keep_their_own_size_by_default() -> None:
    found = FashionMnist12k().open()
    assert (found.preprocess.channels, found.preprocess.height) == (1, 28)
