"""Names of classes in a site's files, read as those of the federation's vocabulary.

A clinic writes `MM`, another `melanoma`. A map says that they are one class. What a map gets wrong
is found before training: two meanings in one class that nobody said is a merge, a class that the
vocabulary does not have, a name that the map forgets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedsight.core.errors import DataError, Problem
from fedsight.core.registry import nearest
from fedsight.data.base import Source
from fedsight.data.by_site import Classes, ClassMap, ClassName, at, check_sites, classes_of
from fedsight.data.class_names import (
    SITES,
    Similar,
    key,
    settled_names,
    shown,
    stands_for_nothing,
    used,
)


@dataclass(frozen=True)
class Name:
    """One use of a name: at which site, and where it is written."""

    label: str
    site: str | None = None
    place: str = ""


class MappedClasses(Source):
    """A source whose files name classes, and how these names become the vocabulary's."""

    # the class that a name in the files stands for: {MM = "melanoma"}, or such a table for each
    # site; names that are not in it stand for themselves
    class_map: ClassMap | None = None
    # classes that several names of a site are meant to become: a list, or a list for each site
    merged: Classes | None = None
    # the class of names that neither the map nor data.classes has: one, or one for each site;
    # None: they are refused
    unknown_class: ClassName | None = None

    @property
    def naming(self) -> Naming:
        """How names are read."""
        similar: Similar = getattr(self, "similar_sites", "error")
        return Naming(self.class_map, self.merged, self.unknown_class, similar)

    def mapped(
        self, names: Sequence[str] | None, sites: Iterable[str | None]
    ) -> tuple[str, ...] | None:
        """The vocabulary `names` of the files themselves, with the classes that a map names.

        A name gives way to those that it is read as if the map of every one of `sites`, those of
        all images, has it: elsewhere it stands for itself. Raises DataError as `Naming.spelt` does.
        """
        if names is None or self.class_map is None:
            return None if names is None else tuple(dict.fromkeys(names))
        found: set[str | None] = {*self.naming.spelt((site, "") for site in sites).values()}
        tables = [dict(at(self.class_map, site) or ()) for site in found or {None}]
        pairs = [pair for _, own in self.class_map for pair in own]
        classes: list[str] = []
        for name in names:
            read = [to for label, to in pairs if label == name]
            gone = all(name in table for table in tables)
            classes += read if gone else [name]
        return tuple(dict.fromkeys([*classes, *(to for _, to in pairs)]))

    def check(self) -> list[Problem]:
        """Problems of every source, and what can be said of the map without reading files."""
        return [*super().check(), *self.naming.problems(getattr(self, "classes", None))]


@dataclass(frozen=True)
class Naming:
    """The map of each site, what it merges, and what becomes of unknown names."""

    maps: ClassMap | None = None
    merged: Classes | None = None
    unknown: ClassName | None = None
    similar_sites: Similar = "error"  # whether `Lyon` and `lyon` are one site

    @property
    def plain(self) -> bool:
        """Whether names are read as they are written."""
        return self.maps is None and self.unknown is None

    def problems(self, classes: Sequence[str] | None) -> Iterator[Problem]:
        """Two meanings in one class, classes that the vocabulary does not have, and a merge of
        names where none are mapped."""
        if self.merged is not None and self.plain:
            cause = "there is no data.class_map, so no names become one class"
            yield Problem("data.merged", cause, "add data.class_map, or leave data.merged out")
            return
        for site, pairs in self.maps or ():
            yield from self._unlisted(pairs, classes)
            yield from self._doubled(site, dict(pairs), classes or ())
        named = {"unknown_class": [name for _, name in self.unknown or ()]}
        named["merged"] = classes_of(self.merged)
        for setting, names in named.items():
            for name in names:
                if classes is not None and name not in classes:
                    cause = f"'{name}' is not in data.classes"
                    yield Problem(f"data.{setting}", cause, nearest(name, classes))

    def _unlisted(
        self, pairs: Iterable[tuple[str, str]], classes: Sequence[str] | None
    ) -> Iterator[Problem]:
        for label, name in pairs:
            if classes is not None and name not in classes:
                cause = f"{shown(label)} is read as '{name}', which is not in data.classes"
                yield Problem("data.class_map", cause, nearest(name, classes))

    def _doubled(
        self, site: str, table: Mapping[str, str], classes: Sequence[str]
    ) -> Iterator[Problem]:
        """Names with different meanings that one class gets, without being called merged."""
        for name in dict.fromkeys(table.values()):
            if name in (at(self.merged, site) or ()):
                continue
            labels = [label for label, found in table.items() if found == name]
            cure = (
                f"if both mean '{name}', say so with data.merged = [\"{name}\"]; if not, correct "
                "data.class_map"
            )
            first, others = labels[0], [one for one in labels if key(one) != key(labels[0])]
            if others:
                cause = f"{shown(first)} and {shown(others[0])} are both read as '{name}'"
                yield Problem("data.class_map", cause, cure)
                continue
            taken = [one for one in labels if one in classes and one != name]
            if taken and name not in table:
                cause = f"{shown(taken[0])} is a class itself, and is read as '{name}'"
                yield Problem("data.class_map", cause, cure)

    def read(
        self,
        names: Sequence[Name],
        classes: Sequence[str] | None,
        similar: Similar,
        things: str = "images",
    ) -> tuple[list[str], tuple[str, ...]]:
        """The class that each name stands for, as the map says, and what to say about it.

        A name that differs from one of the map only in case, blanks or the like is refused unless
        `similar` is "merge" or "keep". Raises DataError as well for a site that is not there, and
        for two meanings in one class that is not among the merged.
        """
        if problem := next(self.problems(classes), None):
            raise DataError(f"{problem.where}: {problem.cause}", problem.cure)
        if self.plain:
            return [name.label for name in names], ()
        spelt = self.spelt(((name.site, name.place) for name in names), things)
        names = [one if one.site is None else replace(one, site=spelt[one.site]) for one in names]
        sites = {name.site for name in names if name.site is not None}
        settings = {"class_map": self.maps, "merged": self.merged, "unknown_class": self.unknown}
        for setting, pairs in settings.items():
            check_sites(pairs, setting, sites)
        readers: dict[str | None, _Reader] = {}
        found = []
        for name in names:
            if name.site not in readers:
                table, unknown = at(self.maps, name.site), at(self.unknown, name.site)
                readers[name.site] = _Reader(dict(table or ()), unknown, classes, similar, things)
            found.append(readers[name.site].read(name))
        notes: list[str] = []
        for site in sorted(readers, key=lambda site: site or ""):
            readers[site].check_merged(site, at(self.merged, site) or ())
            notes += readers[site].notes(site)
        return found, tuple(notes)

    def meant(self, names: Sequence[Name], similar: Similar) -> list[str]:
        """What each name means by the map, and by `similar`, alone.

        A program chooses the vocabulary, and so which names are unknown, and by which of its
        spellings a class is called. What is decided about images must not follow from that.
        """
        spelt = self.spelt((name.site, name.place) for name in names) if self.maps else {}
        loose: Similar = "keep" if similar == "keep" else "merge"
        readers: dict[str | None, _Reader] = {}
        known: dict[tuple[str | None, str], str] = {}
        for name in names:
            if (name.site, name.label) in known:
                continue
            if name.site not in readers:
                table = at(self.maps, spelt.get(name.site or "", name.site))
                readers[name.site] = _Reader(dict(table or ()), None, None, loose, "")
            known[name.site, name.label] = readers[name.site].read(name)
        alike: dict[str, str] = {}  # of names that are one: the first
        for word in sorted(set(known.values())) if loose == "merge" else ():
            alike.setdefault(key(word), word)
        chosen = {word: alike.get(key(word), word) for word in set(known.values())}
        return [chosen[known[name.site, name.label]] for name in names]

    def spelt(
        self, sites: Iterable[tuple[str | None, str]], things: str = "images"
    ) -> Mapping[str, str]:
        """The spelling of each site, from pairs of its name and the place where it is written.

        It is the one that the data set gets, so that a map by site holds for every spelling. Raises
        DataError as `settled_names` does.
        """
        named = used((site, place) for site, place in sites if site is not None)
        return settled_names(named, None, self.similar_sites, things, SITES)[0]


