"""Formatting for readers: percent, points, bytes, time, and small counts in words."""

from __future__ import annotations

import math
import unicodedata
from datetime import datetime

NOTHING = "–"
SPACE = "\u00a0"
SMALL = (
    "no", "one", "two", "three", "four", "five", "six",
    "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July",
    "August", "September", "October", "November", "December",
)  # fmt: skip


def word(title: str) -> str:
    """A title in mid-sentence: `Accuracy` becomes `accuracy`, `AUC` stays."""
    return title if title[:2].isupper() or title[1:2].isupper() else title[:1].lower() + title[1:]


def percent(value: float | None, digits: int = 1) -> str:
    """A share from 0 to 1 as percent, such as `88.1 %`."""
    if value is None:
        return NOTHING
    return f"{_digits(100 * value, digits)}{SPACE}%" if math.isfinite(value) else "not finite"


def _digits(value: float, digits: int) -> str:
    """So many decimal places; numbers of more than nine digits by their power of ten."""
    return f"{value:.{digits}f}" if abs(value) < 1e9 else f"{value:.2e}"


def estimate(value: float | None, error: float | None, digits: int = 1) -> str:
    """A share with the standard error `error`, with the digits that it carries: `88 % ± 3 points`.

    The margin is for 95 %. Without an error it is the share alone, with at most `digits`.
    """
    if value is None or not error or not math.isfinite(value):
        return percent(value, digits)
    digits = min(digits, max(0, -math.floor(math.log10(100 * error))))
    half = f"{100 * 1.959964 * error:.{digits}f}"
    return f"{percent(value, digits)} ±{SPACE}{half}{SPACE}points"


def bare_points(value: float | None) -> str:
    """A difference of two shares in percentage points, with sign but without unit."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "not finite"
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, such as `+30.4 points`."""
    known = value is not None and math.isfinite(value)
    return f"{bare_points(value)}{SPACE}points" if known else bare_points(value)


def number(value: float | None, digits: int = 3) -> str:
    """A plain number such as a loss."""
    if value is None:
        return NOTHING
    return _digits(value, digits) if math.isfinite(value) else "not finite"


def count(value: int | None) -> str:
    """A whole number with thousands separators."""
    return NOTHING if value is None else f"{value:,}"


def size(value: float | None) -> str:
    """Bytes in decimal units: 1 MB is 1,000,000 bytes."""
    if value is None:
        return NOTHING
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9995 * step:  # so that 999,999 bytes are 1.0 MB, not 1000 kB
            return f"{value / step:.{1 if value < 100 * step else 0}f}{SPACE}{unit}"
    return f"{value:.0f}{SPACE}bytes"


def duration(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds."""
    if seconds is None:
        return NOTHING
    if not math.isfinite(seconds):
        return "not finite"
    if seconds < 9.95:
        return f"{seconds:.1f}{SPACE}s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}{SPACE}h {minutes}{SPACE}min"
    return f"{minutes}{SPACE}min {left}{SPACE}s" if minutes else f"{left}{SPACE}s"


def date(text: str) -> str:
    """An ISO time as `21 November 2025, 05:40 UTC`; other text unchanged."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = f" {when.tzname()}" if when.tzinfo else ""
    return f"{when.day} {MONTHS[when.month - 1]} {when.year}, {when:%H:%M}{zone}"


def plural(nouns: str) -> str:
    """The plural: `images`, or `images or texts` of `image or text`."""
    return " or ".join(f"{noun}s" for noun in nouns.split(" or "))


def one(noun: str) -> str:
    """With an article: `an image`, `a text`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def several(value: int, noun: str) -> str:
    """`ten sites`, `one site`, `1,000 sites`."""
    name = SMALL[value] if 0 <= value < len(SMALL) else f"{value:,}"
    return f"{name} {noun if value == 1 else plural(noun)}"


def sentence(text: str) -> str:
    """The text with its first letter capitalised."""
    return text[:1].upper() + text[1:]


def label(text: str, limit: int = 22) -> str:
    """A name for use in a plot: one line, no control characters, at most `limit` characters."""
    line = "".join(
        " " if char.isspace() else char
        for char in text
        if char.isspace() or unicodedata.category(char) not in {"Cc", "Cs", "Cn"}
    )
    return line if len(line) <= limit else line[: limit - 1] + "…"
