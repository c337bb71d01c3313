"""Formatting for readers: percent, points, bytes, time, and names that have to fit a place."""

from __future__ import annotations

import math
import unicodedata
from datetime import datetime

from fedsight.language.message import Text, message, plural

NOTHING = "–"
SPACE = "\u00a0"
PLAIN = 1e15  # larger numbers are written with an exponent, so that none is longer than its place

LARGEST = 10**300  # of those that are written at all

Words = Text | str


def word(title: str) -> str:
    """A title in mid-sentence: `Accuracy` becomes `accuracy`, `AUC` stays."""
    return title if title[:2].isupper() or title[1:2].isupper() else title[:1].lower() + title[1:]


def _plain(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if abs(value) < PLAIN else f"{value:.3g}"


def _missing(value: float | None) -> Words | None:
    """What stands in the place of a number that was not measured or is not finite; else None."""
    if value is None:
        return NOTHING
    return None if math.isfinite(value) else message("not finite")


def percent(value: float | None, digits: int = 1) -> Words:
    """A share from 0 to 1 as percent, such as `88.1 %`."""
    missing = _missing(value)
    if missing is not None or value is None:
        return missing or NOTHING
    return f"{_plain(100 * value, digits)}{SPACE}%"


def estimate(value: float | None, error: float | None, digits: int = 1) -> Words:
    """A share with the standard error `error`, with the digits that it carries: `88 % ± 3 points`.

    The margin is for 95 %. Without an error it is the share alone, with at most `digits`.
    """
    known = value is not None and math.isfinite(value)
    if not known or not error or not math.isfinite(error) or error < 0:
        return percent(value, digits)
    digits = min(digits, max(0, -math.floor(math.log10(100 * error))))
    half = _plain(100 * 1.959964 * error, digits)
    return message("{share} ±\u00a0{margin}\u00a0points", share=percent(value, digits), margin=half)


def bare_points(value: float | None) -> Words:
    """A difference of two shares in percentage points, with sign but without unit."""
    missing = _missing(value)
    if missing is not None or value is None:
        return missing or NOTHING
    text = f"{100 * value:+.1f}" if abs(value) < PLAIN else f"{100 * value:+.3g}"
    text = text.replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def points(value: float | None) -> Words:
    """A difference of two shares in percentage points, such as `+30.4 points`."""
    known = value is not None and math.isfinite(value)
    return message("{points}\u00a0points", points=bare_points(value)) if known else percent(value)


def between(low: float, high: float) -> Words:
    """An interval of differences in points: `−1.0 to +3.2`."""
    return message("{low} to {high}", low=bare_points(low), high=bare_points(high))


def range_of(low: float, high: float) -> Words:
    """An interval of shares: `86.6 to 89.4 %`."""
    return message(
        "{low} to {high}", low=str(percent(low)).removesuffix(f"{SPACE}%"), high=percent(high)
    )


def number(value: float | None, digits: int = 3) -> Words:
    """A plain number such as a loss."""
    missing = _missing(value)
    if missing is not None or value is None:
        return missing or NOTHING
    return _plain(value, digits)


def count(value: int | None) -> str:
    """A whole number with thousands separators."""
    if value is None:
        return NOTHING
    if abs(value) < PLAIN:
        return f"{value:,}"
    return f"{float(max(-LARGEST, min(LARGEST, value))):.3g}"


def size(value: float | None) -> str:
    """Bytes in decimal units: 1 MB is 1,000,000 bytes."""
    if value is None:
        return NOTHING
    if not math.isfinite(value) or value >= PLAIN * 1e3:
        return f"{float(value):.3g}{SPACE}bytes"
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9995 * step:  # so that 999,999 bytes are 1.0 MB, not 1000 kB
            return f"{value / step:.{1 if value < 100 * step else 0}f}{SPACE}{unit}"
    return f"{value:.0f}{SPACE}bytes"


def duration(seconds: float | None) -> Words:
    """Seconds as hours, minutes and seconds."""
    missing = _missing(seconds)
    if missing is not None or seconds is None:
        return missing or NOTHING
    if seconds < 9.95 or seconds > PLAIN:
        return f"{_plain(seconds, 1)}{SPACE}s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours:,}{SPACE}h {minutes}{SPACE}min"
    return f"{minutes}{SPACE}min {left}{SPACE}s" if minutes else f"{left}{SPACE}s"


def date(text: str) -> Words:
    """An ISO time as `21 November 2025, 05:40 UTC`; other text unchanged."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = f" {when.tzname()}" if when.tzinfo else ""
    values = {"day": when.day, "year": when.year, "time": f"{when:%H:%M}{zone}"}
    return message("{day} {month} {year}, {time}", month=_months()[when.month - 1], **values)


def _months() -> tuple[Text, ...]:
    return (
        message("January"), message("February"), message("March"), message("April"),
        message("May"), message("June"), message("July"), message("August"),
        message("September"), message("October"), message("November"), message("December"),
    )  # fmt: skip


def sites(value: int | None) -> Text:
    """`10 sites`, `1 site`."""
    return plural("{count} site", "{count} sites", _number(value), count=count(value))


def rounds(value: int | None) -> Text:
    """`20 rounds`, `1 round`."""
    return plural("{count} round", "{count} rounds", _number(value), count=count(value))


def _number(value: int | None) -> int:
    """The number that decides between singular and plural; gettext takes no large one."""
    return 2 if value is None else max(0, min(2, value))


# Marks, embeddings, overrides and isolates of Unicode's bidirectional algorithm (UAX 9, section 2).
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def label(text: str, limit: int = 22) -> str:
    """A name for use in a plot: one line, no control characters, at most `limit` wide.

    Nor has it characters that change the direction of those around them: a name could make another
    one read differently. Characters of East Asian scripts are two wide.
    """
    line = "".join(
        " " if char.isspace() else char
        for char in text
        if char.isspace()
        or (unicodedata.category(char) not in {"Cc", "Cs", "Cn"} and char not in _DIRECTIONS)
    )
    if width(line) <= limit:
        return line
    kept = ""
    for char in line:
        if width(kept + char) > limit - 1:
            break
        kept += char
    return kept + "…"


def width(text: str) -> int:
    """The width of a line in Latin characters."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
