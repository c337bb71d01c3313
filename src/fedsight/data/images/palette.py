"""How many colours the segmented palette of a DICOM file expands to, before pydicom expands it.

A segment of six bytes may stand for 65,535 colours, and another copies as many segments (PS3.3,
C.7.9.2).
"""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_COLOURS = 1 << 16  # a descriptor can state no more
_DISCRETE, _LINEAR, _INDIRECT = range(3)
_WORDS = 4 * MAX_COLOURS  # of a palette whose segments have one colour each, and to spare


def has_too_many(found: Any) -> bool:
    """Whether a segmented palette of a data set has more colours than MAX_COLOURS."""
    little = found.file_meta.TransferSyntaxUID.is_little_endian
    for name in ("Red", "Green", "Blue", "Alpha"):
        keyword = f"Segmented{name}PaletteColorLookupTableData"
        if keyword in found:
            wide = int(found.RedPaletteColorLookupTableDescriptor[2]) != 8
            kind = np.dtype(np.uint8 if not wide else "<u2" if little else ">u2")
            data = bytes(found[keyword].value)
            words = np.frombuffer(data, kind, len(data) // kind.itemsize).tolist()
            if len(words) > _WORDS or _colours(words, wide, little) > MAX_COLOURS:
                return True
    return False


def _colours(
    words: list[int], wide: bool, little: bool, copied: tuple[int, int] | None = None
) -> int:
    """The colours of all segments, or a number above MAX_COLOURS if they are more.

    `copied`: where those begin that a segment copies, and how many (0: all); they must not copy
    others. A segment without colours counts as if it had one.
    """
    at, most = copied or (0, 0)
    count = segments = 0
    while at + 1 < len(words) and count <= MAX_COLOURS:
        kind, length, at = words[at], words[at + 1], at + 2
        if kind == _DISCRETE:
            at += length
        elif kind == _LINEAR:
            at += 1
        elif kind == _INDIRECT and copied is None:
            taken = words[at : at + (2 if wide else 4)]
            at += len(taken)
            length = _colours(words, wide, little, (_offset(taken, wide, little), length))
        else:  # a copy of copies; what no standard knows is refused by pydicom
            return MAX_COLOURS + (kind == _INDIRECT)
        count += max(1, length)
        segments += 1
        if segments == most:
            break
    return count


def _offset(taken: list[int], wide: bool, little: bool) -> int:
    """Where copied segments begin, as pydicom reads it: in words, least significant first."""
    if wide:
        return sum(word << 16 * place for place, word in enumerate(taken))
    order = taken if little else [*taken[1::-1], *taken[:1:-1]]
    return sum(word << 8 * place for place, word in enumerate(order))
