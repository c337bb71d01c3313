"""Assembles a data set from what a source found: labels, sites, the held-out part, checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from fedsight.core.draws import draws
from fedsight.core.errors import DataError
from fedsight.core.registry import nearest
from fedsight.data.base import Dataset, Images, Indices, Part, Preprocess, SizedSource
from fedsight.data.cells import labels_in, refuse_combined
from fedsight.data.class_map import Name, Naming
from fedsight.data.class_names import Similar, ordered, settled_names, used
from fedsight.data.duplicates.alike import joined
from fedsight.data.duplicates.counts import Handling
from fedsight.data.duplicates.handled import handled, looked_for, together
from fedsight.data.groups import Grouped, Overlap, at_two_sites, sentences, straddling
from fedsight.data.images.depth import shallow
from fedsight.data.images.disk import DiskImages, LazyImages, settle
from fedsight.data.parts import NAMES, PartName, settled
from fedsight.data.repeats import listed_once
from fedsight.data.single_draws import are_wanted, held_out_singly
from fedsight.data.site_names import settled_sites, site_names

AS_WRITTEN = Naming()  # a name stands for the class that is called so
Loaded = tuple[Images, Indices, list[str]]  # images, which of those asked for, names of the others


@dataclass(frozen=True)
class Record:
    """One labelled image or text: where it is, its label, its site and its part."""

    path: str
    label: str
    site: str | None = None
    part: PartName | None = None  # None: the source does not say
    where: str = ""  # for messages: the file and line that named it, if not the path itself
    group: str | None = None  # of images that are held out together, such as a patient's
    # what `drawn_singly` draws it by, where others decide its path or the name of its group: a row
    # that is not there would give all after it other numbers
    key: str = ""

    @property
    def place(self) -> str:
        """What a message names."""
        return self.where or self.path


@dataclass(frozen=True)
class Labels:
    """The vocabulary, the class number of each image, and what else the task learns from."""

    names: tuple[str, ...]
    numbers: Indices  # [n]
    targets: Tensor | None = None  # [n, ...]
    missing: bool = False  # whether a class may be without training images in any case
    # [n] the place of each image's first label among all labels as the files write them, sorted
    written: Indices | None = None
    entries: Indices | None = None  # [n] equal where the files write the same labels
    ordered: bool = True  # the order of the names was stated, or is that of numbers
    notes: tuple[str, ...] = ()  # what to say about how labels were read

    @property
    def strata(self) -> Indices:
        """What `held_out` spreads the test part over [n].

        Where possible the labels as written, so that the classes, which a program chooses, do not
        change which images are tested on.
        """
        return self.numbers if self.written is None else self.written

    @classmethod
    def single(
        cls,
        records: Sequence[Record],
        classes: Sequence[str] | None,
        similar: Similar = "error",
        naming: Naming = AS_WRITTEN,
    ) -> Self:
        """One label per record; the vocabulary is `classes`, or all labels sorted.

        `similar` says what to do with names that differ in case or the like, `naming` what sites
        call the classes. Raises DataError for the former, for a label outside `classes`, for one
        that stands for a missing value, and as `Naming.read` does.
        """
        if classes is not None and len(set(classes)) < len(classes):
            raise DataError("data.classes names a class twice", "name each class once")
        called = [Name(record.label, record.site, record.place) for record in records]
        labels, said = naming.read(called, classes, similar)
        uses = used((label, one.place) for label, one in zip(labels, records, strict=True))
        read, notes = settled_names(uses, classes, similar)
        names, natural = ordered(set(read.values()))
        if classes is not None:
            names, natural = tuple(name for name in classes if read[name] == name), True
        number = {name: index for index, name in enumerate(names)}
        for label, use in uses.items():
            if read[label] not in number:
                raise DataError(
                    f"{use.place}: label '{label}' is not in data.classes",
                    f"{nearest(label, names)}; correct the label, add it to data.classes, say in "
                    "data.class_map which of these it is, or set data.unknown_class",
                    _misnamed({read[label] for label in uses}, names),
                )
        numbers = np.array([number[read[label]] for label in labels], dtype=np.int64)
        written, said = _ranks(naming.meant(called, similar)), (*said, *notes)
        return cls(names, numbers, None, False, written, written, natural, said)

    @classmethod
    def several(
        cls,
        records: Sequence[Record],
        words: Sequence[Sequence[str]],
        classes: Sequence[str] | None,
        similar: Similar = "error",
        naming: Naming = AS_WRITTEN,
    ) -> Self:
        """Any number of labels per record: those in `words` [n].

        Targets are [n, labels] float32; the class number is that of the first label, or 0. Raises
        DataError as `single` does.
        """
        each = [
            replace(record, label=word)
            for record, found in zip(records, words, strict=True)
            for word in found
        ]
        found = cls.single(each, classes, similar, naming)
        written = _ranks([labels[0] if labels else "" for labels in words])
        counts = [len(labels) for labels in words]
        assert found.written is not None
        sets = np.split(found.written, np.cumsum(counts)[:-1])
        entries = _ranks([" ".join(map(str, np.unique(one))) for one in sets])
        rows = np.repeat(np.arange(len(records)), counts)
        targets = torch.zeros(len(records), len(found.names))
        targets[torch.from_numpy(rows), torch.from_numpy(found.numbers)] = 1.0
        if not found.names:
            return cls((), np.zeros(len(records), dtype=np.int64), targets)
        first = targets.argmax(1).numpy()  # of equal values, the first
        return replace(found, numbers=first, targets=targets, written=written, entries=entries)

    @classmethod
    def in_cells(
        cls,
        records: Sequence[Record],
        classes: Sequence[str] | None,
        separator: str | None,
        similar: Similar = "error",
        naming: Naming = AS_WRITTEN,
    ) -> Self:
        """The labels that records' cells hold: one each, or any number with `separator` between.

        Raises DataError as `single` does, and where cells seem to hold several labels but no
        vocabulary and no such separator is given.
        """
        place = records[0].place if records else ""
        if separator is None:
            if classes is None:
                refuse_combined((record.label for record in records), place)
            return cls.single(records, classes, similar, naming)
        words = [labels_in(record.label, separator, record.place) for record in records]
        if classes is None:
            refuse_combined({word for found in words for word in found}, place)
        return cls.several(records, words, classes, similar, naming)

    def alike(self, one: int, other: int) -> bool:
        """Whether two images have the same labels."""
        if self.entries is not None:
            return bool(self.entries[one] == self.entries[other])
        if self.targets is not None:
            return torch.equal(self.targets[one], self.targets[other])
        return bool(self.numbers[one] == self.numbers[other])

    def only(self, chosen: Indices) -> Self:
        """Those of the images at `chosen`."""
        return replace(
            self,
            numbers=self.numbers[chosen],
            targets=None if self.targets is None else self.targets[torch.from_numpy(chosen)],
            written=None if self.written is None else self.written[chosen],
            entries=None if self.entries is None else self.entries[chosen],
        )

    def by_part(self, members: Mapping[PartName, Indices]) -> Mapping[PartName, Indices]:
        """The `entries` of the images in each part, whose indices are given; empty without."""
        if self.entries is None:
            return {}
        return {name: self.entries[chosen] for name, chosen in members.items()}


def _ranks(words: Sequence[str]) -> Indices:
    """The place of each word in the sorted list of all words [n]."""
    return np.unique(np.array(words, dtype=str), return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class Collection:
    """Everything that a source found, before it is divided into a training and a test part.

    `load` reads the images (or texts) at some indices, and leaves out what cannot be read.
    """

    origin: str  # the title, also used in messages
    labels: Labels
    sites: Any  # [n] names, or None
    parts: Any  # [n] names of parts
    load: Callable[[Indices], Loaded]
    notes: tuple[str, ...] = ()
    groups: Sequence[str | None] | None = None  # [n] what belongs together

    def divided(
        self, preprocess: Preprocess, skipped: Sequence[str] = ()
    ) -> tuple[Dataset, dict[PartName, Indices]]:
        """The data set, and the indices of the images in each part.

        `skipped` names what the source has left out so far.
        """
        parts: dict[PartName, Part] = {}
        members: dict[PartName, Indices] = {}
        left_out = list(skipped)
        for name in NAMES:
            chosen = np.flatnonzero(self.parts == name)
            if name == "validation" and not len(chosen):
                continue
            images, kept, names = self.load(chosen)
            chosen = chosen[kept]
            left_out += names
            ids = None if self.sites is None else self.sites[chosen].tolist()
            targets = self.labels.targets
            own = None if targets is None else targets[torch.from_numpy(chosen)]
            groups = None if self.groups is None else [self.groups[i] for i in chosen.tolist()]
            parts[name] = Part(images, self.labels.numbers[chosen], ids, own, groups)
            members[name] = chosen
        opened = Dataset(
            parts["train"],
            parts["test"],
            self.labels.names,
            preprocess,
            tuple(left_out),
            {"title": self.origin},
            validation=parts.get("validation"),
            notes=(*self.labels.notes, *self.notes),
            ordered=self.labels.ordered,
        )
        return opened, members

    def check(self, opened: Dataset, missing: str, things: str) -> None:
        """DataError for an empty part or site.

        And, unless `missing` is "allow", for an empty class and a test part without a label.

        `things` is what each class needs: images, texts or boxes.
        """
        units = opened.preprocess.modalities
        kinds = "images or boxes" if things == "boxes" else f"corrupt {units}"
        skipped = f" ({len(opened.skipped)} {kinds} were left out)" if opened.skipped else ""
        for name, part in (("training", opened.train), ("test", opened.test)):
            if not len(part):
                raise DataError(
                    f"'{self.origin}' has no {name} {units}{skipped}",
                    f"add {units}; each class needs at least two if a test part is held out",
                )
        if missing == "error" and not opened.test.counts(len(opened.classes)).any():
            raise DataError(
                f"'{self.origin}': none of the {len(opened.test)} test {units} has a label: "
                f"nothing can be measured on them{skipped}",
                f"label some, or test on other {units} (if the test part is drawn, with another "
                "data.test_seed or data.test_fraction)",
            )
        counts = opened.train.counts(len(opened.classes))
        empty = [opened.classes[label] for label in np.flatnonzero(counts == 0)]
        if empty and missing == "error" and not self.labels.missing:
            more = f", nor have {len(empty) - 1} more" if len(empty) > 1 else ""
            raise DataError(
                f"'{self.origin}': class '{empty[0]}' has no training {things}{skipped}{more}",
                f"add training {units} of it, or take it out of data.classes",
            )
        trained = set(opened.train.sites or ())
        for site in () if self.sites is None else np.unique(self.sites).tolist():
            if site not in trained:
                raise DataError(
                    f"'{self.origin}': site '{site}' has no training {units}{skipped}",
                    f"add training {units} for this site, or remove the site",
                )


def dataset(
    records: Sequence[Record],
    labels: Labels,
    source: SizedSource,
    origin: str,
    images: LazyImages | None = None,
) -> Dataset:
    """The data set of `records`, in their order; `images` unless they are plain files.

    Raises DataError for no images, a class or a site without training images, and a corrupt image
    (unless the source skips them).
    """
    if not records:
        raise DataError(f"'{origin}' has no images", "check the path and the file formats")
    if not labels.names:
        raise DataError(f"'{origin}': no image has a label", "label some, or set data.classes")
    records, said = settled_sites(records, source.similar_sites)
    preprocess = source.preprocess(source.channels, *source.shape, fit=source.fit)
    files = images or DiskImages([record.path for record in records], preprocess)
    once = listed_once(records, labels.alike)
    repeated = len(records) - len(once)
    if repeated:
        records, labels = [records[index] for index in once], labels.only(once)
        files = files.only(once)
    again = f"{repeated} entries list an image again; each image counts once"
    found = Collection(
        origin,
        labels,
        site_names([record.site for record in records], origin),
        None,
        lambda chosen: settle(files.only(chosen), source),
        (*said, again) if repeated else said,
    )
    opened = opened_whole(found, records, preprocess, source)
    found.check(opened, source.missing, "images")
    return opened


def opened_whole(
    found: Collection,
    records: Sequence[Grouped],
    preprocess: Preprocess,
    source: HoldsOut,
    skipped: Sequence[str] = (),
) -> Dataset:
    """The data set of what a source found, after it was divided and its copies were handled.

    Where the test part is drawn, equal images are held out together, as the images of a group are;
    but not where each image is drawn by itself: one would then decide where its copies go. Raises
    DataError as `divided` and `handled` do.
    """
    strata, sites = found.labels.strata, found.sites
    parts, notes = divided(records, strata, sites, source)
    groups = [record.group for record in records]
    if any(group is not None for group in groups):
        found = replace(found, groups=groups)
    found = replace(found, parts=parts, notes=(*found.notes, *notes))
    opened, members = found.divided(preprocess, skipped)
    copies = looked_for(opened, source, found.labels.by_part(members))
    evenly = all(record.part is None for record in records) and not are_wanted()
    if evenly and copies is not None and copies.grave.across_parts:
        sets = together(copies, members, len(records))
        parts, _ = divided(records, strata, sites, source, sets)
        if (parts == "test").any():  # not if all images are one set
            found = replace(found, parts=parts)
            opened, members = found.divided(preprocess, skipped)
            copies = looked_for(opened, source, found.labels.by_part(members))
    opened = replace(opened, notes=(*opened.notes, *shallow(opened)))
    return handled(opened, copies, source)


class HoldsOut(Protocol):
    """What `divided` needs of a source."""

    @property
    def test_fraction(self) -> float:
        """The share that is held out."""
        ...

    @property
    def test_seed(self) -> int:
        """Decides which images are held out."""
        ...

    @property
    def duplicates(self) -> Handling:
        """What to do with equal images."""
        ...

    @property
    def group(self) -> str | None:
        """What names the groups."""
        ...

    @property
    def group_overlap(self) -> Overlap:
        """What to do with groups in two stated parts."""
        ...

    def locations(self) -> dict[str, Path]:
        """Where the images are; their paths are relative to the first."""
        ...


def divided(
    records: Sequence[Grouped],
    labels: Indices,
    sites: Any,
    source: HoldsOut,
    copies: Indices | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """The part of each image [n], and what to say about it: as stated, or with a test part drawn.

    A test part is drawn only if no record states a part; images of one group stay together, and so
    do those of one set in `copies` [n] (each set is numbered by its first image). Within
    `drawn_singly`, each image or group is drawn by itself. Raises DataError as `settled` and
    `straddling` do.
    """
    said = (*sentences(records, source.group), *at_two_sites(records, sites))
    stated, notes = settled([one.part for one in records], [one.place for one in records])
    if stated is not None:
        torn = straddling(records, stated, source.group_overlap)
        return np.array(stated), (*said, *notes, *torn)
    groups = [one.group for one in records]
    fraction, seed = source.test_fraction, source.test_seed
    if are_wanted():
        root = next(iter(source.locations().values()), Path())
        test = held_out_singly(records, root, source.group is not None, fraction, seed)
    elif copies is not None or any(group is not None for group in groups):
        names = [f"group {g}" if g is not None else f"image {n}" for n, g in enumerate(groups)]
        if copies is not None:
            names = _united(names, copies)
        test = held_out_groups(labels, sites, names, fraction, seed)
    else:
        test = held_out(labels, sites, fraction, seed)
    return np.where(test, "test", "train"), said


def _united(names: Sequence[str], copies: Indices) -> list[str]:
    """The groups [n], of which those that share a set of copies are one."""
    first: dict[str, int] = {}
    of_group = np.array([first.setdefault(name, n) for n, name in enumerate(names)])
    every = np.arange(len(names))
    united = joined(joined(every, every, of_group), every, copies)
    return [names[one] for one in united]


def held_out_groups(
    labels: Indices, sites: Any, groups: Sequence[str], fraction: float, seed: int
) -> Any:
    """As `held_out`, but images of one group [n] stay together.

    The first image of a group decides its label and its site.
    """
    first, member = np.unique(groups, return_index=True, return_inverse=True)[1:]
    owners = None if sites is None else sites[first]
    return held_out(labels[first], owners, fraction, seed)[member]


def held_out(labels: Indices, sites: Any, fraction: float, seed: int) -> Any:
    """A mask [n] of test images: `fraction` of each of `labels` [n], spread over the class's sites.

    The images of a class are ordered by site, and every (1/fraction)-th is taken from a seeded
    start. Each class and each site keeps at least one training image.
    """
    site_of = np.zeros(len(labels), np.int64)
    if sites is not None:
        site_of = np.unique(sites, return_inverse=True)[1]
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rng = draws(seed, "held out", int(label))
        members = rng.permutation(np.flatnonzero(labels == label))
        members = members[np.argsort(site_of[members], kind="stable")]
        count = min(len(members) - 1, max(1, round(fraction * len(members))))
        if count:
            steps = (np.arange(count) + rng.uniform()) * len(members) / count
            test[members[steps.astype(np.int64)]] = True
    for site in np.flatnonzero(np.bincount(site_of[~test], minlength=site_of.max() + 1) == 0):
        test[np.flatnonzero(site_of == site)[0]] = False
    return test


def _misnamed(found: set[str], names: Sequence[str]) -> str:
    """What may be told of labels, of which not all that were `found` are among the classes `names`:
    how many, and which classes no label stands for. The labels could be anything, even names of
    patients; the classes are the program's."""
    unknown, lacking = len(found - {*names}), [name for name in names if name not in found]
    said = f"{unknown} of its class names {'is' if unknown == 1 else 'are'} not in data.classes"
    if not lacking:
        return said
    listed = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
    return f"{said}, and it has no {listed}"
