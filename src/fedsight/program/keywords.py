"""A program from Python: a config file, keyword tables, and the user's own objects."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import nn
from torch.utils.data import Dataset

from fedsight.core.errors import ConfigError, Problem
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings, problems_of
from fedsight.program import config, objective, objects, plugins
from fedsight.program.parts import BASES, adopt
from fedsight.program.program import Program, Speed
from fedsight.program.sites import OwnData

Config = str | os.PathLike[str] | Mapping[str, Any] | Program


def read(
    given: Config | None,
    overrides: Mapping[str, Any],
    workers: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> tuple[Program, Speed]:
    """The program and the speed settings from `given` and `overrides`, changed by `changes`.

    `given` is the path of a TOML file, a mapping as such a file has it, or a program. Each override
    is a top-level key: a table that adds to the file's (or replaces it, if it names another part),
    the name of a part, a part, or an object of the user. The keys of `changes` may be dotted, as in
    `--set`. Raises ConfigError with every problem.
    """
    table, base, name = _start(given)
    problems: list[Problem] = []
    for layer in [given, overrides] if isinstance(given, Mapping) else [overrides]:
        problems += config.unknown(layer, config.KEYS, "")
        for key, value in layer.items():
            try:
                table[key] = _value(key, value, table.get(key))
            except ConfigError as error:
                problems += error.problems
    for key, value in (changes or {}).items():
        try:
            _change(table, key, value)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    if workers is not None:
        table["speed"] = _merged(table.get("speed"), {"workers": workers})
    if isinstance(table.get("data"), OwnData):
        table.setdefault("split", {"name": "natural"})
    return config.parse(table, base, name)


def _change(table: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, or a section as an override does."""
    section, dot, _ = key.partition(".")
    before = table.get(section)
    if not dot:
        table[section] = _value(section, value, before)
        return
    if isinstance(before, Settings):
        before = before.table()
    if isinstance(before, Mapping):
        table[section] = copy.deepcopy(dict(before))  # it may be the caller's own
    if isinstance(value, np.integer | np.floating):
        value = value.item()
    config.assign(table, key, value)


def own(given: Mapping[str, Any]) -> list[Any]:
    """Register the user's objects by their hash, so that `run.toml` can refer to them.

    `given` are keywords as for `read`. They stay registered as long as the result is kept. Raises
    ConfigError for a keyword that does not accept an object.
    """
    problems = config.unknown(given, config.KEYS, "")
    kept: list[Any] = []
    for key, value in given.items():
        try:
            part = _value(key, value, None)
        except ConfigError as error:
            problems += error.problems
            continue
        if key == "plugins":
            part = plugins.parse(part, Path.cwd())
        elif isinstance(part, Settings) and isinstance(config.SECTIONS[key], tuple):
            adopt(part)
        kept.append(part)
    if problems:
        raise ConfigError(problems)
    return kept


def _start(given: Config | None) -> tuple[dict[str, Any], Path, str]:
    """The tables before any override, the folder of relative paths, and the name."""
    if given is None or isinstance(given, Mapping):
        return {}, Path.cwd(), "run"
    if isinstance(given, Program):
        table = {item.name: getattr(given, item.name) for item in fields(given)}
        return table, Path.cwd(), given.name
    if not isinstance(given, str | os.PathLike):
        cause = f"expected the path of a config file, a mapping or a Program, got {given!r:.80}"
        cure = 'write for example fedsight.run("my.toml", seed=1)'
        raise ConfigError([Problem("config", cause, cure)])
    path = Path(given)
    return config.read(path), path.resolve().parent, path.stem


def _value(key: str, value: Any, before: Any) -> Any:
    """The value of a top-level key after an override; it was `before`."""
    if isinstance(value, np.integer | np.floating):  # as loops over arrays give them
        value = value.item()
    if key == "plugins":
        files = [value] if isinstance(value, str | os.PathLike) else value
        if not isinstance(files, Sequence):
            cause = f"expected a list of files, got {value!r:.80}"
            raise ConfigError([Problem("plugins", cause, 'write plugins=["my_parts.py"]')])
        # Paths in a file are relative to its folder, these to the current folder.
        return config.plugged({"plugins": before or []}, files)["plugins"]
    if key not in config.SECTIONS:
        return value
    kind = config.SECTIONS[key]
    if isinstance(value, type) and issubclass(value, Settings):
        value = _instance(key, value)
    if isinstance(value, Settings):
        return _checked(key, kind, value)
    inner: Iterable[Any] = value.values() if isinstance(value, Mapping) else [value]
    if isinstance(value, list | tuple):
        inner = value
    if any(isinstance(one, Dataset) for one in inner):
        cause, cure = "a data set belongs to a site", 'write data=fedsight.sites({"lyon": dataset})'
        raise ConfigError([Problem(key, cause, cure)])
    if isinstance(value, Mapping):
        return _merged(before, value)
    if isinstance(value, str) and isinstance(kind, tuple):
        return _merged(before, {"name": value})
    if key == "rounds" and type(value) is int:
        return _merged(before, {"rounds": value})
    if key == "model" and (isinstance(value, nn.Module) or callable(value)):
        return objects.model(value)
    if key == "task" and callable(value):
        return objective.task(loss=value)
    cure = f"write {key}={{...}} as in a config file"
    if isinstance(kind, tuple):
        cure += ", the name of a part, or a part"
    raise ConfigError([Problem(key, f"expected settings, got {value!r:.80}", cure)])


def _instance(key: str, cls: type[Settings]) -> Settings:
    try:
        return cls()
    except ValidationError as error:
        raise ConfigError(problems_of(key, cls, error)) from None
    except TypeError as error:  # abstract methods are missing
        cure = "write the methods that are missing"
        raise ConfigError([Problem(key, f"{cls.__name__}: {error}", cure)]) from None


def _checked(
    key: str, kind: type[Settings] | tuple[Registry[Any], str | None], value: Settings
) -> Settings:
    wanted = BASES[kind[0].kind] if isinstance(kind, tuple) else kind
    if not isinstance(value, wanted):
        cause = f"expected a {wanted.__name__}, got a {type(value).__name__}"
        raise ConfigError([Problem(key, cause, f"give {key} what it is for")])
    return value


def _merged(before: Any, added: Mapping[str, Any]) -> dict[str, Any]:
    """`before` updated with `added`; only `added` if it names another part."""
    if isinstance(before, Settings):
        before = before.table()
    if not isinstance(before, Mapping):
        return dict(added)
    if "name" in added and added["name"] != before.get("name", added["name"]):
        return dict(added)
    return {**before, **added}
