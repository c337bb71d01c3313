"""How large a tile of a TIFF is, as libtiff will read it, which decodes tiles whole.

Pillow and libtiff each read the tags themselves, and differ about some that no program writes: one
that is there twice, or a number of eight bytes with a sign, which Pillow leaves out. So tags on
which decoding depends must be there once, with numbers that both know (Adobe, TIFF 6.0).
"""

from __future__ import annotations

import struct

SIDES = (322, 323)  # width and height of a tile
# size, bits, compression, colours, samples, strips, planes, tiles, and where these begin and end
_DECODED = {*range(256, 260), 262, 273, *range(277, 280), 284, *range(322, 326)}
_NUMBERS = {3: "H", 4: "L", 16: "Q"}  # by their type


def tile(data: bytes, at: int) -> tuple[int, int]:
    """Width and height of the tiles of an image whose tags begin `at` a byte of the file; 0 if they
    are not stated.

    Raises ValueError where readers of these tags differ, and struct.error where the file ends.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    head, entry = (f"{order}{form}" for form in (("Q", "HHQ8s") if big else ("H", "HHL4s")))
    (count,), size = struct.unpack_from(head, data, at), struct.calcsize(entry)
    seen, found = set[int](), dict[int, int]()
    for place in range(at + struct.calcsize(head), len(data), size)[:count]:
        tag, kind, values, value = struct.unpack_from(entry, data, place)
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
