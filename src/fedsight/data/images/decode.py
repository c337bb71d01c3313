"""Decodes image files to the network's input, for both training and prediction."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.core.files import content, opened
from fedsight.data.base import Preprocess, scaled
from fedsight.data.duplicates.prints import SAMPLED, SEEN, View
from fedsight.data.images.dicom import Frame, is_dicom, read_dicom
from fedsight.data.images.fit import Box, Placement
from fedsight.data.images.pixels import Pixels, Upright, as_array, read_upright, seen_size
from fedsight.data.images.windowing import Reading

# bytes: a file's content; Frame: one of a DICOM file's images
Origin = str | os.PathLike[str] | bytes | Image.Image | Frame
AS_STORED = Reading("bits")  # a program's window must not decide what is a copy
_LUMA = np.array([299, 587, 114], dtype=np.uint32)  # ITU-R BT.601, in thousandths


def decode(path: Origin, preprocess: Preprocess, name: str | None = None) -> Tensor:
    """The image in a file (its bytes, or an opened Pillow image), float32 [c, h, w], 0 to 1.

    It is turned upright, put on black, resized by `preprocess.fit` (bilinear, antialiased) and
    rounded to the file's own depth (8 or 16 bits), so that a decoded image kept in memory and
    one read again are equal bit for bit. Of several frames or pages the first is used. Raises
    DataError with the path (or `name`) for a missing, corrupt, ambiguous or too large image.
    """
    return scaled(torch.from_numpy(raster(path, preprocess, name)))


def upright(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) of the upright image, from its header; DataError if it cannot be read."""
    try:
        with opened(Path(path)) as file:
            whole = is_dicom(file.read(132))
            file.seek(0)
            if not whole:
                return seen_size(file, str(path))
            data = file.read()
    except OSError as error:
        raise unreadable(str(path), error) from error
    height, width = read_dicom(data, str(path), Reading()).shape[:2]
    return width, height


def whole(path: Path, preprocess: Preprocess) -> Pixels:
    """The upright image in a file, uint8 or uint16 [h, w, c], not resized; may raise DataError."""
    return full_size(path, preprocess.dicom or Reading())


def raster(
    path: Origin, preprocess: Preprocess, name: str | None = None, thorough: bool = False
) -> npt.NDArray[Any]:
    """As `decode`, but before scaling to [0, 1]: uint8 or uint16 [c, h, w]. `thorough` also
    verifies checksums."""
    return fitted(_upright(path, preprocess.dicom or Reading(), name, thorough), preprocess)


def fitted(image: Upright, preprocess: Preprocess) -> npt.NDArray[Any]:
    """An upright image at the size and with the channels of the input: [c, h, w]."""
    found = _channels(_fit(image, preprocess), preprocess.channels)
    return np.array(found.transpose(2, 0, 1), order="C")  # Pillow lends read-only memory


def raster_and_view(
    path: Origin, preprocess: Preprocess, name: str | None = None, thorough: bool = False
) -> tuple[npt.NDArray[Any], View]:
    """As `raster`, and what is looked at to find copies, which `preprocess` does not change."""
    image = _upright(path, preprocess.dicom or Reading(), name, thorough)
    fitted = _channels(_fit(image, preprocess), preprocess.channels)
    whole = np.array(fitted.transpose(2, 0, 1), order="C")
    try:
        seen = image if preprocess.dicom is None else _upright(path, AS_STORED, name, False)
    except DataError:  # it can be shown in the program's window only
        return whole, View(*2 * [np.zeros((1, 1, 1), np.uint8)])
    return whole, _view(seen)


def _view(image: Upright) -> View:
    a = as_array(image)
    across, down = (-(-side // SAMPLED) for side in (a.shape[1], a.shape[0]))
    sample = a[::down, ::across]
    if (sample == sample[..., :1]).all():
        sample = sample[..., :1]  # grey, perhaps in a file for colours
    small = _resize(image, (SEEN, SEEN), (0.0, 0.0, float(a.shape[1]), float(a.shape[0])))
    return View(*(np.array(one.transpose(2, 0, 1), order="C") for one in (sample, small)))


def full_size(
    path: Origin, reading: Reading, name: str | None = None, thorough: bool = False
) -> Pixels:
    """The upright image, uint8 or uint16 [h, w, c], not resized; `reading` is for DICOM files.

    Raises DataError as `decode` does.
    """
    return as_array(_upright(path, reading, name, thorough))


def _upright(path: Origin, reading: Reading, name: str | None, thorough: bool) -> Upright:
    frame = None
    if isinstance(path, Frame):
        frame, path = path.number, path.path
    if isinstance(path, bytes):
        return _of_bytes(path, name or "(in memory)", reading, thorough)
    if isinstance(path, Image.Image):
        return read_upright(path, name or str(getattr(path, "filename", "")) or "(in memory)")
    name = name or os.fspath(path)
    try:
        data = content(Path(path))
    except OSError as error:
        raise unreadable(name, error) from error
    return _of_bytes(data, name, reading, thorough, frame)


def unreadable(name: str, error: OSError | ValueError) -> DataError:
    """What is wrong with a file that cannot be opened, or whose name cannot be one."""
    why = error.strerror if isinstance(error, OSError) else None
    return DataError(
        f"image '{name}' cannot be read: {why or error}",
        "correct the path, or restore the file and its permissions",
    )


def _of_bytes(
    data: bytes, name: str, reading: Reading, thorough: bool, frame: int | None = None
) -> Upright:
    if is_dicom(data):
        return read_dicom(data, name, reading, frame)
    return read_upright(data, name, thorough)


def _fit(image: Upright, preprocess: Preprocess) -> Pixels:
    """An upright image at the size of `preprocess`, by its rule: [h, w, c]."""
    size = image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
    placement = Placement.of(size, preprocess)
    left, top, right, bottom = placement.target
    resized = _resize(image, (right - left, bottom - top), placement.source)
    if resized.shape[:2] == (preprocess.height, preprocess.width):
        return resized
    canvas = np.zeros((preprocess.height, preprocess.width, resized.shape[2]), resized.dtype)
    canvas[top:bottom, left:right] = resized
    return canvas


def _resize(image: Upright, size: tuple[int, int], box: Box) -> Pixels:
    """The `box` (left, top, right, bottom) at `size` (w, h), bilinear, antialiased: [h, w, c]."""
    rule = Image.Resampling.BILINEAR
    if isinstance(image, Image.Image):
        same = image.size == size and box == (0, 0, *size)
        return as_array(image if same else image.resize(size, rule, box))
    if image.shape[1::-1] == size and box == (0, 0, *size):
        return image
    planes = [image[..., channel] for channel in range(image.shape[2])]
    if image.dtype == np.uint8:
        if len(planes) == 3:
            return _resize(Image.fromarray(np.ascontiguousarray(image)), size, box)
        return _resize(Image.fromarray(np.ascontiguousarray(planes[0])), size, box)
    deep = [Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32)) for plane in planes]
    values = np.stack([np.asarray(plane.resize(size, rule, box)) for plane in deep], axis=2)
    rounded: Pixels = np.rint(values).clip(0, 65535)
    return rounded.astype(np.uint16)


def _channels(a: Pixels, channels: int) -> Pixels:
    """Grey [h, w, 1] or colour [h, w, 3] to `channels`."""
    if a.shape[2] == channels:
        return a
    if channels == 3:
        return np.repeat(a, 3, axis=2)
    luma: Pixels = (a.astype(np.uint32) * _LUMA).sum(axis=2, keepdims=True)
    rounded: Pixels = (luma + 500) // 1000
    return rounded.astype(a.dtype)
