"""Registries: named parts of one kind, found by importing a package, with facts about each."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fedsight.core.errors import ConfigError, FedSightError, Problem
from fedsight.core.settings import Settings


def nearest(word: str, words: Iterable[str]) -> str:
    """A cure that names the closest known word, or all of them when none is close."""
    known = sorted(words)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"


T = TypeVar("T", bound=Settings)


@dataclass
class Registry(Generic[T]):
    """Holds the classes of one kind (algorithms, sources, ...) by name.

    The modules of `package` register themselves when first imported, which happens on first
    use: a new part costs one file in that package and nothing else.
    """

    kind: str
    package: str
    _classes: dict[str, type[T]] = field(default_factory=dict)
    _facts: dict[str, dict[str, str]] = field(default_factory=dict)
    _loaded: bool = False

    def add(self, name: str, **facts: str) -> Callable[[type[T]], type[T]]:
        """Class decorator: register under `name` with `facts` (source, licence, ...).

        Raises FedSightError if the name is taken.
        """

        def register(cls: type[T]) -> type[T]:
            if name in self._classes:
                raise FedSightError(
                    f"two {self.kind}s are called '{name}'", "give one of them another name"
                )
            cls.registered = name
            self._classes[name] = cls
            self._facts[name] = {"about": (cls.__doc__ or "").strip().split("\n")[0], **facts}
            return cls

        return register

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._classes)

    def get(self, name: str) -> type[T]:
        """The class called `name`; ConfigError with the nearest match if there is none."""
        self._load()
        if name not in self._classes:
            cause = f"there is no {self.kind} '{name}'"
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
