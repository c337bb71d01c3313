"""Plug-ins: Python files outside the package whose parts a program uses, told apart by their hash.

A plug-in is one file that registers at least one part (`fedsight.register`). Its content is part
of a program's fingerprint, and worker processes get the content that was hashed, not the path. At
any time, the parts of one program's plug-ins are registered: those of the program read last.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fedsight.core.errors import ConfigError, FedSightError, Problem
from fedsight.core.files import content
from fedsight.core.registry import LOG, Added

if TYPE_CHECKING:
    from fedsight.program.program import Program

PREFIX = "fedsight_plugin_"  # of the names that plug-ins have as modules


@dataclass(frozen=True)
class Plugin:
    """Code from outside the package that a program uses: a file, or a class given from Python."""

    title: str  # the file's name, or what the class is, such as "algorithm MyAlgorithm"
    sha256: str  # of the file's bytes, or of the class's code (`fingerprints.digest`)
    path: Path | None = None  # None: a class given from Python

    def table(self) -> dict[str, str]:
        """As `run.toml` holds it."""
        place = {"title": self.title} if self.path is None else {"path": str(self.path)}
        return {**place, "sha256": self.sha256}


@dataclass(frozen=True)
class Code:
    """The content of a plug-in file, as it was read."""

    path: Path
    source: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(self.source).hexdigest()

    @property
    def module(self) -> str:
        """The name under which it is imported: another content is another module."""
        stem = "".join(char if char.isalnum() else "_" for char in self.path.stem)
        return f"{PREFIX}{stem}_{self.sha256[:12]}"


@dataclass
class _Imported:
    """A plug-in that this process has imported, and what it registered."""

    code: Code
    added: tuple[Added, ...]
    active: bool = True


_IMPORTED: dict[str, _Imported] = {}  # by module name


def load(path: Path, expected: str | None = None) -> Plugin:
    """Import the plug-in at `path`, unless this process has, and register its parts.

    Code whose SHA-256 is `expected` will do from any file that this process has imported. Raises
    ConfigError if the file cannot be read or imported, if it registers nothing or a name that is
    taken, or if its SHA-256 is not `expected`.
    """
    path = path.resolve()
    for known in _IMPORTED.values():
        if known.code.sha256 == expected:
            install(known.code)
            return Plugin(path.name, known.code.sha256, path)
    code = _read(path, expected)
    install(code)
    return Plugin(path.name, code.sha256, path)


def _read(path: Path, expected: str | None) -> Code:
    """The content of the file at `path`; ConfigError if it cannot be read, or is another one than
    `expected`."""
    try:
        code = Code(path, content(path))
    except OSError as error:
        cure = "correct the path, or name the file with --plugin (plugins=... in Python)"
        raise _error(f"cannot read {path}: {error.strerror}", cure) from None
    if expected is not None and code.sha256 != expected:
        raise _error(
            f"{path} has changed since the run began: its SHA-256 was {expected[:12]}... and is "
            f"now {code.sha256[:12]}...",
            "restore the file as it was, or start a new run",
        )
    return code


def install(code: Code) -> None:
    """Import `code`, unless this process has, and register its parts; ConfigError as for `load`."""
    known = _IMPORTED.get(code.module)
    if known is not None:
        _activate(known)
        return
    module = ModuleType(code.module)
    module.__file__ = str(code.path)
    sys.modules[code.module] = module
    before = len(LOG)
    try:
        try:
            exec(compile(code.source, str(code.path), "exec"), module.__dict__)
        except (Exception, SystemExit) as error:  # the user's code: anything may be raised
            raise _failed(code.path, error) from error
        _check_added(code)
    except BaseException:
        _remove([one for one in LOG[before:] if one.cls.__module__ == code.module])
        del sys.modules[code.module]
        raise
    added = tuple(one for one in LOG[before:] if one.cls.__module__ == code.module)
    _IMPORTED[code.module] = _Imported(code, added)


def _activate(known: _Imported) -> None:
    if known.active:
        return
    for one in known.added:
        try:
            one.registry.add(one.name, **one.facts)(one.cls)
        except FedSightError as error:
            raise _error(f"{known.code.path}: {error.cause}", error.cure) from None
    known.active = True


def _deactivate() -> None:
    """Take the parts of all plug-ins out of the registries."""
    for known in _IMPORTED.values():
        if known.active:  # else another part may have the name by now
            _remove(known.added)
        known.active = False


def _remove(added: Sequence[Added]) -> None:
    for one in added:
        one.registry.remove(one.name)
        if one in LOG:
            LOG.remove(one)


def _check_added(code: Code) -> None:
    names = [
        f"the {added.registry.kind} '{added.name}'"
        for added in LOG
        if added.cls.__module__ == code.module
    ]
    if not names:
        raise _error(
            f"{code.path} registers no part",
            'decorate a class of yours, for example with @fedsight.register("my-name")',
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _error(f"{code.path} registers {twice} twice", "give one of them another name")


def activate(codes: Sequence[Code]) -> None:
    """Register the parts of these plug-ins, and of no others; ConfigError as for `load`."""
    _deactivate()
    for code in codes:
        install(code)


def loaded() -> tuple[Code, ...]:
    """The plug-ins whose parts are registered, in order: worker processes need the same."""
    return tuple(known.code for known in _IMPORTED.values() if known.active)


def files_of(program: Program) -> tuple[Code, ...]:
    """The plug-in files of `program` as this process imported them, in the order in which it did.

    Whatever program was read since: another process that is to run `program` needs these.
    """
    wanted = {plugin.sha256 for plugin in program.plugins if plugin.path is not None}
    return tuple(known.code for known in _IMPORTED.values() if known.code.sha256 in wanted)


def hashes(program: Program) -> tuple[str, ...]:
    """The SHA-256s of all code from outside the package that `program` runs, sorted.

    Plug-in files, and objects given from Python. A site may compare them with a list of its own.
    """
    found = {plugin.sha256 for plugin in program.plugins}
    for section in (program.data, program.model, program.task):
        digest = getattr(getattr(section, "object", None), "sha256", None)
        if isinstance(digest, str):
            found.add(digest)
    return tuple(sorted(found))


def parse(given: Any, base: Path) -> tuple[Plugin, ...]:
    """What a config file's `plugins` says, imported; relative paths are meant from `base`.

    The parts of these plug-ins are registered then, and those of no others. Raises ConfigError with
    every problem.
    """
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise _error(f"expected a list of files, got {given!r}", 'write plugins = ["my_parts.py"]')
    _deactivate()
    found: list[Plugin] = []
    problems: list[Problem] = []
    for item in given:
        try:
            found.append(_plugin(item, base))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return tuple(dict.fromkeys(found))


def stated(given: Any, base: Path) -> list[dict[str, str]]:
    """The SHA-256s of what a config file's `plugins` says, as sites are told them.

    Nothing is imported. Relative paths are meant from `base`. Raises ConfigError if a file cannot
    be read, or is not the stated one.
    """
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise _error(f"expected a list of files, got {given!r}", 'write plugins = ["my_parts.py"]')
    return [{"sha256": _stated(item, base)} for item in given]


def _stated(item: Any, base: Path) -> str:
    table = item if isinstance(item, dict) else {"path": item}
    if set(table) == {"title", "sha256"}:
        return str(table["sha256"])
    if not {"path"} <= set(table) <= {"path", "sha256"} or not str(table["path"]).strip():
        raise _error(f"expected the path of a Python file, got {item!r}", "give the path of a file")
    return _read(base / str(table["path"]), table.get("sha256")).sha256


def _plugin(item: Any, base: Path) -> Plugin:
    if isinstance(item, Plugin):
        return item if item.path is None else load(item.path, item.sha256)
    if isinstance(item, str | Path) and str(item).strip():
        return load(base / item)
    if isinstance(item, dict) and set(item) == {"path", "sha256"}:
        return load(base / str(item["path"]), str(item["sha256"]))
    if isinstance(item, dict) and set(item) == {"title", "sha256"}:
        return Plugin(str(item["title"]), str(item["sha256"]))
    raise _error(f"expected the path of a Python file, got {item!r}", "give the path of a file")


def _failed(path: Path, error: BaseException) -> ConfigError:
    """What is wrong with a plug-in that cannot be imported, and in which line."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line, why = error.lineno, error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((one.lineno for one in reversed(frames) if one.filename == str(path)), None)
        why = str(error)
    place = f"{path}, line {line}" if line else str(path)
    if isinstance(error, FedSightError):
        return _error(f"{place}: {error.cause}", error.cure or "correct the file")
    return _error(f"{place}: {why} ({type(error).__name__})", "correct the file")


def _error(cause: str, cure: str) -> ConfigError:
    return ConfigError([Problem("plugins", cause, cure)])
