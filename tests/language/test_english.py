"""English from elsewhere is recognised by its sentence; what stands in a field stays what it is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.language.catalogue import entries
from fedsight.language.english import from_english
from fedsight.language.message import message

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


def chinese(text: str) -> str:
    return from_english(text).text("zh")


def test_in_english_it_stays_as_it_is() -> None:
    assert from_english("'a' does not exist").text("en") == "'a' does not exist"


@pytest.mark.parametrize(
    ("english", "told"),
    [
        ("correct the path or create it", "改正路径，或创建它"),
        ("'a/b.png' does not exist", "'a/b.png' 不存在"),
        ("expected a whole number", "应为整数"),
        ("a.csv, line 7: '{path}' is empty", "a.csv 第 7 行：'{path}' 为空"),
        (
            "80 training images and 20 test images",
            "80 个训练图像，20 个测试图像",
        ),
        (
            "'x' has no training texts",
            "'x' 没有训练文本",
        ),
        # A cause in a cause, and a cure that follows on.
        (
            "the program is unsound: 'cuda:9' is not a device",
            "程序不可靠：'cuda:9' 不是设备",
        ),
        ("correct the value; restore the images", "改正该值；请恢复图像"),
    ],
)
def test_a_sentence_is_recognised(english: str, told: str) -> None:
    assert chinese(english) == told


@pytest.mark.parametrize("name", ["test", "time", "ankle boot", "correct the path or create it"])
def test_a_quoted_name_is_never_translated(name: str) -> None:
    assert chinese(f"'{name}' does not exist") == f"'{name}' 不存在"


@given(NAMES)
def test_a_name_is_kept_to_the_last_character(name: str) -> None:
    assert chinese(f"there is no example '{name}'") == f"没有示例 '{name}'"


@given(st.text())
def test_any_text_can_be_told(text: str) -> None:
    assert isinstance(chinese(text), str)


def test_an_unknown_text_stays_english() -> None:
    assert chinese("colourless green ideas sleep furiously") == (
        "colourless green ideas sleep furiously"
    )


def test_a_message_stays_a_message() -> None:
    said = message("yes")
    assert from_english(said) is said


def test_every_sentence_of_the_catalogue_is_recognised_when_it_is_made() -> None:
    """No sentence is taken for another one, and every value comes out where it belongs."""
    field = re.compile(r"\{(\w+)[^{}]*\}")
    for key, translated in entries("zh").items():
        letters = sum(map(str.isalpha, field.sub("", key)))
        if not field.search(key) or letters < 4 or "}{" in key:
            continue
        values = {name: f"v{number}" for number, name in enumerate(field.findall(key))}
        made, told = (
            field.sub(lambda found: f"{{{found[1]}}}", one).format(**values)
            for one in (key, translated)
        )
        assert chinese(made) == told, key


@pytest.mark.parametrize("piece", ["a; ", ". ", ", ", "site 'a' has ", "restore it; ", "{", "'"])
def test_a_text_made_to_be_slow_is_told_all_the_same(piece: str) -> None:
    """It may come from another machine. With patterns that backtrack this would never end."""
    text = f"no sentence {piece * (3900 // len(piece))}"
    assert "no sentence" in chinese(text)
