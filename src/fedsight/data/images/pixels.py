"""Image files as arrays: upright, at full bit depth, transparency blended onto black."""

from __future__ import annotations

import io
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from fedsight.core.errors import DataError
from fedsight.data.images import formats, heif, jpeg2000, tiff

Pixels = npt.NDArray[Any]  # uint8 or uint16 [h, w, c], c = 1 (grey) or 3 (colour)
Upright = Image.Image | Pixels  # as Pillow's image, with mode L or RGB

MAX_PIXELS = 89_478_485  # Pillow's own limit: 1/4 GiB of colour
MAX_SCANS = 100  # of a JPEG; usual ones have ten or so
_BLOCK = 1 << 20  # values that are computed with at a time, in 32 bits
_HEAD = 64  # bytes of a file that tell its format
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF; those that swap width and height
# Of a segment of a JPEG, between or after coded values. Those below are no segments to a decoder,
# which goes on with what follows, and neither are RST0 to RST7 (T.81, table B.1).
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_TURNS = {  # what undoes an orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LOW = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}

warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def read_pixels(data: bytes | Image.Image, name: str, thorough: bool = False) -> Pixels:
    """The first frame of an image file's bytes (or of an opened image) as upright pixels.

    `thorough` also compares a PNG's checksums. Raises DataError naming `name` for a broken, a too
    large or an ambiguous image.
    """
    return as_array(read_upright(data, name, thorough))


def read_upright(data: bytes | Image.Image, name: str, thorough: bool = False) -> Upright:
    """As `read_pixels`, but 8-bit grey and colour stay Pillow's image, which saves copies."""
    with _named(name):
        if thorough and isinstance(data, bytes) and data.startswith(b"\x89PNG"):
            with Image.open(io.BytesIO(data), formats=("PNG",)) as png:
                png.verify()
        image = _open(data)
        _refuse_bomb(image, data)
        if _is_deep_colour(image):
            return _on_black(_upright(_deep_colour(image, data), _orientation(image)))
        image.load()
        if image.mode in ("L", "RGB") and "transparency" not in image.info:
            turn = _TURNS.get(_orientation(image))
            return image if turn is None else image.transpose(turn)
        return _on_black(_upright(_pixels(image), _orientation(image)))


def as_array(image: Upright) -> Pixels:
    """[h, w, c] of what `read_upright` gives; Pillow's memory is lent, and read-only."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


@dataclass(frozen=True)
class Stored:
    """An image file's values as they are stored: a palette's numbers stay numbers."""

    values: Pixels  # upright, [h, w, c]; bool becomes uint8
    mode: str  # Pillow's mode: 1, L, P, RGB
    raw: str  # how Pillow unpacks the file's values
    cut: bool  # whether it has 16-bit colours, of which Pillow keeps 8
    lossy: bool  # whether the compression changes values
    palette: npt.NDArray[np.uint8] | None  # [colours, 3]


def read_stored(data: bytes, name: str) -> Stored:
    """The first frame of an image file's bytes, not converted; DataError as `read_pixels`."""
    with _named(name), _open(data) as image:
        _refuse_bomb(image, data)
        tiles: Any = getattr(image, "tile", ())
        raw = _rawmode(tiles[0]) if tiles and tiles[0].args else ""
        cut = _is_deep_colour(image)
        kind, compression = str(image.format), str(image.info.get("compression", ""))
        lossless = kind in ("PNG", "TIFF", "BMP", "PPM", "GIF") or b"VP8L" in data
        image.load()
        values = np.asarray(image)
        values = values.astype(np.uint8) if values.dtype == bool else values
        colours = image.getpalette("RGB") if image.mode in ("P", "PA") else None
        return Stored(
            _upright(values if values.ndim == 3 else values[..., None], _orientation(image)),
            image.mode,
            raw,
            cut,
            not lossless or compression in ("jpeg", "webp"),
            None if colours is None else np.array(colours, np.uint8).reshape(-1, 3),
        )


def seen_size(file: BinaryIO, name: str) -> tuple[int, int]:
    """(width, height) of the upright image in a file, from its header; may raise DataError."""
    with _named(name), _opened(file) as image:
        width, height = image.size
        # Pillow gives TIFF upright.
        turned = image.format != "TIFF" and _orientation(image) in _TURNED
        return (height, width) if turned else (width, height)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turns what Pillow raises into a DataError that names the image."""
    try:
        yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"image '{name}' is too large to be opened safely: {error}",
            f"cut or shrink it to at most {MAX_PIXELS:,} pixels",
        ) from error
    except (DataError, MemoryError):
        raise
    except (_UnclearError, jpeg2000.UnknownSegmentError) as error:
        raise DataError(f"image '{name}' {error.args[0]}", error.args[1]) from error
    except Exception as error:  # Pillow's decoders raise nearly every kind on broken files
        raise DataError(
            f"image '{name}' is corrupt, truncated, or in a format that is not supported: {error}",
            "replace or remove it, or set data.corrupt = 'skip' to leave such images out",
        ) from error


def _refuse_bomb(image: Image.Image, data: bytes | Image.Image) -> None:
    """Refuse what takes more memory or time than an image of MAX_PIXELS pixels.

    A TIFF's tile is decoded whole, however small the image is. Each scan of a progressive JPEG goes
    over all its pixels again, and may have a few bytes. A JPEG 2000 image may be divided into as
    many parts as it has pixels, or more.
    """
    tags: Any = getattr(image, "tag_v2", {})
    sides = [image.size, [tags.get(tag, 0) for tag in tiff.SIDES]]
    if image.format == "TIFF" and isinstance(data, bytes):
        sides.append(tiff.tile(data, tags.offset))
    for width, height in sides:
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{width} x {height} pixels")
    if isinstance(data, bytes):
        refuse_parts(data)


def refuse_parts(data: bytes) -> None:
    """Raise DecompressionBombError for a JPEG or JPEG 2000 image that would take too long or too
    much memory, apart from its pixels, and ValueError for one whose headers do not tell."""
    if data.startswith(b"\xff\xd8") and _scans(data) > MAX_SCANS:
        raise Image.DecompressionBombError(f"a JPEG with more than {MAX_SCANS} scans")
    jpeg2000.check(data, MAX_PIXELS)


def _scans(data: bytes) -> int:
    """The scans of a JPEG (ITU-T T.81, annex B), without those of thumbnails in it."""
    if data.count(b"\xff\xda") <= MAX_SCANS:  # nearly always
        return 0
    at = count = 0
    while (found := _MARKER.search(data, at)) and found[0] != b"\xff\xd9":
        count += found[0] == b"\xff\xda"
        at = found.end()
        if found[0] != b"\xff\xd8":
            at += int.from_bytes(data[at : at + 2], "big")
    return count


class _UnclearError(Exception):
    """The values of an image are ambiguous; carries cause and cure."""


def _open(data: bytes | Image.Image) -> Image.Image:
    return _opened(io.BytesIO(data)) if isinstance(data, bytes) else data


def _opened(file: BinaryIO) -> Image.Image:
    """An image in any of the formats that are read; its pixels are not decoded yet."""
    head = file.read(_HEAD)
    file.seek(0)
    if formats.is_heif(head) and formats.has_heif():  # opening copies what heif counts
        heif.check(file.read(), MAX_PIXELS)
        file.seek(0)
    tiff.check(file)
    try:
        return Image.open(file, formats=formats.candidates(head))
    except UnidentifiedImageError:
        if found := formats.foreign(head):
            cure = f"{found[1]}, or set data.corrupt = 'skip' to leave such images out"
            raise _UnclearError(f"is {found[0]}", cure) from None
        raise ValueError("its content is that of no image format that is read") from None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, of a loaded image (Pillow turns TIFF itself when it loads it)."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata around intact pixels: leave the pixels as they are
        return 1


def _upright(a: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation of [h, w, c]."""
    if orientation in _TURNED:
        a = a.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        a = a[:, ::-1]
    if orientation in (3, 4, 7, 8):
        a = a[::-1]
    return a


def _on_black(a: Pixels) -> Pixels:
    """[h, w, c] with c = 1 to 4 -> without the alpha channel (c = 2 or 4), blended onto black."""
    if a.shape[2] in (1, 3):
        return a
    full = int(np.iinfo(a.dtype).max)
    blended = np.empty((*a.shape[:2], a.shape[2] - 1), a.dtype)
    rows = max(1, _BLOCK // (a.shape[1] * a.shape[2]))
    for row in range(0, len(a), rows):
        wide = a[row : row + rows].astype(np.uint32)  # holds 65535 * 65535 + 32767
        colour = wide[..., :-1]
        colour *= wide[..., -1:]
        blended[row : row + rows] = _divided(colour, full)
    return blended


def _divided(products: npt.NDArray[np.uint32], by: int) -> npt.NDArray[np.uint32]:
    """The quotients, rounded, in place of the products."""
    products += np.uint32(by // 2)
    products //= np.uint32(by)
    return products


def _pixels(image: Image.Image) -> Pixels:
    """A loaded image in any of Pillow's modes -> uint8 or uint16 [h, w, c]."""
    image.load()
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    if image.mode == "I":
        return _integers(np.asarray(image))[..., None]
    if image.mode == "F":
        return _floats(np.asarray(image))[..., None]
    if image.mode in ("PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")  # palettes, CMYK, YCbCr
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def _integers(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Pillow's 32-bit integers (16-bit PGM comes so too) -> uint16."""
    if values.min() < 0 or values.max() > 65535:
        raise _UnclearError(
            f"has integers from {values.min()} to {values.max()}: no known scale",
            "save it with 8 or 16 bits per channel",
        )
    return values.astype(np.uint16)


def _floats(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Floating-point pixels from 0 to 1 -> uint16."""
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise _UnclearError(
            "has floating-point values that are not all between 0 and 1",
            "scale it to 0 to 1, or save it with 8 or 16 bits per channel",
        )
    return np.rint(values * 65535.0).astype(np.uint16)


def _rawmode(tile: Any) -> str:
    args = tile.args
    return args if isinstance(args, str) else str(args[0])


def _is_deep_colour(image: Any) -> bool:
    """Whether the file has 16-bit colours, which Pillow would cut down to 8."""
    if image.format == "PPM" and image.mode == "RGB":
        return any(tile[0].startswith("ppm") and tile.args[-1] > 255 for tile in image.tile)
    multi = image.mode not in ("I", "F") and not image.mode.startswith("I;16")
    return multi and any(";16" in _rawmode(tile) for tile in getattr(image, "tile", ()))


def _deep_colour(image: Any, data: bytes | Image.Image) -> Pixels:
    """16-bit RGB or RGBA [h, w, c]: Pillow keeps the high bytes; asked for the other byte order
    in a second reading, it keeps the low ones."""
    if isinstance(data, bytes) and image.format == "PPM" and image.tile[0][0] == "ppm":
        offset, top = image.tile[0].offset, image.tile[0].args[-1]
        values = np.frombuffer(data, ">u2", image.width * image.height * 3, offset)
        deep = np.empty(values.size, np.uint16)
        for start in range(0, values.size, _BLOCK):
            wide = values[start : start + _BLOCK].astype(np.uint32)
            wide *= np.uint32(65535)
            deep[start : start + _BLOCK] = np.minimum(_divided(wide, top), 65535)
        return deep.reshape(image.height, image.width, 3)
    found = [re.fullmatch(r"(RGB[AX]?;16)([LBN])", _rawmode(tile)) for tile in image.tile]
    if not isinstance(data, bytes) or not all(found):
        raise _UnclearError(
            f"has 16 bits per channel in an unsupported layout ({_rawmode(image.tile[0])})",
            "save it as 16-bit RGB or RGBA PNG, or with 8 bits per channel",
        )
    low: Any = _open(data)
    low.tile = [
        tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))
        for tile, match in zip(image.tile, found, strict=True)
        if match and (mode := match[1] + _LOW[match[2]])
    ]
    high = _pixels(image).astype(np.uint16)
    high <<= np.uint16(8)
    high |= _pixels(low)
    return high
