"""Text that another machine chose, made safe to print, to log and to show in a page.

A name or an error message from elsewhere may hold terminal escape sequences (which move the cursor,
recolour or overwrite other lines), line breaks (which forge log lines), marks that reverse the
direction of writing (which make a name look like another; Boucher and Anderson, "Trojan Source",
2021), or half of a surrogate pair, which no encoding can print. All of these become visible
escapes of the form \\u001b, which are also valid within a JSON string.
"""

from __future__ import annotations

import re

MAX_MESSAGE = 500  # characters of a message from another machine
_UNSAFE = (
    "\x00-\x1f\x7f-\x9f"  # control characters, C0 and C1
    "\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f"  # invisible characters, direction marks
    "\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"  # separators, overrides, isolates
    "\ud800-\udfff"  # halves of surrogate pairs
    "\U000e0000-\U000e007f"  # tags
)
_ANY = re.compile(f"[{_UNSAFE}]")
_ABSOLUTE_PATH = re.compile(r"(?<![\w.])/")  # the start of one
_ANY_BUT_NEWLINE = re.compile(f"(?!\n)[{_UNSAFE}]")


def printable(text: object, limit: int | None = None) -> str:
    """`text` on one line, with every unsafe character escaped, and at most `limit` characters."""
    return _ANY.sub(_escape, _shortened(str(text), limit))


def printable_lines(text: object) -> str:
    """The same, but line breaks stay: for texts of FedSight's own that quote another machine's."""
    return _ANY_BUT_NEWLINE.sub(_escape, str(text))


def names_path(text: str) -> bool:
    """Whether a text has an absolute path in it."""
    return _ABSOLUTE_PATH.search(text) is not None


def is_printable(text: str) -> bool:
    """Whether no character of `text` would be escaped."""
    return _ANY.search(text) is None


def _shortened(text: str, limit: int | None) -> str:
    return text if limit is None or len(text) <= limit else text[: max(limit - 1, 0)] + "…"


def _escape(match: re.Match[str]) -> str:
    """The character as UTF-16 code units, as JSON has it."""
    units = match[0].encode("utf-16-be", "surrogatepass")
    pairs = zip(units[::2], units[1::2], strict=True)
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in pairs)
