"""Names of classes: one class in two spellings, words for nothing, and the order of grades."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import DataError
from fedsight.data.class_names import key, ordered, says_order, settled_names, shown, used

PAIRS = [
    ("Benign", "benign", "in case"),
    ("STRASSE", "Straße", "in how they are written"),
    ("melanoma ", "melanoma", "in blanks at the ends"),
    ("\u3000melanoma", "melanoma", "in blanks at the ends"),
    (
        unicodedata.normalize("NFC", "mélanome"),
        unicodedata.normalize("NFD", "mélanome"),
        "in how accents are encoded (Unicode forms NFC and NFD)",
    ),
    ("bcc\u200b", "bcc", "in characters that cannot be seen"),
    ("\ufeffbcc", "bcc", "in characters that cannot be seen"),
    ("ＢＣＣ", "BCC", "in the width or form of characters (Unicode form NFKC)"),
    ("b\u0441c", "bcc", "in letters of different scripts"),
    ("ﬁbroma", "fibroma", "in the width or form of characters (Unicode form NFKC)"),
    ("fine_tuned", "fine tuned", "in how they are written"),
    ("fine-tuned", "fine  tuned", "in how they are written"),
    ("basal\u00a0cell", "basal cell", "in the width or form of characters (Unicode form NFKC)"),
    ("01", "1", "in how the number is written"),
    ("1.0", "1", "in how the number is written"),
    ("007", "7.", "in how the number is written"),
    ("class_01", "Class 1", "in how they are written"),
    ("cat.", "cat", "in how they are written"),
    ("'cat'", "cat", "in how they are written"),
    ("\u201ccat\u201d", "cat", "in how they are written"),
]


@pytest.mark.parametrize(("one", "other", "difference"), PAIRS)
def test_one_class_in_two_spellings(one: str, other: str, difference: str) -> None:
    labels = [(one, "a.csv, line 2")] * 3 + [(other, "b.csv, line 9")] * 2 + [("else", "c")]
    uses = used(labels)
    with pytest.raises(DataError) as caught:
        settled_names(uses, None, "error")
    for part in ("(3 images, first a.csv, line 2)", "(2 images, first b.csv, line 9)", difference):
        assert part in caught.value.cause
    alike = difference == "in letters of different scripts"
    assert shown(one, alike) != shown(other, alike)  # the message shows the difference
    assert "similar_names" in caught.value.cure
    read, notes = settled_names(uses, None, "merge")
    assert read == {one: one, other: one, "else": "else"}  # the more frequent
    assert len(notes) == 1
    assert "(2 images) is read as" in notes[0]
    read, notes = settled_names(uses, [other, "else"], "merge")
    assert read == {one: other, other: other, "else": "else"}  # the vocabulary's
    assert settled_names(uses, None, "keep") == ({one: one, other: other, "else": "else"}, ())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("T-", "T+"),
        ("?", "."),
        ("A", "A+"),
        ("-1", "1"),
        ("1.1", "1.01"),
        ("C44.1", "C44.01"),
        ("10", "1"),
        ("1", "11"),
        ("cat", "cats"),
        ("é", "e"),
        ("A", "Ä"),
        ("良性", "恶性"),
        ("grade 10", "grade 1"),
    ],
)
def test_classes_that_differ_are_left_apart(one: str, other: str) -> None:
    assert key(one) != key(other)
    read, notes = settled_names(used([(one, "x"), (other, "y")]), None, "error")
    assert read == {one: one, other: other}
    assert notes == ()


@given(st.text(), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_a_spelling_s_unicode_form_and_ends_do_not_matter(name: str, form: str) -> None:
    assert key(unicodedata.normalize(form, name)) == key(name) == key(f" {name}\u200b ")  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "n/a", "None", "NULL", "<NA>", " ", ""])
def test_a_word_for_nothing_is_no_class_unless_it_is_listed(word: str) -> None:
    uses = used([("cat", "line 2"), (word, "line 3")])
    with pytest.raises(DataError, match=r"line 3: .* stands for a missing value") as caught:
        settled_names(uses, None, "merge")
    assert "data.classes" in caught.value.cure
    assert settled_names(uses, ["cat", word], "error")[0] == {"cat": "cat", word: word}
    assert settled_names(uses, None, "keep")[0] == {"cat": "cat", word: word}


@pytest.mark.parametrize(
    ("names", "expected", "sensible"),
    [
        (["0", "1", "10", "11", "2"], ["0", "1", "2", "10", "11"], True),
        (["-1", "0.5", "-10"], ["-10", "-1", "0.5"], True),
        (["T1", "T10", "T2"], ["T1", "T2", "T10"], True),
        (["grade 3", "grade 12"], ["grade 3", "grade 12"], True),
        (["10-19", "0-9", "100-109"], ["0-9", "10-19", "100-109"], True),
        (["3级", "1级", "12级"], ["1级", "3级", "12级"], True),
        (["low", "medium", "high"], ["high", "low", "medium"], False),
        (["I", "IX", "V"], ["I", "IX", "V"], False),
        (["4a", "4b", "10"], ["10", "4a", "4b"], False),
        (["1", "2", "unknown"], ["1", "2", "unknown"], False),
        (["a1b2", "a1b3"], ["a1b2", "a1b3"], False),
        (["nan", "1"], ["1", "nan"], False),
    ],
)
def test_only_numbers_have_an_order_of_their_own(
    names: list[str], expected: list[str], sensible: bool
) -> None:
    assert ordered(names) == (tuple(expected), sensible)


def test_a_file_s_list_says_an_order_unless_it_is_alphabetical() -> None:
    assert says_order(["low", "medium", "high"])
    assert not says_order(["high", "low", "medium"])
    assert says_order(["1", "2", "10"])
    assert not says_order(["1", "10", "2"])
