"""The grid of a sweep: settings with several values, and the configurations that they make."""

from __future__ import annotations

import hashlib
import itertools
import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from fedsight.core.errors import ConfigError, Problem
from fedsight.core.settings import Settings, assignments

LONGEST_FOLDER = 80  # characters of a configuration's folder
MOST_RUNS = 10_000  # of a sweep: more are a mistake, and would be listed for hours
_PLAIN = (str, int, float, Mapping, list, tuple, Path, NoneType)  # told in full
_OPENING = {"[": "]", "{": "}"}
_FIXED = {  # keys that a grid cannot vary, and why
    "seed": ("seeds are not a setting of the grid", "name them with --seeds, for example 0-4"),
    "name": ("the name changes nothing in a run", "leave it out"),
    "speed.workers": (
        "the number of workers does not change the result",
        "give one number, or leave it out: the runs share the cores",
    ),
}


@dataclass(frozen=True)
class Value:
    """One value of a setting, and how it was written in `--set`.

    `suffix` tells apart objects that would have the same name.
    """

    value: Any
    text: str = ""
    suffix: str = ""

    @property
    def label(self) -> str:
        """The value in short, for people."""
        return told(self.value) + self.suffix


@dataclass(frozen=True)
class Axis:
    """A setting, by its dotted key or that of a section, with its values."""

    key: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Configuration:
    """One value for each setting of a grid; `varied` are those of which there are several."""

    chosen: Mapping[str, Value]
    varied: tuple[str, ...]
    label: str  # says the values of these; empty if nothing is varied

    @property
    def settings(self) -> dict[str, str]:
        """What is varied, and its value here."""
        return {key: self.chosen[key].label for key in self.varied}

    @property
    def folder(self) -> str:
        """A name for a folder: the label, with a hash where that cannot be one."""
        plain = self.label.replace(", ", ",")
        safe = re.sub(r"[^A-Za-z0-9.,+=-]+", "_", plain).lstrip(".-")[:LONGEST_FOLDER].rstrip("_")
        if safe == plain:
            return safe
        return f"{safe}-{hashlib.sha256(self.label.encode()).hexdigest()[:8]}"


def grid_of(
    texts: Sequence[str], seeds: str | None
) -> tuple[list[Axis], int | tuple[int, ...] | None]:
    """The settings and the seeds of a command line (`axes_of`, `seeds_in`); ConfigError with every
    problem of both."""
    problems: list[Problem] = []
    axes: list[Axis] = []
    named = None
    try:
        axes = axes_of(texts)
    except ConfigError as error:
        problems += error.problems
    try:
        named = None if seeds is None else seeds_in(seeds)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return axes, named


def axes_of(texts: Sequence[str]) -> list[Axis]:
    """The settings in `["train.lr=0.1,0.05", "algorithm.name=fedavg,scaffold"]` with their values.

    Values are as in `fedsight run --set`. Commas separate them, but not inside brackets, braces or
    quotes, where TOML has its own: a list is one value. Raises ConfigError with every problem.
    """
    found: list[Axis] = []
    problems: list[Problem] = []
    for item in texts:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not key:
            problems += assignments([item], "train.lr=0.1,0.05")[1]
            continue
        try:
            values = [_value(key, one) for one in _separated(key, text)]
        except ConfigError as error:
            problems += error.problems
            continue
        found.append(Axis(key, tuple(values)))
    if problems:
        raise ConfigError(problems)
    return found


def configurations(axes: Sequence[Axis]) -> list[Configuration]:
    """Every combination of the axes' values, the last axis varying fastest.

    Raises ConfigError with every problem of the axes: a setting that is given twice, values that
    are equal, what cannot be varied, and too many combinations.
    """
    if problems := list(_problems(axes)):
        raise ConfigError(problems)
    varied = tuple(axis.key for axis in axes if len(axis.values) > 1)
    short = _short(varied)
    found = []
    for values in itertools.product(*(axis.values for axis in axes)):
        chosen = dict(zip((axis.key for axis in axes), values, strict=True))
        parts = (f"{short[key]}{chosen[key].label}" for key in varied)
        found.append(Configuration(chosen, varied, ", ".join(parts)))
    return found


def seeds_in(text: str) -> int | tuple[int, ...]:
    """The seeds in `0-4`, `0,3,7` or `0-4,10`; a single number `5` is how many there are to be, as
    `run` and `compare` have it. Raises ConfigError for anything else."""
    if re.fullmatch(r"\s*\d+\s*", text):
        return int(text)
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            cause = f"'{part.strip()}' is neither a seed nor a range of seeds"
            raise ConfigError([Problem("--seeds", cause, "write for example 0-4, or 0,3,7")])
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            cause = f"{first}-{last} ends before it begins"
            raise ConfigError([Problem("--seeds", cause, f"write {last}-{first}")])
        if last - first >= MOST_RUNS:
            raise ConfigError([_too_many(last - first + 1)])
        found += range(first, last + 1)
    return distinct(found)


