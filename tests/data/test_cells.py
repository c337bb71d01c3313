"""Several labels in one cell: read with a separator or as a list, and recognised without."""

from __future__ import annotations

import pytest

from fedsight.core.errors import DataError
from fedsight.data.cells import labels_in, refuse_combined, separator_in


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("a|b", ["a", "b"]),
        (" a | b |", ["a", "b"]),
        ("a|a", ["a"]),
        ("", []),
        ("['a', 'b c']", ["a", "b c"]),
        ('["a"]', ["a"]),
        ("[]", []),
        ("('1', 2)", ["1", "2"]),
        ("(left)|(right)", ["(left)", "(right)"]),
    ],
)
def test_cells_are_read(cell: str, expected: list[str]) -> None:
    assert labels_in(cell, "|", "x") == expected


@pytest.mark.parametrize("cell", ["[a, b]", "[['a']]", "{'a': 1}", "['a'", "[1.5]", "[" * 9 + "]"])
def test_a_list_that_cannot_be_read_is_named(cell: str) -> None:
    if not cell.endswith(("]", "}")):
        assert labels_in(cell, "|", "x") == [cell]
        return
    with pytest.raises(DataError, match=r"line 4: .* is not a list of labels"):
        labels_in(cell, "|", "line 4")


@pytest.mark.parametrize(
    ("labels", "separator"),
    [
        (["a", "b", "a|b"], "|"),
        (["a;b", "c;d"], ";"),
        (["a; b", "a", "c", "d", "e"], ";"),
        (["['a', 'b']", "['a']"], ","),
        (["['a']", "['b']"], ","),
        (["a, b", "a", "b"], ","),
        (["a,b", "b,c", "a,c"], ","),
        (["cat+dog", "cat", "dog"], "+"),
        (["a\nb", "a"], "\n"),
    ],
)
def test_several_labels_in_one_are_recognised(labels: list[str], separator: str) -> None:
    assert separator_in(labels) == separator
    with pytest.raises(DataError, match="several in one") as caught:
        refuse_combined(labels, "x.csv")
    assert "data.label_separator" in caught.value.cure
    assert "\n" not in caught.value.cure


@pytest.mark.parametrize(
    "labels",
    [
        ["cat", "dog"],
        ["collecting duct, connecting tubule", "leukocytes", "podocytes"],
        ["A+", "A-", "B+"],
        ["and/or", "neither"],
        ["cat|bird", "dog", "emu", "fox"],
        ["(left)", "(right)", "middle"],
        ["R&D", "sales"],
        [],
    ],
)
def test_names_with_such_characters_are_left_alone(labels: list[str]) -> None:
    assert separator_in(labels) is None
    refuse_combined(labels, "x")
