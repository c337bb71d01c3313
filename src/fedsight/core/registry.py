"""Registries of named parts of one kind, found by importing a package, with facts about each."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Generic, TypeVar

from fedsight.core.errors import ConfigError, FedSightError, Problem
from fedsight.core.settings import Settings

ENTRY_POINTS = "fedsight.parts"  # entry-point group of installed packages that provide parts


def closest(word: str, words: Iterable[str]) -> str | None:
    """The known word that `word` may be a misspelling of; None if there is no close one."""
    return next(iter(difflib.get_close_matches(word, sorted(words), n=1, cutoff=0.6)), None)


def nearest(word: str, words: Iterable[str]) -> str:
    """A cure that names the closest known word, or all known words if there is no close one."""
    known = sorted(words)
    close = closest(word, known)
    return f"did you mean '{close}'?" if close else f"known: {', '.join(known)}"


T = TypeVar("T", bound=Settings)


@dataclass(frozen=True)
class Added:
    """A registration: which registry, which name, and the class."""

    registry: Registry[Any]
    name: str
    cls: type[Settings]
    facts: Mapping[str, str]


# Every registration in this process, in order: tells a plug-in's loader what a file added.
LOG: list[Added] = []


@dataclass(eq=False)
class Registry(Generic[T]):
    """Holds the classes of one kind (algorithms, sources, ...) by name.

    The modules of `package` register themselves when first imported, which happens on first
    use: a new part takes one file in that package and nothing else. Installed packages add parts
    through the entry points of the group `fedsight.parts`, also on first use.
    """

    kind: str
    package: str
    _classes: dict[str, type[T]] = field(default_factory=dict)
    _facts: dict[str, dict[str, str]] = field(default_factory=dict)
    _loaded: bool = False

    def add(self, name: str, **facts: str) -> Callable[[type[T]], type[T]]:
        """Class decorator: register under `name` with `facts` (source, licence, ...).

        A class that is defined again (a notebook cell, a reloaded module) replaces the earlier one.
        Raises FedSightError if the name is taken.
        """

        def register(cls: type[T]) -> type[T]:
            if not cls.__module__.startswith("fedsight."):
                self._load()  # so that a clash with a built-in part is reported for this class
            taken = self._classes.get(name)
            if taken is not None and not _redefined(taken, cls):
                raise FedSightError(
                    f"two {self.kind}s are called '{name}': {_place(taken)} and {_place(cls)}",
                    "give one of them another name",
                )
            cls.registered = name
            self._classes[name] = cls
            self._facts[name] = {"about": (cls.__doc__ or "").strip().split("\n")[0], **facts}
            LOG.append(Added(self, name, cls, facts))
            return cls

        return register

    def remove(self, name: str) -> None:
        """Remove `name`, if it is registered."""
        self._classes.pop(name, None)
        self._facts.pop(name, None)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._classes)

    def get(self, name: str) -> type[T]:
        """The class called `name`; ConfigError with the nearest match if there is none."""
        self._load()
        if name not in self._classes:
            cause = f"there is no {self.kind} '{name}'"
            if BROKEN:
                failed = "; ".join(f"{package}: {why}" for package, why in BROKEN.items())
                cause += f" (installed packages whose parts could not be loaded: {failed})"
            raise ConfigError([Problem(self.kind, cause, nearest(name, self._classes))])
        return self._classes[name]

    def facts(self, name: str) -> dict[str, str]:
        """What is known of `name`: at least `about`, the first line of its docstring."""
        self.get(name)
        return self._facts[name]

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self.package)
        for module in pkgutil.walk_packages(package.__path__, f"{self.package}."):
            importlib.import_module(module.name)
        _load_entry_points()


BROKEN: dict[str, str] = {}  # entry points that could not be loaded, and why
_entry_points_loaded: list[bool] = []  # not empty once the entry points have been loaded


def _load_entry_points() -> None:
    """Import the `fedsight.parts` entry points of installed packages, once per process.

    One that fails is recorded in BROKEN, and the others are still loaded.
    """
    if _entry_points_loaded:
        return
    _entry_points_loaded.append(True)
    for point in metadata.entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:  # third-party code: anything may be raised
            package = point.dist.name if point.dist else point.value
            text = error.cause if isinstance(error, FedSightError) else str(error)
            BROKEN[f"{package} ({point.name})"] = f"{type(error).__name__}: {text}"


def _redefined(old: type, new: type) -> bool:
    """Whether `new` is a redefinition of the class `old`."""
    return (new.__module__, new.__qualname__) == (old.__module__, old.__qualname__)


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
