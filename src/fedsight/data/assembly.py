"""From a list of labelled image files to a data set: vocabulary, held-out part, all the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.core.registry import nearest
from fedsight.core.rng import numpy_generator
from fedsight.data.base import Dataset, Indices, Part, SizedSource
from fedsight.data.images.disk import DiskImages, LazyImages, settle


@dataclass(frozen=True)
class Record:
    """One labelled image: where it is, what it shows, who holds it, which part it belongs to."""

    path: str
    label: str
    site: str | None = None
    test: bool | None = None  # None: the source does not say
    where: str = ""  # for messages: the file and line that named it, if not the path itself


def dataset(
    records: Sequence[Record],
    source: SizedSource,
    origin: str,
    classes: Sequence[str] | None = None,
    facts: dict[str, Any] | None = None,
    images: LazyImages | None = None,
    separator: str | None = None,
    targets: Tensor | None = None,
) -> Dataset:
    """The data set of `records`, in their order; `images` unless they are plain files.

    With a `separator` a record's label may be several, or none: targets are then [n, labels].
    Other `targets` [n, ...] are given; a class may then be nobody's label.

    Raises DataError for no images, a label outside `classes`, a class or a site without training
    images, and a corrupt image (unless the source skips them).
    """
    if not records:
        raise DataError(f"'{origin}' has no images", "check the path and the file formats")
    missing = source.missing if targets is None else "allow"
    if separator is None:
        names, labels = vocabulary(records, classes)
    else:
        names, labels, targets = several(records, classes, separator)
    preprocess = source.preprocess(source.channels, *source.shape, fit=source.fit)
    if images is None:
        images = DiskImages([record.path for record in records], preprocess)
    sites = None if records[0].site is None else np.array([record.site for record in records])
    if any((record.site is None) != (sites is None) for record in records):
        raise DataError(f"'{origin}': some images have a site and some have none", "name all sites")
    marks = [(record.test, record.where or record.path) for record in records]
    test = tested(marks, labels, sites, source)
    parts, skipped = [], []
    for mask in (~test, test):
        chosen = np.flatnonzero(mask)
        settled, kept, left_out = settle(images.only(chosen), source)
        chosen = chosen[kept]
        skipped += left_out
        ids = None if sites is None else sites[chosen].tolist()
        own = None if targets is None else targets[torch.from_numpy(chosen)]
        parts.append(Part(settled, labels[chosen], ids, own))
    opened = Dataset(
        parts[0], parts[1], names, preprocess, tuple(skipped), {"title": origin, **(facts or {})}
    )
    _check_full(opened, origin, () if sites is None else np.unique(sites).tolist(), missing)
    return opened


def vocabulary(
    records: Sequence[Record], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], Indices]:
    """The class names (`classes`, or all labels sorted) and each record's class number [n].

    Raises DataError for a label outside `classes`.
    """
    if classes is not None and len(set(classes)) < len(classes):
        raise DataError("data.classes names a class twice", "name each class once")
    names = tuple(sorted({record.label for record in records})) if classes is None else classes
    number = {name: index for index, name in enumerate(names)}
    for record in records:
        if record.label not in number:
            raise DataError(
                f"{record.where or record.path}: label '{record.label}' is not in data.classes",
                f"{nearest(record.label, names)}; correct the label or add it to data.classes",
            )
    labels = np.array([number[record.label] for record in records], dtype=np.int64)
    return tuple(names), labels


def several(
    records: Sequence[Record], classes: Sequence[str] | None, separator: str
) -> tuple[tuple[str, ...], Indices, Tensor]:
    """The label names, each record's first label (0 without any) [n], and all [n, labels] float32.

    Raises DataError for a label outside `classes`.
    """
    words = [
        [word.strip() for word in record.label.split(separator) if word.strip()]
        for record in records
    ]
    each = [
        replace(record, label=word)
        for record, found in zip(records, words, strict=True)
        for word in found
    ]
    names, numbers = vocabulary(each, classes)
    rows = np.repeat(np.arange(len(records)), [len(found) for found in words])
    targets = torch.zeros(len(records), len(names))
    targets[torch.from_numpy(rows), torch.from_numpy(numbers)] = 1.0
    return names, targets.argmax(1).numpy(), targets  # argmax of equal values is the first


def tested(
    marks: Sequence[tuple[bool | None, str]], labels: Indices, sites: Any, source: SizedSource
) -> Any:
    """A mask [n] of test images: those marked so (with where), or `held_out` where none is marked.

    Raises DataError naming the first image without a mark where others have one: drawing anew would
    train on images that somebody set aside.
    """
    if all(test is None for test, _ in marks):
        return held_out(labels, sites, source.test_fraction, source.test_seed)
    for test, where in marks:
        if test is None:
            raise DataError(
                f"{where}: nothing says whether it is for training or for testing, and of other "
                "images something does",
                "move it into the part's folder, or mark all images or none",
            )
    return np.array([test for test, _ in marks], dtype=bool)


def held_out_groups(
    labels: Indices, sites: Any, groups: Sequence[str], fraction: float, seed: int
) -> Any:
    """As `held_out`, but what has one group [n] stays together; a group's first image speaks
    for its label and its site."""
    first, member = np.unique(groups, return_index=True, return_inverse=True)[1:]
    owners = None if sites is None else sites[first]
    return held_out(labels[first], owners, fraction, seed)[member]


def held_out(labels: Indices, sites: Any, fraction: float, seed: int) -> Any:
    """A mask [n] of test images: `fraction` of each class, spread over the sites of the class.

    Per class, images are ordered by site and every (1/fraction)-th is taken from a seeded start.
    Each class, and each site, keeps at least one training image.
    """
    site_of = np.zeros(len(labels), np.int64)
    if sites is not None:
        site_of = np.unique(sites, return_inverse=True)[1]
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rng = numpy_generator(seed, "held out", int(label))
        members = rng.permutation(np.flatnonzero(labels == label))
        members = members[np.argsort(site_of[members], kind="stable")]
        count = min(len(members) - 1, max(1, round(fraction * len(members))))
        if count:
            steps = (np.arange(count) + rng.random()) * len(members) / count
            test[members[steps.astype(np.int64)]] = True
    for site in np.flatnonzero(np.bincount(site_of[~test], minlength=site_of.max() + 1) == 0):
        test[np.flatnonzero(site_of == site)[0]] = False
    return test


def _check_full(opened: Dataset, origin: str, sites: Sequence[str], missing: str) -> None:
    """DataError for an empty part, site or (unless `missing` is "allow") class."""
    skipped = f" ({len(opened.skipped)} corrupt images were left out)" if opened.skipped else ""
    for name, part in (("training", opened.train), ("test", opened.test)):
        if not len(part):
            raise DataError(
                f"'{origin}' has no {name} images{skipped}",
                "add images; each class needs at least two when a test part is held out",
            )
    counts = np.bincount(opened.train.labels, minlength=len(opened.classes))
    if opened.train.targets is not None and opened.train.targets.dim() == 2:
        counts = opened.train.targets.sum(0).numpy()
    empty = [opened.classes[label] for label in np.flatnonzero(counts == 0)]
    if empty and missing == "error":
        raise DataError(
            f"'{origin}': class '{empty[0]}' has no training images{skipped}"
            + (f", nor have {len(empty) - 1} more" if len(empty) > 1 else ""),
            "add training images of it, or take it out of data.classes",
        )
    for site in sites:
        if site not in set(opened.train.sites or ()):
            raise DataError(
                f"'{origin}': site '{site}' has no training images{skipped}",
                "add training images for this site, or remove the site",
            )
