"""Names of classes and sites: written in two ways, standing for nothing, or in an order."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsight.core.errors import DataError

Similar = Literal["error", "merge", "keep"]

# what programs write where there is no value
_MISSING = frozenset({"", "nan", "na", "n/a", "#n/a", "<na>", "none", "null", "nil", "nat"})
# letters that look like Latin ones: Cyrillic, then Greek
_ALIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u043a\u043c\u0442\u043d\u0432"
    "\u03bf\u03b1\u03bd\u03c1",
    "aeopcyxijskmthboavp",
)


_QUOTES = "'\"`\u2018\u2019\u201c\u201d\u00b4\u00ab\u00bb"
_SCRIPT = "in letters of different scripts"


@dataclass(frozen=True)
class Use:
    """How often a name is used, and where first."""

    count: int
    place: str = ""


@dataclass(frozen=True)
class Kind:
    """What names stand for, in messages."""

    label: str
    one: str
    setting: str
    stated: str = ""  # how a name that looks like a missing value is said to be meant


CLASSES = Kind(
    "label",
    "class",
    "data.similar_names",
    "if it is a class, list all classes in data.classes, or ",
)
SITES = Kind("site", "site", "data.similar_sites", "if it is the name of a site, ")


def used(labels: Iterable[tuple[str, str]]) -> dict[str, Use]:
    """Each name's use, from pairs of a name and the place where it is written."""
    found: dict[str, Use] = {}
    for name, place in labels:
        known = found.get(name)
        found[name] = Use(1, place) if known is None else Use(known.count + 1, known.place)
    return found


def key(name: str) -> str:
    """What two names have in common that people take for the same.

    Case, Unicode form and width, invisible characters, accents' encoding, blanks, the choice of
    blank, hyphen or underscore between words, zeros in front of a number, quotes around a name and
    a point after it, and letters of another script that look alike are disregarded.
    """
    plain = unicodedata.normalize("NFKC", name).casefold()
    plain = "".join(one for one in plain if unicodedata.category(one) not in ("Cf", "Cc", "Co"))
    plain = unicodedata.normalize("NFKC", plain).translate(_ALIKE)
    plain = re.sub(r"[\s_]+", " ", plain).strip()
    plain = re.sub(r"(?<=\w)\s*[-\u2010-\u2015]\s*(?=\w)", " ", plain)
    plain = plain.strip(_QUOTES).rstrip(".,;:").strip() or plain
    if number := re.fullmatch(r"\+?(\d+)(?:\.0*)?", plain):
        return str(int(number[1]))
    return re.sub(r"(?<![\d.])0+(?=\d)", "", plain)


def shown(name: str, alike: bool = False) -> str:
    """A name in quotes, with what cannot be seen in it spelt out (`'me\\u0301lanome'`).

    With `alike`, letters that look like others are spelt out as well.
    """
    return "'" + "".join(_spelt(one, alike) for one in name) + "'"


def _spelt(character: str, alike: bool) -> str:
    hidden = unicodedata.category(character) in ("Cf", "Cc", "Co", "Mn", "Zl", "Zp")
    odd = character != " " and unicodedata.normalize("NFKC", character) != character
    if hidden or odd or (alike and character.casefold().translate(_ALIKE) != character.casefold()):
        return character.encode("unicode_escape").decode("ascii")
    return character


