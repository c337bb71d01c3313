"""Reads a program from a TOML file and reports every problem at once, each with its cure."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsight.aggregation.base import aggregations
from fedsight.algorithms.base import algorithms
from fedsight.compression.settings import Codecs
from fedsight.core.errors import ConfigError, Problem
from fedsight.core.registry import Registry, closest, nearest
from fedsight.core.settings import Settings, assignments, problems_of
from fedsight.data.base import sources
from fedsight.data.partition import splits
from fedsight.data.public import Public
from fedsight.data.shift import Shift
from fedsight.models.adapters.base import adapters
from fedsight.models.base import models
from fedsight.participation.base import participations
from fedsight.participation.timing import Timing
from fedsight.privacy.base import mechanisms
from fedsight.privacy.secure import Secure
from fedsight.program import plugins, public, taking_part
from fedsight.program.misread import (
    NAME_FIRST,
    OWN_FILE,
    architecture_cure,
    not_read,
    not_toml,
    placed_cure,
    renamed_cure,
    value_for_section,
)
from fedsight.program.objects import OWN
from fedsight.program.parts import BASES, OWN_PARTS, absent, adopt
from fedsight.program.program import Program, Speed
from fedsight.program.rounds import Rounds
from fedsight.program.train import Train
from fedsight.program.trust import Trust
from fedsight.tasks.base import tasks

ConfigTable = dict[str, Any]

# Each section is one settings class, or a registry and the default name.
SECTIONS: dict[str, type[Settings] | tuple[Registry[Any], str | None]] = {
    "data": (sources, None),
    "split": (splits, "iid"),
    "shift": Shift,
    "model": (models, "small_cnn"),
    "adapter": (adapters, "none"),
    "task": (tasks, "classify"),
    "algorithm": (algorithms, "fedavg"),
    "start": (algorithms, None),
    "finish": (algorithms, None),
    "public": Public,
    "train": Train,
    "rounds": Rounds,
    "participation": (participations, "uniform"),
    "timing": Timing,
    "privacy": (mechanisms, "none"),
    "secure": Secure,
    "aggregation": (aggregations, "mean"),
    "codec": Codecs,
    "trust": Trust,
    "speed": Speed,
}
# sections without which the program has no such part
OPTIONAL = frozenset({"start", "finish", "public"})
KEYS = ("name", "seed", "plugins", *SECTIONS)  # of a config file's top level


def load(path: Path, sets: Sequence[str] = (), files: Sequence[Path] = ()) -> tuple[Program, Speed]:
    """The program and the speed settings in the file at `path`, changed by `key=value` sets.

    Relative paths in the file start at its folder. `files` are plug-ins besides those
    that the file names, relative to the current folder. Raises ConfigError with every problem.
    """
    table = plugged(change(read(path), sets), files)
    return parse(table, path.resolve().parent, path.stem)


def plugged(table: ConfigTable, files: Sequence[str | os.PathLike[str]]) -> ConfigTable:
    """`table` with the plug-ins `files`, relative to the current folder, added to its own."""
    if not files:
        return table
    given = table.get("plugins", [])
    own = given if isinstance(given, list) else [given]
    given = [Path.cwd() / one if isinstance(one, str | os.PathLike) else one for one in files]
    return {**table, "plugins": [*own, *given]}


def read(path: Path) -> ConfigTable:
    """The tables of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([Problem("config", *not_read(path, error))]) from None
    except (ValueError, RecursionError) as error:  # too long a number and too deep a list too
        raise ConfigError([Problem("config", *not_toml(path, error))]) from None


def example(
    name: str, sets: Sequence[str] = (), files: Sequence[Path] = ()
) -> tuple[Program, Speed]:
    """A built-in example; `sets` and `files` are as for `load`. ConfigError lists the examples."""
    folder = resources.files("fedsight.program") / "examples"
    known = [item.name.removesuffix(".toml") for item in folder.iterdir() if item.name[0] != "_"]
    if name not in known:
        cause = f"there is no example '{name}'"
        raise ConfigError([Problem("--example", cause, nearest(name, known))])
    table = tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8"))
    return parse(plugged(change(table, sets), files), Path.cwd(), name)