def distinct(seeds: Iterable[int]) -> tuple[int, ...]:
    """The seeds; ConfigError if one is named twice or not a whole number, or if there is none."""
    try:
        found = tuple(operator.index(seed) for seed in seeds)
    except TypeError:
        cause, cure = f"{seeds!r:.80} are not whole numbers", "write for example seeds=range(5)"
        raise ConfigError([Problem("--seeds", cause, cure)]) from None
    if not found:
        raise ConfigError([Problem("--seeds", "there is no seed", "give one, or leave it out")])
    if twice := [str(seed) for seed, times in Counter(found).items() if times > 1]:
        cause = f"named twice: {', '.join(twice)}"
        raise ConfigError([Problem("--seeds", cause, "name each seed once")])
    return found


def refuse_many(runs: int) -> None:
    """ConfigError for more runs than a sweep may have."""
    if runs > MOST_RUNS:
        raise ConfigError([_too_many(runs)])


def values_of(given: Iterable[Any]) -> tuple[Value, ...]:
    """Values from Python; objects of the same name are numbered."""
    found: list[Value] = []
    for value in given:
        plain = value.item() if isinstance(value, np.generic) else value
        same = sum(told(one.value) == told(plain) for one in found)
        numbered = same and not isinstance(plain, _PLAIN)
        found.append(Value(plain, suffix=f" #{same + 1}" if numbered else ""))
    return tuple(found)


def told(value: Any) -> str:
    """A value in short: a part by its name, with its settings."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Settings):
        given = {key: getattr(value, key) for key in sorted(value.model_fields_set)}
        return told({"name": value.registered or type(value).__name__, **given})
    if isinstance(value, Mapping):
        rest = [f"{key}={told(one)}" for key, one in value.items() if key != "name"]
        return " ".join([told(value["name"]), *rest] if "name" in value else rest)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(told, value))}]"
    if isinstance(value, str | int | float | Path):
        return str(value)
    return str(getattr(value, "__name__", None) or type(value).__name__)


def _separated(key: str, text: str) -> list[str]:
    """The parts of `text` between commas that are outside brackets, braces and quotes."""
    parts, start, awaited, escaped = [], 0, [""], False
    for at, char in enumerate(text):
        if awaited[-1] in ('"', "'"):
            if char == awaited[-1] and not escaped:
                awaited.pop()
            escaped = char == "\\" and awaited[-1] == '"' and not escaped
        elif char in "\"'" and (len(awaited) > 1 or not text[start:at].strip()):
            awaited.append(char)  # elsewhere it is an apostrophe
        elif char in _OPENING:
            awaited.append(_OPENING[char])
        elif char == awaited[-1]:
            awaited.pop()
        elif char == "," and len(awaited) == 1:
            parts.append(text[start:at])
            start = at + 1
    if len(awaited) > 1:
        cause = f"{text[start:].strip()} opens a bracket or quotes and does not close them"
        cure = (
            f"""add {awaited[-1]} at the end, and put the whole in single quotes: '{key}=["a"]'"""
        )
        raise ConfigError([Problem(key, cause, cure)])
    return [*parts, text[start:]]


def _value(key: str, text: str) -> Value:
    if not text.strip():
        cause = "there is an empty value in its list"
        cure = f"""leave no comma too many: {key}=a,b; an empty text is written ''"""
        raise ConfigError([Problem(key, cause, cure)])
    pairs, problems = assignments([f"{key}={text.strip()}"], "train.lr=0.1,0.05")
    if problems:
        raise ConfigError(problems)
    return Value(pairs[0][1], text.strip())


def _problems(axes: Sequence[Axis]) -> Iterator[Problem]:
    for key, times in Counter(axis.key for axis in axes).items():
        if times > 1:
            cause = "this setting is given more than once"
            yield Problem(key, cause, f"give all its values at once: --set {key}=A,B")
    for axis in axes:
        if not axis.values:
            yield Problem(axis.key, "there is no value to try", "give at least one")
        labels = Counter(value.label for value in axis.values)
        if twice := [label for label, times in labels.items() if times > 1]:
            yield Problem(axis.key, f"named twice: {', '.join(twice)}", "name each value once")
        if len(axis.values) > 1 and axis.key in _FIXED:
            yield Problem(axis.key, *_FIXED[axis.key])
    total = 1
    for axis in axes:
        total *= max(1, len(axis.values))
    if total > MOST_RUNS:
        yield _too_many(total)


def _too_many(runs: int) -> Problem:
    cause = f"these are {runs:,} runs; a sweep has at most {MOST_RUNS:,}"
    return Problem("grid", cause, "try fewer values at once")


def _short(keys: Sequence[str]) -> dict[str, str]:
    """What stands before each key's value in a label: nothing for the name of a part, else the last
    part of the key, if no other key ends with it."""
    ends = Counter(key.rpartition(".")[2] for key in keys)
    found = {}
    for key in keys:
        section, _, last = key.rpartition(".")
        alone = not section or last == "name"
        found[key] = "" if alone else f"{last if ends[last] == 1 else key}="
    return found
