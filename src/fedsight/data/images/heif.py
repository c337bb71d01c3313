"""How much a HEIC file has its decoder decode and copy, as its boxes state it (ISO/IEC 23008-12).

A file holds images, and says how the one that is shown is made of others: laid out in a grid, or
over one another. The same one may be named again and again, by images that are named again and
again themselves, and is decoded each time. Images over one another lie on a canvas whose size is
among the data, where it is not looked for: no camera writes such files, and none is read. What
belongs to an image (Exif, XMP, a profile of its colours) may belong to all images of a file, and is
copied for each when the file is opened.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from PIL import Image

MOST = 4  # times the pixels of an image: its tiles, transparency, and maps of depth and of light
LEAST = 1 << 16  # pixels that any image counts as: decoding begins anew for each
MAX_COPIED = 256 << 20  # bytes of metadata and profiles, all copies together
MAX_NUMBERS = 1 << 18  # of boxes: a file with a thousand tiles has less than a tenth
_DEEPEST = 32  # images that are made of images that are made of images, and so on
_Place = tuple[int, int]  # where the content of a box begins and ends


@dataclass
class _Item:
    """The pixels of an item as it states them, the items that are decoded for it, and the bytes
    that are copied with it."""

    pixels: int = 0
    needs: list[int] = field(default_factory=list)
    copied: int = 0


_Items = defaultdict[int, _Item]


def check(data: bytes, pixels: int) -> None:
    """Raise DecompressionBombError for a HEIC file that has more decoded than an image of so many
    `pixels` needs, or more copied than images have, and ValueError for boxes that do not tell."""
    reader = _Reader(data)
    stop = reader.readable
    meta = reader.only((0, stop), b"meta")
    film = reader.only((0, stop), b"moov")
    if meta is None and film is not None and stop == len(data):  # frames are decoded one by one
        return
    if meta is None:
        raise ValueError("its boxes end too early, or do not tell of what it is made")
    inside = meta[0] + 4, meta[1]
    items = _items(reader, inside, _hidden(reader, inside))
    if any(not items[other].pixels for item in tuple(items.values()) for other in item.needs):
        raise ValueError("an image that it is made of does not state its size")
    copied = sum(item.copied for item in items.values())
    if copied > MAX_COPIED:
        raise Image.DecompressionBombError(f"{copied:,} bytes of metadata and profiles")
    if (largest := max((item.pixels for item in items.values()), default=0)) > pixels:
        raise Image.DecompressionBombError(f"{largest:,} pixels, before it is cut or put together")
    known: dict[int, int] = {}
    decoded = max((_decoded(number, items, known) for number in tuple(items)), default=0)
    if decoded > MOST * pixels:
        raise Image.DecompressionBombError(f"made of images of {decoded:,} pixels")


def _decoded(number: int, items: _Items, known: dict[int, int], depth: int = 0) -> int:
    """The pixels that are decoded for an image; `known` are those of others."""
    if depth > _DEEPEST:
        raise ValueError("its images are made of one another")
    if number not in known:
        item = items[number]
        rest = sum(_decoded(other, items, known, depth + 1) for other in item.needs)
        known[number] = max(item.pixels, LEAST) + rest
    return known[number]


class _Reader:
    """Reads boxes, and not more of them than a file of images has."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._numbers = 0

    def number(self, at: int, size: int) -> int:
        """A whole number of `size` bytes; ValueError where the file ends, or has told enough."""
        self._numbers += 1
        if self._numbers > MAX_NUMBERS or at + size > len(self.data):
            raise ValueError("its boxes are broken, or say more than a file of images needs")
        return int.from_bytes(self.data[at : at + size], "big")

    @property
    def readable(self) -> int:
        """Where the boxes of the file end: some programs append what is none."""
        at = 0
        with contextlib.suppress(ValueError):
            for _, (_, end) in self.boxes((0, len(self.data))):
                at = end
            return len(self.data)
        return at

    def boxes(self, place: _Place) -> Iterator[tuple[bytes, _Place]]:
        """The kinds and the contents of the boxes in a part of the file."""
        at, stop = place
        while at + 8 <= stop:
            length, head = self.number(at, 4), 8
            if length == 1:
                length, head = self.number(at + 8, 8), 16
            end = at + length if length else stop
            if not at + head <= end <= stop:
                raise ValueError("its boxes do not fit into one another")
            yield self.data[at + 4 : at + 8], (at + head, end)
            at = end

    def only(self, place: _Place, kind: bytes) -> _Place | None:
        """The content of the one box of a kind, if there is any; ValueError if there are two."""
        found = [content for name, content in self.boxes(place) if name == kind]
        if len(found) > 1:
            raise ValueError(f"it has two boxes '{kind.decode()}', and readers may take either")
        return found[0] if found else None