@dataclass
class _Reader:
    """The names of one site, and what they were read as."""

    table: Mapping[str, str]
    unknown: str | None
    classes: Sequence[str] | None
    similar: Similar
    things: str
    uses: Counter[tuple[str, str]] = field(default_factory=Counter)  # of (label, class)

    def __post_init__(self) -> None:
        self._known = set(self.classes or ())
        self._spelt = {key(name) for name in self._known}
        self._alike = {key(label): label for label in reversed(list(self.table))}

    def read(self, name: Name) -> str:
        found = self._read(name)
        self.uses[name.label, found] += 1
        return found

    def _read(self, name: Name) -> str:
        label = name.label
        if label in self.table:
            return self.table[label]
        if label in self._known:
            return label
        if self.similar != "keep" and (other := self._alike.get(key(label))) is not None:
            if self.similar == "error":
                at = f"{name.place}: " if name.place else ""
                raise DataError(
                    f"{at}{shown(label)} is nearly equal to {shown(other)} in data.class_map",
                    "rename one, add it to the map, or set data.similar_names = 'merge'",
                )
            return self.table[other]
        if self.unknown is None or self.classes is None or stands_for_nothing(label):
            return label
        spelt = self.similar != "keep" and key(label) in self._spelt
        return label if spelt else self.unknown

    def check_merged(self, site: str | None, merged: Sequence[str]) -> None:
        """DataError for a class that gets names with two meanings and is not called merged."""
        given: dict[str, dict[str, str]] = {}  # by class: the first name of each meaning
        for label, name in self.uses:
            if label in self.table or key(label) in self._alike or key(label) == key(name):
                given.setdefault(name, {}).setdefault(key(label), label)
        for name, labels in given.items():
            if len(labels) > 1 and name not in merged:
                one, other = list(labels.values())[:2]
                where = f" at site '{site}'" if site else ""
                counts = [self.uses[label, name] for label in (one, other)]
                raise DataError(
                    f"{shown(one)} ({counts[0]} {self.things}) and {shown(other)} "
                    f"({counts[1]} {self.things}) become the class '{name}'{where}, which "
                    "nobody called a merge",
                    f"if both mean '{name}', say so with data.merged = [\"{name}\"]; if not, "
                    "correct data.class_map",
                )

    def notes(self, site: str | None) -> Iterator[str]:
        """Which names were read as another, and those of the map that no image has."""
        where = f" at site '{site}'" if site else ""
        for (label, name), count in sorted(self.uses.items()):
            if label != name:
                yield f"{shown(label)} ({count} {self.things}{where}) is read as {shown(name)}"
        seen = {key(label) for label, _ in self.uses}
        for label in self.table:
            if key(label) not in seen:
                yield f"data.class_map has {shown(label)}, a name that no image{where} has"
