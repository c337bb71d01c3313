"""What a JPEG 2000 file has its decoder make room for, as its headers state it.

A decoder holds a few hundred bytes for each precinct and each code-block, and a few for each
packet. Files have some thousands of these; but one of a hundred bytes may say that each pixel is a
precinct, in thousands of layers, and a small picture in a JP2 file may hold a large codestream.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

# Precincts and code-blocks of a tile: the largest image has a million if they are of 16 x 16.
MAX_BLOCKS = 1 << 21
MAX_PACKETS = 1 << 26  # of a tile
MAX_TILES = 1 << 18  # of all components
_START, _BOXES = b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"
_SIZ, _COD, _COC, _SOT, _SOD = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93
# Of the main header (ITU-T T.800 and T.801, annex A). Behind any other, decoders look for the next
# of these, whatever length it states.
_OTHERS = b"\x50\x55\x57\x59\x5c\x5d\x5e\x5f\x60\x63\x64\x74\x75\x77\x78"
_KNOWN = {_SIZ, _COD, _COC, *(0xFF00 | low for low in _OTHERS)}
_PRF = 0xFF56  # the profile, which changes nothing about decoding
_MOST_LEVELS = 32


class UnknownSegmentError(ValueError):
    """A segment that decoders may read in two ways, or that changes the pixels in a way of which
    they know nothing; carries cause and cure."""


@dataclass(frozen=True)
class _Coding:
    """What a segment states: decompositions, layers (0: it does not), log2 of a code-block's sides,
    and of a precinct's at each resolution."""

    levels: int
    layers: int
    block: tuple[int, int]
    precincts: tuple[tuple[int, int], ...]


def check(data: bytes, pixels: int) -> None:
    """Raise DecompressionBombError for a JPEG 2000 file that has more of anything than an image of
    so many `pixels` needs, and ValueError for headers that readers do not agree on."""
    if not data.startswith((_START, _BOXES)):
        return
    try:
        _check(data, _codestream(data), pixels)
    except (struct.error, IndexError):
        raise ValueError("its headers end too early") from None


def _check(data: bytes, start: int, pixels: int) -> None:
    right, low, left, top, across, down, *shift, parts = struct.unpack_from(">8IH", data, start + 8)
    width, height = right - left, low - top
    if not (width > 0 and height > 0 and across and down and parts):
        raise ValueError("it has no pixels")
    if width * height > pixels:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")
    tiles = -(-(right - shift[0]) // across) * -(-(low - shift[1]) // down)
    if tiles * parts > MAX_TILES:
        raise Image.DecompressionBombError(
            f"a JPEG 2000 image of {tiles:,} tiles with {parts:,} components"
        )
    sides = min(across, width), min(down, height)
    codings = list(_codings(data, start, parts))
    layers = max((coding.layers for coding in codings), default=0)
    for coding in codings:
        blocks, packets = _room(coding, sides)
        if parts * blocks > MAX_BLOCKS:
            raise Image.DecompressionBombError(
                f"a JPEG 2000 image of {parts * blocks:,} precincts and code-blocks"
            )
        if parts * packets * layers > MAX_PACKETS:
            raise Image.DecompressionBombError(
                f"a JPEG 2000 image of {parts * packets * layers:,} packets"
            )


def _codestream(data: bytes) -> int:
    """Where the codestream begins; ValueError if there is none."""
    if data.startswith(_START):
        return 0
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1:
            head, (length,) = 16, struct.unpack_from(">Q", data, at + 8)
        if kind == b"jp2c" and data.startswith(_START, at + head):
            return at + head
        if length < head:
            break
        at += length
    raise ValueError("it has no codestream")


def _codings(data: bytes, start: int, parts: int) -> Iterator[_Coding]:
    """All that its headers state about how tiles are divided."""
    for kind, segment in _segments(data, start + 2):
        if kind in (_COD, _COC):
            yield _coding(segment, kind == _COD, 1 if parts <= 256 else 2)


def _segments(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """The segments of the main header, and of all tile-parts' headers."""
    kind, length = struct.unpack_from(">HH", data, at)
    while kind != _SOT:
        if kind < 0xFF00 or length < 2:
            raise ValueError("its headers are broken")
        words = struct.unpack_from(f">{length // 2}H", data, at + 2)
        # A decoder that does not know PRF finds its end by the next number that may be a marker.
        told = kind == _PRF and length % 2 == 0 and max(words) < 0xFF00
        if kind not in _KNOWN and not told:
            raise UnknownSegmentError(
                f"has an unknown segment, {kind:04X}, in the main header of its JPEG 2000 "
                "codestream, which cannot be decoded safely",
                "re-encode it without extensions (JPEG 2000 Part 1), or without compression",
            )
        yield kind, data[at + 4 : at + 2 + length]
        at += 2 + length
        kind, length = struct.unpack_from(">HH", data, at)
    while data[at : at + 2] == _SOT.to_bytes(2, "big"):
        begin, (whole,) = at, struct.unpack_from(">I", data, at + 6)
        at += 12
        while data[at : at + 2] != _SOD.to_bytes(2, "big"):
            kind, length = struct.unpack_from(">HH", data, at)
            if length < 2:
                raise ValueError("its headers are broken")
            yield kind, data[at + 4 : at + 2 + length]
            at += 2 + length
        if not whole:
            return  # the last one
        at = max(at + 2, begin + whole)


def _coding(segment: bytes, default: bool, width: int) -> _Coding:
    """`width`: the bytes of a component's number, in a segment of one component."""
    style, layers, at = segment[0], int.from_bytes(segment[2:4], "big"), 5
    if not default:
        style, layers, at = segment[width], 0, width + 1
    levels, x, y = segment[at : at + 3]
    if levels > _MOST_LEVELS:
        raise ValueError("it has too many resolutions")
    sides = segment[at + 5 : at + 6 + levels] if style & 1 else b"\xff" * (levels + 1)
    if len(sides) <= levels:
        raise ValueError("its headers are broken")
    precincts = tuple((side & 15, side >> 4) for side in sides)
    return _Coding(levels, layers, (x + 2, y + 2), precincts)


def _room(coding: _Coding, sides: tuple[int, int]) -> tuple[int, int]:
    """The most precincts and code-blocks of a component of a tile, and packets of a layer."""
    blocks = widest = 0
    for resolution, precinct in enumerate(coding.precincts):
        bands = 3 if resolution else 1
        whole = [(side >> coding.levels - resolution) + 1 for side in sides]
        there = _count(whole, precinct)
        halves = [side // 2 + 1 for side in whole] if resolution else whole
        block = [
            min(one, max(0, limit - bool(resolution)))
            for one, limit in zip(coding.block, precinct, strict=True)
        ]
        blocks += bands * (there + _count(halves, block))
        widest = max(widest, there)
    return blocks, widest * (coding.levels + 1)


def _count(sides: list[int], log: tuple[int, int] | list[int]) -> int:
    """At most so many rectangles with sides of powers of two cover one."""
    return ((sides[0] >> log[0]) + 2) * ((sides[1] >> log[1]) + 2)