def _hidden(reader: _Reader, meta: _Place) -> set[int]:
    """The items that the box `meta` says are not to be shown, which are no images of their own when
    a file is open. Raises ValueError if one of its items is a canvas of images."""
    found = set[int]()
    named = reader.only(meta, b"iinf") or (0, 0)
    begin = named[0] + (8 if reader.number(named[0], 1) else 6)
    for kind, (at, _) in reader.boxes((begin, named[1])):
        wide = 2 if reader.number(at, 1) < 3 else 4
        place = at + 4 + wide + 2
        if kind == b"infe" and reader.data[place : place + 4] == b"iovl":
            raise ValueError("it is made of images over one another")
        if kind == b"infe" and reader.number(at + 3, 1) & 1:
            found.add(reader.number(at + 4, wide))
    return found


def _items(reader: _Reader, meta: _Place, hidden: Container[int]) -> _Items:
    """What the box `meta` says of the items of a file; nothing is copied for those `hidden`."""
    items: _Items = defaultdict(_Item)
    if (properties := reader.only(meta, b"iprp")) is not None:
        _read_properties(reader, properties, items, hidden)
    located = reader.only(meta, b"iloc")
    sizes = {} if located is None else _sizes(reader, located[0])
    if (references := reader.only(meta, b"iref")) is not None:
        _read_references(reader, references, items, sizes)
    return items


def _read_properties(reader: _Reader, place: _Place, items: _Items, hidden: Container[int]) -> None:
    """Add what images state of their size, and the profiles of their colours."""
    known: list[tuple[int, int]] = [(0, 0)]  # pixels and bytes of each property; they begin at 1
    for kind, (begin, end) in reader.boxes(reader.only(place, b"ipco") or (0, 0)):
        sides = (reader.number(begin + at, 4) for at in (4, 8))
        width, height = sides if kind == b"ispe" else (0, 0)
        known.append((width * height, end - begin if kind == b"colr" else 0))
    for kind, (at, _) in reader.boxes(place):
        if kind != b"ipma":
            continue
        wide, many = 4 if reader.number(at, 1) else 2, 1 + (reader.number(at + 3, 1) & 1)
        entries, at = reader.number(at + 4, 4), at + 8
        for _ in range(entries):
            number, count = reader.number(at, wide), reader.number(at + wide, 1)
            item, at = items[number], at + wide + 1
            for _ in range(count):
                named = reader.number(at, many) & (0x7F if many == 1 else 0x7FFF)
                at += many
                if named < len(known):
                    item.pixels = max(item.pixels, known[named][0])
                    item.copied += 0 if number in hidden else known[named][1]


def _read_references(reader: _Reader, place: _Place, items: _Items, sizes: dict[int, int]) -> None:
    """Add which items are decoded for which, and which metadata of these `sizes` are copied."""
    wide = 4 if reader.number(place[0], 1) else 2
    for kind, (at, _) in reader.boxes((place[0] + 4, place[1])):
        source, count = reader.number(at, wide), reader.number(at + wide, 2)
        at += wide + 2
        for other in (reader.number(at + wide * nth, wide) for nth in range(count)):
            if kind == b"dimg":
                items[source].needs.append(other)
            elif kind == b"auxl":  # transparency belongs to the image that it names
                items[other].needs.append(source)
            elif kind == b"cdsc":
                items[other].copied += sizes.get(source, 0)


def _sizes(reader: _Reader, at: int) -> dict[int, int]:
    """The bytes of each item (the box `iloc`); those that say nothing reach to the file's end."""
    version, widths = reader.number(at, 1), reader.number(at + 4, 2)
    offset, length, base, index = (widths >> shift & 15 for shift in (12, 8, 4, 0))
    wide, skipped = 2 if version < 2 else 4, 2 if version else 0
    index = index if version else 0
    count, at = reader.number(at + 6, wide), at + 6 + wide
    found: dict[int, int] = {}
    for _ in range(count):
        item = reader.number(at, wide)
        if item in found:
            raise ValueError("it says twice where an item is, and readers may take either")
        at += wide + skipped + 2 + base
        extents, at = reader.number(at, 2), at + 2
        found[item] = 0
        for _ in range(extents):
            found[item] += reader.number(at + index + offset, length) or len(reader.data)
            at += index + offset + length
    return found
