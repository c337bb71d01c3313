"""Finds images of 16 bits that use few of them: they would look nearly black beside others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fedsight.data.base import ArrayImages, Dataset

SHALLOW = 1 << 14  # of 65,536 values; cameras and scanners with 10 to 14 bits stay below
_AT_ONCE = 256


def shallow(opened: Dataset) -> tuple[str, ...]:
    """What to say about the sites (or, without sites, the images) whose 16-bit training images
    have no value of SHALLOW or more.

    Their scale is that of 16 bits, so all of them are dark, and nothing else would tell. Images
    that are not in memory, and DICOM files, whose window decides, are not looked at.
    """
    images = opened.train.images
    if not isinstance(images, ArrayImages) or images.pixels.dtype != torch.uint16:
        return ()
    if opened.preprocess.dicom is not None or not len(images):
        return ()
    top = np.concatenate(list(_highest(images)))
    sites = np.array(opened.train.sites if opened.train.sites is not None else [""] * len(top))
    notes = []
    for site in np.unique(sites[top >= 0]).tolist():
        highest = int(top[sites == site].max())
        if highest < SHALLOW:
            whose = f"the 16-bit images of site '{site}'" if site else "the 16-bit images"
            notes.append(
                f"{whose} have no value above {highest:,} of 65,535 ({highest.bit_length()} bits), "
                "so they are nearly black: save them with their full range, or set data.harmonise"
            )
    return tuple(notes)


def _highest(images: ArrayImages) -> Iterator[np.ndarray]:
    """The highest value of each image of 16 bits, -1 for one of 8 (which is kept times 257)."""
    for pixels in images.pixels.split(_AT_ONCE):
        values = pixels.flatten(1).to(torch.int32)
        deep = (values % 257 != 0).any(1)
        yield torch.where(deep, values.amax(1), -1).numpy()
