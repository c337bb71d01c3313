"""Assembles a data set of people: whole people are held out, and names become numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from fedsight.core.draws import draws
from fedsight.core.errors import DataError
from fedsight.data.assembly import Collection, Labels, Record
from fedsight.data.base import Dataset, SizedSource
from fedsight.data.duplicates.handled import handled, looked_for
from fedsight.data.images.disk import NumberedImages, settle
from fedsight.data.parts import PartName, settled
from fedsight.data.site_names import settled_sites, site_names

NAMES = 4  # digits of a person's number
MIN_PEOPLE = 4  # people of a site from which two are held out even if the share is smaller


class PeopleSource(SizedSource):
    """A source whose classes are people."""

    channels: Literal[1, 3] = 1
    # share of each site's people held out for testing if none are marked; never just one person
    unseen: float = Field(0.2, gt=0, lt=1)
    # largest number of people. All sites of a deployed federation must use the same.
    room: int | None = Field(None, ge=1)
    nameless: Literal["error", "skip"] = "error"  # what to do with images without a person
    names: Literal["number", "path"] = "number"  # how reports name an image

    @property
    def vocabulary(self) -> str:
        """Where there is no `room`, there is a class for each person."""
        return "room"


def people(records: Sequence[Record], source: PeopleSource, origin: str) -> Dataset:
    """The data set of `records`, whose labels are people ("" for none) within their sites.

    People become numbers, those of the training part first, and their names are discarded. Files
    become numbers too, since they may be named after people: in the order of `records`, or of a
    CSV's lines. The same name at two sites means two people. Raises DataError for an image without
    a person (unless the source skips those), a person in both parts, a site or a part without
    training images, and more people than `source.room`.
    """
    if source.group is not None:
        cure = "leave data.group out: whole people are held out"
        raise DataError("data.group is set, but the groups of this source are people", cure)
    called = [_called(record, number, source) for number, record in enumerate(records)]
    named = [record for record in records if record.label]
    nameless = [place for place, record in enumerate(records) if not record.label]
    if nameless and source.nameless == "error":
        more = f", and {len(nameless) - 1} more" if len(nameless) > 1 else ""
        first = records[nameless[0]]
        raise DataError(
            f"'{first.place}' names no person{more}",
            "name the person, remove it, or set data.nameless = 'skip' to leave out such images",
        )
    if not named:
        raise DataError(f"'{origin}' has no images of people", "check the path and the layout")
    named, said = settled_sites(named, source.similar_sites)
    sites = site_names([record.site for record in named], origin)
    part, notes = _parts(named, source, origin)
    number = _numbered(part, source, origin)
    names = tuple(f"person {one:0{NAMES}d}" for one in range(1, (source.room or len(number)) + 1))
    labels = Labels(names, np.array([number[_key(one)] for one in named], dtype=np.int64))
    parts = np.array([part[_key(record)] for record in named])
    preprocess = source.preprocess(source.channels, *source.shape, fit=source.fit)
    files = NumberedImages(
        [record.path for record in named],
        preprocess,
        [name for name, record in zip(called, records, strict=True) if record.label],
    )
    found = Collection(
        origin,
        labels,
        sites,
        parts,
        lambda chosen: settle(files.only(chosen), source),
        (*said, *notes),
    )
    opened, _ = found.divided(preprocess, [called[place] for place in nameless])
    opened = handled(opened, looked_for(opened, source), source)
    _check(opened, named, origin)
    return opened


def _numbered(
    part: Mapping[tuple[str, str], PartName], source: PeopleSource, origin: str
) -> dict[tuple[str, str], int]:
    """The number of each person: first those who are trained on, by site and name."""
    first = sorted(key for key in part if part[key] == "train")
    number = {key: place for place, key in enumerate([*first, *sorted(part.keys() - set(first))])}
    if source.room is not None and len(number) > source.room:
        cause = f"'{origin}' has {len(number)} people, but data.room is {source.room}"
        raise DataError(cause, "raise data.room at every site")
    return number


def _key(record: Record) -> tuple[str, str]:
    return record.site or "", record.label


def _called(record: Record, number: int, source: PeopleSource) -> str:
    """The name of an image in messages and run files."""
    if source.names == "path":
        return record.path
    return record.where.rpartition(", ")[2] or f"file {number + 1}"


def _parts(
    named: Sequence[Record], source: PeopleSource, origin: str
) -> tuple[dict[tuple[str, str], PartName], tuple[str, ...]]:
    """Each person's part, and what to say about it: as stated, or a share of each site's people.

    Raises DataError as `settled` does, and for a person in two parts.
    """
    stated, notes = settled([one.part for one in named], [one.place for one in named])
    if stated is None:
        keys = sorted({_key(record) for record in named})
        held = _held_out(keys, source)
        return {key: "test" if key in held else "train" for key in keys}, ()
    found: dict[tuple[str, str], PartName] = {}
    for record, part in zip(named, stated, strict=True):
        if found.setdefault(_key(record), part) != part:
            raise DataError(
                f"'{origin}': '{record.place}' shows a person of another part as well",
                "put all images of a person into one part; test only on people not trained on",
            )
    return found, notes


def _held_out(keys: Sequence[tuple[str, str]], source: PeopleSource) -> set[tuple[str, str]]:
    """The held-out people: a share of each site's people, drawn from the seed, and never all.

    If the share is a single person, two are held out, or none at a site with fewer than four:
    nothing can be measured with only one person.
    """
    held: set[tuple[str, str]] = set()
    for site in sorted({site for site, _ in keys}):
        own = [key for key in keys if key[0] == site]
        count = min(len(own) - 1, round(source.unseen * len(own)))
        if count == 1:
            count = 2 if len(own) >= MIN_PEOPLE else 0
        order = draws(source.test_seed, "unseen", site).permutation(len(own))
        held |= {own[place] for place in order[:count]}
    return held


def _check(opened: Dataset, named: Sequence[Record], origin: str) -> None:
    if not len(opened.train):
        raise DataError(f"'{origin}' has no training images", "add images of people to train on")
    trained = set(opened.train.sites or ())
    aside = () if opened.validation is None else opened.validation.sites or ()
    tested = {*(opened.test.sites or ()), *aside}
    for site in sorted({record.site for record in named if record.site is not None}):
        if site not in trained | tested:
            cause = f"'{origin}': site '{site}' has no usable images"
            raise DataError(cause, "restore its images, or remove the site")