def change(table: ConfigTable, sets: Sequence[str]) -> ConfigTable:
    """`table` with each `section.key=value` applied; a value that is not TOML is a string."""
    pairs, problems = assignments(sets, "train.lr=0.1")
    for key, value in pairs:
        try:
            assign(table, key, value)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return table


def assign(table: ConfigTable, key: str, value: Any) -> None:
    """Set the dotted `key`; ConfigError if what should be a section is a value."""
    *folders, last = key.split(".")
    place = table
    for folder in folders:
        inner = place.setdefault(folder, {})
        if not isinstance(inner, dict):
            cause = f"'{folder}' in '{key}' is a value, not a section"
            raise ConfigError([Problem("--set", cause, "name the value itself")])
        place = inner
    place[last] = value


def parse(table: ConfigTable, base: Path, name: str = "run") -> tuple[Program, Speed]:
    """The program and the speed settings in `table`; ConfigError carries every problem.

    Relative paths start at the folder `base`; `name` is the run's name if the table has none.
    A section may also be a part object, as in Python code.
    """
    code = plugins.parse(table.get("plugins", []), base)
    if missing := absent(code):  # without them, the following checks would report their names
        raise ConfigError(missing)
    problems = unknown(table, KEYS, "")
    sections: dict[str, Any] = {}
    for key, kind in SECTIONS.items():
        values = table.get(key, {})
        if key in OPTIONAL and not values:
            continue
        if isinstance(values, _kind(kind)):
            sections[key] = values
            continue
        if not isinstance(values, dict):
            named = None
            if isinstance(values, str) and isinstance(kind, tuple):
                named = architecture_cure(values) if key == "model" else None
                named = named or f"name = {values!r}"
            problems.append(Problem(key, *value_for_section(key, values, named)))
            continue
        try:
            sections[key] = section(key, kind, values, base)
        except ConfigError as error:
            problems += error.problems
    seed, title = table.get("seed", 0), table.get("name", name)
    if type(seed) is not int:
        problems.append(Problem("seed", f"{seed!r} is not a whole number", "write seed = 0"))
    if not isinstance(title, str):
        problems.append(Problem("name", f"{title!r} is not a string", 'write name = "my run"'))
    elif not title.strip(". ") or "/" in title or "\0" in title:  # it may become a folder's name
        cause = f"{title!r} cannot be the name of a folder"
        problems.append(Problem("name", cause, 'write name = "my run"'))
    if problems:
        raise ConfigError(problems)
    parts = [part for key, part in sections.items() if isinstance(SECTIONS[key], tuple)]
    parts += [*sections["train"].augment, *sections["codec"].steps]
    if "public" in sections and sections["public"].source is not None:
        parts.append(sections["public"].source)
    own = [adopt(part) for part in parts]
    code = tuple(dict.fromkeys([*code, *(plugin for plugin in own if plugin is not None)]))
    speed = sections.pop("speed")
    return Program(title, seed, **sections, plugins=code), speed


def _kind(kind: type[Settings] | tuple[Registry[Any], str | None]) -> type[Settings]:
    """The class of a section's settings."""
    return BASES[kind[0].kind] if isinstance(kind, tuple) else kind


def check(program: Program, speed: Speed) -> None:
    """Raise ConfigError with all problems that can be found without reading data."""
    problems = [*program.check(), *taking_part.simulated(program), *speed.check()]
    if problems:
        raise ConfigError(problems)


