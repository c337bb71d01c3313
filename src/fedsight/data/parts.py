"""The parts of a data set (training, validation, test), by the names that people give them."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from fedsight.core.errors import DataError
from fedsight.data.single_draws import refuse_other_tests

PartName = Literal["train", "validation", "test"]

_WORDS: Mapping[str, PartName] = {
    **dict.fromkeys(("train", "training", "trn", "trainval", "训练", "训练集"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), "validation"),
    **dict.fromkeys(("eval", "evaluation", "publictest", "验证", "验证集"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "test-dev", "测试", "测试集"), "test"),
    **dict.fromkeys(("holdout", "hold-out", "heldout", "held-out", "privatetest"), "test"),
}
# what people add to such a name: train2017, Training_set, test images, images_val, obj_train_data
_THING = "set|split|data|dataset|images|imgs|image|img|masks|labels|annotations"
_BEFORE = re.compile(rf"^(?:{_THING}|obj)[\s_.-]+")
_YEAR = r"(?:(?:19|20)\d\d)?[\s_.-]*"
_AFTER = re.compile(rf"[\s_.-]*{_YEAR}(?:{_THING})?[\s_.-]*{_YEAR}$")
KNOWN = "train, val (or valid, dev) or test"
NAMES: Mapping[PartName, str] = {"train": "training", "validation": "validation", "test": "test"}
_CLOSE = 0.66  # `vla` is near `val`, and `extra` not near `train`


def part_named(word: str) -> PartName | None:
    """The part that a folder or a word of a file names, in any case; None if it names none.

    `train2017`, `Training`, `valid` and `test_set` are understood.
    """
    plain = unicodedata.normalize("NFKC", word).casefold().strip()
    for bare in (plain, _AFTER.sub("", plain), _AFTER.sub("", _BEFORE.sub("", plain))):
        if bare in _WORDS:
            return _WORDS[bare]
    return None


def meant(word: str) -> str | None:
    """The name of a part that a misspelt one is close to: `val` for `vla`; None if none is."""
    plain = unicodedata.normalize("NFKC", word).casefold().strip()
    for bare in (plain, _AFTER.sub("", plain)):
        whole = [one for one in _WORDS if one not in ("trn", "tst")]
        if close := difflib.get_close_matches(bare, whole, n=1, cutoff=_CLOSE):
            return close[0]
    return None


def named_in(stem: str) -> PartName | None:
    """The part that a file's name without suffix contains as a word: `instances_val2017`.

    None for no part and for several.
    """
    if whole := part_named(stem):
        return whole
    found = {part_named(word) for word in re.split(r"[\s_.-]+", stem)} - {None}
    return found.pop() if len(found) == 1 else None


def part_stated(word: str | None, where: str, key: str = "split") -> PartName | None:
    """The part that a value of a file states; None without a value.

    Raises DataError at `where` for a word that names no part.
    """
    if word is None:
        return None
    part = part_named(word)
    if part is None:
        close = meant(word)
        hint = f"did you mean '{close}'? " if close else ""
        cause = f"{where}: '{key}' is '{word}', which names no part"
        raise DataError(cause, f"{hint}write {KNOWN}")
    return part


def are_parts(names: Iterable[str]) -> bool:
    """Whether folders are the parts of one data set: a training part, and another beside it."""
    found = {part_named(name) for name in names} - {None}
    return "train" in found and len(found) > 1


def settled(
    parts: Sequence[PartName | None], places: Sequence[str]
) -> tuple[list[PartName] | None, tuple[str, ...]]:
    """The part of each image, and what has to be said about it; None if no image has a part.

    Where nothing is for testing, what is for validation is tested on. Raises DataError naming the
    first of `places` without a part if others have one (drawing a new test part would train on
    images that were set aside for testing), where nothing is for training, and where one image
    must not decide that others are tested on.
    """
    known = {part for part in parts if part is not None}
    if not known:
        return None, ()
    whole: list[PartName] = []
    for part, place in zip(parts, places, strict=True):
        if part is None:
            raise DataError(
                f"{place}: belongs to no part (training, validation or test), but others do",
                "move it into the folder of its part, or mark all or none",
            )
        whole.append(part)
    if "train" not in known:
        found = " and ".join(NAMES[part] for part in NAMES if part in known)
        raise DataError(
            f"{places[0]}: nothing is for training: all images are for {found}",
            "mark the images of the training part, or take the marks of the parts out",
        )
    if known == {"train", "validation"}:
        refuse_other_tests(places[0], "the validation part would be tested on")
        note = "the validation part is the test part, because nothing else is for testing"
        return ["test" if part == "validation" else part for part in whole], (note,)
    return whole, ()
