"""What a TIFF states in its tags, before it is opened and before it is decoded.

Pillow makes an object of every strip, and of every number in some tags, when it opens a file, and
libtiff decodes tiles whole. Both read the tags themselves, and differ about some that no program
writes: one that is there twice, or a number of eight bytes with a sign, which Pillow leaves out. So
tags on which decoding depends must be there once, with numbers that both know (Adobe, TIFF 6.0).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image

SIDES = (322, 323)  # width and height of a tile
MAX_NUMBERS = 1 << 18  # of strips or tiles of an image, for example; usual ones have thousands
# size, bits, compression, colours, samples, strips, planes, tiles, and where these begin and end
_DECODED = {*range(256, 260), 262, 273, *range(277, 280), 284, *range(322, 326)}
# What Pillow makes a number each of when it opens a file, and not one piece of text or data: sizes,
# bits, where strips and tiles begin, resolutions, the table of colours, samples, and so on.
_COUNTED = {256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 282, 283, 284, 296, 317, 320}
_COUNTED |= {322, 323, 324, 325, 338, 339, 530, 532}
_NUMBERS = {3: "H", 4: "L", 16: "Q"}  # by their type
_STARTS = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")  # that Pillow takes for one
_BIG = 43  # the version of a file with offsets of eight bytes
_MOST_TAGS = 1 << 16  # of an image: there are no more numbers for them


def check(file: BinaryIO) -> None:
    """Raise DecompressionBombError for a file with more numbers in a tag than images have strips or
    tiles, which may take a byte each there, and hundreds when it is open; else leave it at its
    beginning.

    It reads the tags as Pillow does. Raises struct.error where the file ends, and ValueError for
    more tags than there are.
    """
    head = file.read(16)
    file.seek(0)
    if not head.startswith(_STARTS):
        return
    order, big = "<" if head[:2] == b"II" else ">", head[2] == _BIG
    counts, entry = _forms(order, big)
    (at,) = struct.unpack_from(f"{order}{'Q' if big else 'L'}", head, 8 if big else 4)
    file.seek(at)
    (count,) = struct.unpack(counts, file.read(struct.calcsize(counts)))
    if count > _MOST_TAGS:
        raise ValueError(f"it has {count:,} tags")
    tags = file.read(count * struct.calcsize(entry))
    file.seek(0)
    whole = tags[: len(tags) // struct.calcsize(entry) * struct.calcsize(entry)]
    for tag, _, values, _ in struct.iter_unpack(entry, whole):
        if tag in _COUNTED and values > MAX_NUMBERS:
            raise Image.DecompressionBombError(f"a TIFF with {values:,} numbers in its tag {tag}")


def tile(data: bytes, at: int) -> tuple[int, int]:
    """Width and height of the tiles of an image whose tags begin `at` a byte of the file; 0 if they
    are not stated.

    Raises ValueError where readers of these tags differ, and struct.error where the file ends.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == _BIG
    seen, found = set[int](), dict[int, int]()
    for tag, kind, values, value in _tags(data, at, order, big):
        if tag not in _DECODED:
            continue
        if tag in seen or kind not in _NUMBERS:
            raise ValueError(f"its tag {tag} can be read in two ways")
        seen.add(tag)
        if tag in SIDES:
            number = f"{order}{_NUMBERS[kind]}"
            if values != 1 or struct.calcsize(number) > len(value):
                raise ValueError(f"its tag {tag} is not one number")
            (found[tag],) = struct.unpack_from(number, value)
    return found.get(SIDES[0], 0), found.get(SIDES[1], 0)


def _tags(data: bytes, at: int, order: str, big: bool) -> Iterator[tuple[int, int, int, bytes]]:
    """The tags of an image: number, type, how many values, and these or where they are."""
    counts, entry = _forms(order, big)
    (count,), size = struct.unpack_from(counts, data, at), struct.calcsize(entry)
    for place in range(at + struct.calcsize(counts), len(data), size)[:count]:
        yield struct.unpack_from(entry, data, place)


def _forms(order: str, big: bool) -> tuple[str, str]:
    """How the number of tags is written, and a tag."""
    count, entry = ("Q", "HHQ8s") if big else ("H", "HHL4s")
    return f"{order}{count}", f"{order}{entry}"
