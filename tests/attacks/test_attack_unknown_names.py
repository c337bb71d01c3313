"""A program's vocabulary moves single images between the parts, or makes them disappear.

The owner says what the names in the files mean (`data.class_map`, `data.similar_names`) and what
class all others become (`data.unknown_class`). A program says which classes there are, and so which
names are unknown, and in which of its spellings a class comes in the order of the names. The
held-out images were spread over the classes that came of both: a rare label of its own, or within
the unknown ones, has another image held out, and two exact figures differ by that image alone.
Copies with two labels are left out, and have one where the program knows neither of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsight.data.assembly import Labels, _ranks
from fedsight.data.base import Dataset, Source, sources
from fedsight.deploy.declaration import merge_sources

SIDE = 4
COMMON, OTHER = "benign", "zother"


def by_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weakened build: what counts are the classes that the program's vocabulary makes."""
    single = Labels.single.__func__  # type: ignore[attr-defined]

    def weak(cls: type[Labels], *given: Any, **named: Any) -> Labels:
        found: Labels = single(cls, *given, **named)
        ranks = _ranks([found.names[number] for number in found.numbers])
        return Labels(found.names, found.numbers, written=ranks, entries=ranks)

    monkeypatch.setattr(Labels, "single", classmethod(weak))


def listed(root: Path, labels: list[str], copies: int = 0, **settings: Any) -> Source:
    """The owner's source: an image for each label, of which the last ones are `copies` of the one
    before them."""
    root.mkdir()
    lines = ["path,label"]
    for number, label in enumerate(labels):
        seed = min(number, len(labels) - 1 - copies)
        pixels = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        lines.append(f"{number}.png,{label}")
    (root / "list.csv").write_text("\n".join(lines))
    return sources.get("manifest")(path=root / "list.csv", near_duplicates="keep", **settings)


def opened(owner: Source, *classes: str) -> Dataset:
    """The owner's images under a program with these classes."""
    asked = {"size": SIDE, "channels": 1, "classes": classes}
    return merge_sources(sources.get("manifest")(path=Path(), **asked), owner).open()


def names_tested(found: Dataset) -> set[str]:
    return {found.test.images.name(at) for at in range(len(found.test))}


@pytest.mark.parametrize("weak", [True, False])
def test_a_vocabulary_without_a_rare_label_tests_on_one_image_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    if weak:
        by_vocabulary(monkeypatch)
    labels = [*[COMMON] * 60, *["rare"] * 3, *["zoster"] * 3]
    owner = listed(tmp_path / "images", labels, unknown_class=OTHER)
    whole, without = opened(owner, COMMON, "rare", "zoster", OTHER), opened(owner, COMMON, OTHER)
    assert len(whole.classes) == 4
    assert len(names_tested(whole)) > 11, "as many as figures are summed over"
    assert len(names_tested(whole) ^ names_tested(without)) == (1 if weak else 0)


@pytest.mark.parametrize("weak", [True, False])
def test_a_spelling_that_the_program_chooses_draws_another_test_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    if weak:
        by_vocabulary(monkeypatch)
    labels = [*["cat"] * 20, *["Lion"] * 3, *["lion"] * 18, *["zebra"] * 20]
    owner = listed(tmp_path / "images", labels, similar_names="merge")
    one, other = (opened(owner, "cat", lion, "zebra") for lion in ("lion", "Lion"))
    assert one.train.counts(3).tolist() == other.train.counts(3).tolist()
    assert bool(names_tested(one) ^ names_tested(other)) == weak


@pytest.mark.parametrize("weak", [True, False])
def test_copies_with_two_labels_are_those_with_two_labels_in_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    if weak:
        by_vocabulary(monkeypatch)
    labels = [*[COMMON] * 20, "rare", "zoster"]
    owner = listed(tmp_path / "images", labels, 1, unknown_class=OTHER, duplicates="drop")
    whole, without = opened(owner, COMMON, "rare", "zoster", OTHER), opened(owner, COMMON, OTHER)
    images = [len(found.train) + len(found.test) for found in (whole, without)]
    assert images == [20, 21 if weak else 20]


def test_names_mean_the_same_under_every_vocabulary(tmp_path: Path) -> None:
    """What the map says, whatever else a program knows."""
    labels = [*["MM"] * 9, *["melanoma"] * 9, *["nevus"] * 9, *["mm"] * 9]
    known = {"class_map": {"MM": "melanoma"}, "merged": ["melanoma"], "similar_names": "merge"}
    owner = listed(tmp_path / "images", labels, unknown_class=OTHER, **known)
    some = (("melanoma", "nevus", OTHER), ("melanoma", OTHER), ("mm", "melanoma", OTHER, "nevus"))
    first, *others = (names_tested(opened(owner, *classes)) for classes in some)
    assert all(other == first for other in others)
