"""What FLARE makes of the content of a message from another machine: values, and not too many.

FLARE's format can do more than our messages need. A message may bring files, which FLARE writes
into a folder for temporary files and never removes; it may have its receiver fetch something from
an address that it names, in the thread that decodes it; and its values may take seventy times its
bytes in memory. Large texts and bytes are sections of their own, behind the values. A text in which
one character needs four bytes takes seven times its bytes while it is decoded.
"""

from __future__ import annotations

from typing import Any, NoReturn

from nvflare.fuel.utils.fobs import lobs
from nvflare.fuel.utils.fobs.datum import Datum, DatumManager

# Bytes of the values of a message, without its other sections. The description of a job for 1,000
# sites takes 150,000.
MAX_VALUES = 1 << 20
MAX_SECTIONS = 1000


class Sections(DatumManager):
    """The sections of a message."""

    def add_datum(self, d: Datum) -> None:
        """Called by FLARE with each; ValueError for too many, or for one that would take the place
        of another and so not count."""
        if d.datum_id in self.datums:
            raise ValueError("two sections of a message have the same ID")
        if len(self.datums) >= MAX_SECTIONS:
            raise ValueError(f"a message has at most {MAX_SECTIONS:,} sections")
        super().add_datum(d)


def decoded(data: bytes, manager: Any = None, **options: Any) -> Any:
    """FLARE's `deserialize`; ValueError for too many bytes."""
    if len(data) > MAX_VALUES:
        raise ValueError(f"the values of a message have at most {MAX_VALUES:,} bytes")
    return _deserialize(data, manager, **options)


def folder_for_files() -> NoReturn:
    """FLARE asks where to write a file that a message brings."""
    raise ValueError("a message brings no files")


def who_fetches(kind: int) -> None:
    """FLARE asks who fetches what a message refers to: nobody, and the message is not decoded."""


# FLARE's own; AttributeError if this version has no such name.
_deserialize, _ = lobs.deserialize, (lobs.get_datum_dir, lobs.get_dot_handler, lobs.DatumManager)


def bound_content() -> None:
    """Have the FLARE of this process decode messages so."""
    lobs.DatumManager = Sections
    lobs.deserialize = decoded
    lobs.get_datum_dir = folder_for_files
    lobs.get_dot_handler = who_fetches
