"""The image formats that are read, those that need an extra, and what other content is."""

from __future__ import annotations

import os
from importlib.util import find_spec

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

# Formats that start another program (EPS) or that are ambiguous are not opened.
_ALWAYS = tuple(
    plugin.format
    for plugin in (
        PngImagePlugin.PngImageFile,
        JpegImagePlugin.JpegImageFile,
        TiffImagePlugin.TiffImageFile,
        BmpImagePlugin.BmpImageFile,
        WebPImagePlugin.WebPImageFile,
        PpmImagePlugin.PpmImageFile,
        GifImagePlugin.GifImageFile,
    )
)
_AS_BUILT = (  # that a Pillow built from source may lack
    (AvifImagePlugin.AvifImageFile.format, "avif"),
    (Jpeg2KImagePlugin.Jpeg2KImageFile.format, "jpg_2000"),
)
FORMATS = (*_ALWAYS, *(kind for kind, feature in _AS_BUILT if features.check(feature)))
SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dib", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".gif"}
    | {".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
)
HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
EXTRA = "pip install 'fedsight[heif]'"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_MIXED_BRANDS = (b"mif1", b"msf1")  # HEIF or AVIF: the brands that follow say
_CONVERT = "convert it to PNG or TIFF"
_OTHERS = (  # by the first bytes
    (b"\xff\x0a", "a JPEG XL image, which is not read", _CONVERT),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image, which is not read", _CONVERT),
    (b"version https://git-lfs", "a Git LFS pointer, not the image", "run `git lfs pull`"),
    (b"<!doctype html", "a web page, not an image", "download the image again"),
    (b"<html", "a web page, not an image", "download the image again"),
    (b"%pdf", "a PDF document, not an image", _CONVERT),
    (b"8bps", "a Photoshop file, which is not read", _CONVERT),
    (b"pk\x03\x04", "a ZIP archive, not an image", "extract it"),
)
_HEAD = 64  # bytes that tell the content


def has_heif() -> bool:
    """Whether HEIC photos can be read here."""
    return find_spec("pillow_heif") is not None


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a file is taken for an image that is read here, by its suffix."""
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 - a Path for each file is slow
    return suffix in SUFFIXES or (suffix in HEIF_SUFFIXES and has_heif())


def candidates(head: bytes) -> tuple[str, ...]:
    """The formats, by Pillow's names, that a file with these first bytes may have."""
    if not is_heif(head) or not has_heif():
        return FORMATS
    if "HEIF" not in Image.OPEN:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return ("HEIF",)


def foreign(head: bytes) -> tuple[str, str] | None:
    """What a file is that is not read here, and the cure; None where its first bytes do not say."""
    if not head:
        return "empty (0 bytes)", "restore or remove it"
    if is_heif(head) and not has_heif():
        return "a HEIC photo, and pillow-heif, which reads these, is not installed", EXTRA
    if head[4:8] == b"ftyp" and b"avi" in head[8:_HEAD] and "AVIF" not in FORMATS:
        return "an AVIF image, which the installed Pillow cannot read", "pip install -U pillow"
    low = head[:_HEAD].lstrip().lower()
    for magic, what, cure in _OTHERS:
        if low.startswith(magic.lower()):
            return what, cure
    return None


def is_heif(head: bytes) -> bool:
    """Whether a file with these first bytes is HEIC or HEIF, and not AVIF."""
    if head[4:8] != b"ftyp":
        return False
    if head[8:12] in _HEIF_BRANDS:
        return True
    size = min(int.from_bytes(head[:4], "big"), _HEAD)
    brands = [head[at : at + 4] for at in range(16, size - 3, 4)]
    return head[8:12] in _MIXED_BRANDS and not any(one.startswith(b"avi") for one in brands)
