"""From pictures of people to a data set: whole people are held out, and all lose their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from fedsight.core.errors import DataError
from fedsight.core.rng import numpy_generator
from fedsight.data.base import Dataset, Part, SizedSource
from fedsight.data.images import DiskImages, settle
from fedsight.data.records import Record

NAMES = 4  # digits of a person's number


class PeopleSource(SizedSource):
    """A source whose classes are people."""

    channels: Literal[1, 3] = 1
    # fraction of each site's people whom nobody trains on: the test part, where none is marked
    unseen: float = Field(0.2, gt=0, lt=1)
    # people that the numbering has room for. Sites of a deployed federation must agree on it.
    room: int | None = Field(None, ge=1)
    nameless: Literal["error", "skip"] = "error"  # what to do with images that name no person


def people(
    records: Sequence[Record],
    source: PeopleSource,
    origin: str,
    facts: dict[str, Any] | None = None,
) -> Dataset:
    """The data set of `records`, whose labels are people ("" for none) within their sites.

    People become numbers, those of the training part first: no name goes further than this. The
    same name at two sites is two people. Raises DataError for an image that names nobody (unless
    the source skips such), a person in both parts, a site or a part without training images, and
    more people than `source.room`.
    """
    named = [record for record in records if record.label]
    nameless = [record.where or record.path for record in records if not record.label]
    if nameless and source.nameless == "error":
        more = f", and {len(nameless) - 1} more" if len(nameless) > 1 else ""
        raise DataError(
            f"'{nameless[0]}' names no person{more}",
            "say whom it shows, remove it, or set data.nameless = 'skip' to leave such images out",
        )
    if not named:
        raise DataError(f"'{origin}' has no images of people", "check the path and the layout")
    if len({record.site is None for record in named}) > 1:
        raise DataError(f"'{origin}': some images have a site and some have none", "name all sites")
    parts = _parts(named, source, origin)
    number: dict[tuple[str, str], int] = {}
    for part in parts:
        for key in sorted({_key(record) for record in part}):
            number[key] = len(number)
    room = source.room or len(number)
    if len(number) > room:
        cause = f"'{origin}' shows {len(number)} people, data.room is {source.room}"
        raise DataError(cause, "raise data.room, at every site alike")
    preprocess = source.preprocess(source.channels, *source.shape, fit=source.fit)
    made, skipped = [], nameless
    for part in parts:
        images, kept, left_out = settle(DiskImages([one.path for one in part], preprocess), source)
        skipped = [*skipped, *left_out]
        chosen = [part[place] for place in kept]
        labels = np.array([number[_key(one)] for one in chosen], dtype=np.int64)
        sites = [one.site or "" for one in chosen]
        made.append(Part(images, labels, None if named[0].site is None else sites))
    names = tuple(f"person {one:0{NAMES}d}" for one in range(1, room + 1))
    opened = Dataset(
        made[0], made[1], names, preprocess, tuple(skipped), {"title": origin, **(facts or {})}
    )
    _check(opened, named, origin)
    return opened


def _key(record: Record) -> tuple[str, str]:
    return record.site or "", record.label


def _parts(
    named: Sequence[Record], source: PeopleSource, origin: str
) -> tuple[list[Record], list[Record]]:
    """Training and test part: as marked, or with a share of each site's people held out."""
    if any(record.test is None for record in named):
        held = _held_out(sorted({_key(record) for record in named}), source)
        parts = [[one for one in named if (_key(one) in held) is test] for test in (False, True)]
        return parts[0], parts[1]
    parts = [[one for one in named if one.test is test] for test in (False, True)]
    trained, tested = ({_key(one) for one in part} for part in parts)
    if both := sorted(trained & tested):
        first = next(one for one in parts[1] if _key(one) == both[0])
        raise DataError(
            f"'{origin}': '{first.where or first.path}' shows a person who is trained on",
            "test on people of whom no image is in the training part",
        )
    return parts[0], parts[1]


def _held_out(keys: Sequence[tuple[str, str]], source: PeopleSource) -> set[tuple[str, str]]:
    """Who is unseen: of each site's people a share, drawn by the seed, and never all of them."""
    held: set[tuple[str, str]] = set()
    for site in sorted({site for site, _ in keys}):
        own = [key for key in keys if key[0] == site]
        count = min(len(own) - 1, round(source.unseen * len(own)))
        draws = numpy_generator(source.test_seed, "unseen", site)
        held |= {own[place] for place in draws.permutation(len(own))[:count]}
    return held


def _check(opened: Dataset, named: Sequence[Record], origin: str) -> None:
    if not len(opened.train):
        raise DataError(f"'{origin}' has no training images", "add images of people to train on")
    trained = set(opened.train.sites or ())
    tested = set(opened.test.sites or ())
    for site in sorted({record.site for record in named if record.site is not None}):
        if site not in trained | tested:
            cause = f"'{origin}': no image of site '{site}' can be used"
            raise DataError(cause, "restore its images, or remove the site")
