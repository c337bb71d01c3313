"""The parts of a data set by the names that people give them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import DataError
from fedsight.data.parts import are_parts, part_named, part_stated, settled

NAMES = {
    "train": ["train", "Train", "TRAINING", "train2017", "Training_set", "train-data", "训练集"],
    "validation": ["val", "Val", "valid", "validation", "dev", "val2017", "Validation Set", "验证"],
    "test": ["test", "Test", "TESTING", "test2014", "test_images", "test-dev2017", "测试集"],
}
CASES = [(word, part) for part, words in NAMES.items() for word in words]


@pytest.mark.parametrize(("word", "part"), CASES)
def test_names_that_people_give_are_understood(word: str, part: str) -> None:
    assert part_named(word) == part
    assert part_named(f" {word.upper()} ") == part


@pytest.mark.parametrize("word", ["", "cat", "trains", "vla", "tests2", "site-1", "2017", "set"])
def test_other_words_name_no_part(word: str) -> None:
    assert part_named(word) is None


def test_a_class_called_train_is_not_a_part() -> None:
    assert not are_parts(["train", "bus", "car"])
    assert are_parts(["Training", "Testing"])
    assert are_parts(["train", "val", "extra"])


def test_a_word_that_names_no_part_is_an_error() -> None:
    assert part_stated("Dev", "a.csv, line 2") == "validation"
    assert part_stated(None, "a.csv, line 2") is None
    with pytest.raises(DataError, match=r"a\.csv, line 2: 'split' is 'vla'"):
        part_stated("vla", "a.csv, line 2")


@given(st.lists(st.sampled_from(["train", "validation", "test", None]), max_size=12))
def test_a_stated_part_is_kept_and_never_drawn_again(parts: list[str | None]) -> None:
    places = [f"image {number}" for number in range(len(parts))]
    known = set(parts) - {None}
    if not known:
        assert settled(parts, places) == (None, ())
    elif None in parts:
        with pytest.raises(DataError, match=f"image {parts.index(None)}: belongs to no part"):
            settled(parts, places)
    elif "train" not in known:
        with pytest.raises(DataError, match="image 0: nothing is for training"):
            settled(parts, places)
    else:
        found, notes = settled(parts, places)
        assert found is not None
        moved = known == {"train", "validation"}
        assert found == ["test" if moved and p == "validation" else p for p in parts]
        assert bool(notes) == moved