def check_elsewhere(program: Program, speed: Speed, sites: int | None = None) -> None:
    """As `check`, but ignoring the location of the images, which only the sites know; there are
    so many `sites`, if that is known."""
    problems = [*program.check_elsewhere(sites), *speed.check()]
    problems = [found for found in problems if not found.where.startswith("data.")]
    if program.start is not None:
        cause = "a federation runs one algorithm in a job"
        cure = (
            f"first run it with algorithm.name = '{program.start.registered}', and then without "
            "[start] and with model.weights = the model.safetensors of that run"
        )
        problems.append(Problem("start", cause, cure))
    if program.finish is not None:
        cause = "a federation runs one algorithm in a job"
        cure = (
            "leave out [finish], and run a job with algorithm.name = "
            f"'{program.finish.registered}' and model.weights = the model.safetensors of this one"
        )
        problems.append(Problem("finish", cause, cure))
    if program.rounds.compared:
        cause = (
            "no validation figures leave the sites of a federation, and no round may be chosen by "
            "those of their test images"
        )
        cure = "leave it out; how many rounds are enough can be tried in a simulation"
        problems.append(Problem(program.rounds.comparing, cause, cure))
    problems += taking_part.elsewhere(program)
    problems += public.elsewhere(program)
    if program.rounds.validation:
        cause = "the sites of a federation are measured on their test images only"
        cure = "leave it out: what the sites' owners set aside for validation stays at the sites"
        problems.append(Problem("rounds.validation", cause, cure))
    if problems:
        raise ConfigError(problems)


def section(
    section: str,
    kind: type[Settings] | tuple[Registry[Any], str | None],
    values: ConfigTable,
    base: Path,
) -> Settings:
    """The settings of one section; `kind` is as in `SECTIONS`. Raises ConfigError with every
    problem."""
    if not isinstance(values, Mapping):  # `[[contract]]` too
        raise ConfigError([Problem(section, *value_for_section(section, values, None))])
    values = dict(values)
    if isinstance(kind, tuple):
        registry, default = kind
        name = values.pop("name", default)
        if not isinstance(name, str):
            cause = (
                f"the {registry.kind} has no name" if name is None else f"{name!r} is not a name"
            )
            cure = f"write name = one of: {', '.join(registry.names())}"
            raise ConfigError([Problem(f"{section}.name", cause, cure)])
        try:
            kind = OWN_PARTS[section] if name == OWN else registry.get(name)
        except KeyError:
            cause = f"'{OWN}' stands for an object from Python, and none was given for {section}"
            raise ConfigError([Problem(f"{section}.name", cause, "name a part")]) from None
        except ConfigError as error:
            found = error.problems[0]
            network = architecture_cure(name) if section == "model" else None
            cure = network or f"{found.cure}; {OWN_FILE}"
            raise ConfigError([Problem(f"{section}.name", found.cause, cure)]) from None
    problems = unknown(values, list(kind.model_fields), f"{section}.")
    problems = [
        replace(one, cure=NAME_FIRST) if one.where == "model.architecture" else one
        for one in problems
    ]
    known = {key: value for key, value in values.items() if key in kind.model_fields}
    try:
        settings = kind.model_validate(known)
    except ValidationError as error:
        problems += problems_of(section, kind, error)
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    return settings.anchored(base)


def unknown(values: Mapping[str, Any], known: Sequence[str], prefix: str) -> list[Problem]:
    """A problem for each key of `values` that is not in `known`, naming the nearest known key."""
    problems = []
    for key in map(str, values):
        if key not in known:
            cure = nearest(key, known)
            if key in SECTIONS or closest(key, known) is None:
                homes = {name: _settings(kind) for name, kind in SECTIONS.items()}
                at_top = {"": ("name", "seed", "plugins")}
                cure = placed_cure(key, prefix.rstrip("."), {**homes, **at_top}) or cure
            cure = renamed_cure(key) or cure
            problems.append(Problem(f"{prefix}{key}", "there is no such setting", cure))
    return problems


def _settings(kind: type[Settings] | tuple[Registry[Any], str | None]) -> Collection[str]:
    """The settings of a section that has no parts to choose from."""
    return () if isinstance(kind, tuple) else kind.model_fields