def settled_names(
    uses: Mapping[str, Use],
    classes: Sequence[str] | None,
    similar: Similar,
    things: str = "images",
    kind: Kind = CLASSES,
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The name that each one in `uses` and `classes` is read as, and what to say about it.

    Names with the same `key` are refused unless `similar` is "merge" or "keep". Merged ones
    take the name in `classes` (the vocabulary, if it is stated), else the most frequent. Raises
    DataError as well for a name that stands for a missing value and is not in `classes`.
    """
    stated = tuple(classes or ())
    if similar == "keep":
        return {name: name for name in (*stated, *uses)}, ()
    _check_missing(uses, stated, things, kind)
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys((*stated, *sorted(uses))):
        groups.setdefault(key(name), []).append(name)
    read, notes = {}, []
    for group in groups.values():
        chosen = _chosen(group, uses, stated)
        others = [name for name in group if name != chosen]
        if others and similar == "error":
            raise DataError(*_alike((chosen, others[0]), uses, things, kind))
        read.update(dict.fromkeys(group, chosen))
        notes += [
            f"{shown(name)} ({uses[name].count} {things}) is read as {shown(chosen)}"
            for name in others
            if name in uses
        ]
    return read, tuple(notes)


def _chosen(group: Sequence[str], uses: Mapping[str, Use], stated: Sequence[str]) -> str:
    """The one of several spellings that counts: the first in the vocabulary, or the most frequent.

    Of two that are as frequent, one in which everything can be seen.
    """
    known = [name for name in group if name in stated]
    if known:
        return known[0]
    return max(group, key=lambda n: (uses[n].count, shown(n.strip()) == f"'{n}'"))


def stands_for_nothing(name: str) -> bool:
    """Whether programs write `name` where there is no value."""
    return unicodedata.normalize("NFKC", name).casefold().strip() in _MISSING


def near_pairs(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Names that people take for the same: the first of each, another, and how they differ."""
    first: dict[str, str] = {}
    found = []
    for name in sorted(names):
        other = first.setdefault(key(name), name)
        if other != name:
            found.append((other, name, _difference(other, name)))
    return found


def _check_missing(uses: Mapping[str, Use], stated: Sequence[str], things: str, kind: Kind) -> None:
    for name, use in uses.items():
        if stands_for_nothing(name) and name not in stated:
            at = f"{use.place}: " if use.place else ""
            raise DataError(
                f"{at}the {kind.label} {shown(name)} stands for a missing value "
                f"({use.count} {things})",
                f"correct or remove these; {kind.stated}set {kind.setting} = 'keep'",
            )


def _alike(
    pair: tuple[str, str], uses: Mapping[str, Use], things: str, kind: Kind
) -> tuple[str, str]:
    """Cause and cure for two names of one class or site."""
    one, other = pair
    difference = _difference(one, other)
    alike = difference == _SCRIPT

    def described(name: str) -> str:
        use = uses.get(name)
        if use is None:
            return f"{shown(name, alike)} (a class of the vocabulary)"
        first = f", first {use.place}" if use.place else ""
        return f"{shown(name, alike)} ({use.count} {things}{first})"

    return (
        f"{described(one)} and {described(other)} differ only {difference}",
        f"rename one, or set {kind.setting} = 'merge' if they are one {kind.one}, 'keep' if two",
    )


def _difference(one: str, other: str) -> str:
    """In what two names with the same key differ."""
    if one.strip() == other.strip():
        return "in blanks at the ends"
    if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other):
        return "in how accents are encoded (Unicode forms NFC and NFD)"
    if one.lower() == other.lower():
        return "in case"
    if unicodedata.normalize("NFKC", one) == unicodedata.normalize("NFKC", other):
        return "in the width or form of characters (Unicode form NFKC)"
    if key(one).isdigit():
        return "in how the number is written"
    if any(unicodedata.category(c) in ("Cf", "Cc", "Co") for c in one + other):
        return "in characters that cannot be seen"
    if one.isascii() != other.isascii() and len(one) == len(other):
        return _SCRIPT
    return "in how they are written"


def ordered(names: Iterable[str]) -> tuple[tuple[str, ...], bool]:
    """The names sorted, and whether this order has a meaning.

    It has when all are numbers, or the same text around one whole number or range of them (`T1`,
    `T2`, `T10`; `0-9`, `10-19`): these are sorted by value, others as text.
    """
    found = list(names)
    numbers = {name: _number(name) for name in found}
    if all(value is not None for value in numbers.values()):
        return tuple(sorted(found, key=lambda name: (numbers[name] or 0.0, name))), True
    texts = {name: re.split(r"(\d+)", name) for name in found}
    frames = {tuple(text[::2]) for text in texts.values()}
    frame = frames.pop() if len(frames) == 1 else ()
    if len(frame) == 2 or (len(frame) == 3 and frame[1].strip() in ("-", "\u2013", "to")):
        return tuple(sorted(found, key=lambda name: [int(n) for n in texts[name][1::2]])), True
    return tuple(sorted(found)), False


def says_order(names: Sequence[str]) -> bool:
    """Whether the order of a file's list of classes can be meant: it is not just alphabetical."""
    sensible, natural = ordered(names)
    return tuple(names) == sensible if natural else list(names) != sorted(names)


def _number(name: str) -> float | None:
    try:
        value = float(name)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
