"""Vectors on their way to a site: whole or not at all, and unchangeable once they are in use."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import SiteError
from fedsight.deploy.site.incoming import Incoming

DATA = bytes(range(1, 13))
PIECES = st.lists(st.tuples(st.integers(0, len(DATA)), st.integers(0, len(DATA))), max_size=12)


def piece(start: int, stop: int, mark: int = 1) -> tuple[dict[str, Any], bytes]:
    fields = {"name": "vector", "mark": mark, "start": start, "total": len(DATA)}
    return fields, DATA[start:stop]


def whole(mark: int = 1) -> Incoming:
    """A vector that has come, and is in use."""
    found = Incoming()
    found.add(*piece(0, len(DATA), mark))
    assert found.whole("vector", mark) == DATA
    return found


@given(PIECES)
def test_a_vector_is_handed_out_just_when_all_of_it_has_come(pieces: list[tuple[int, int]]) -> None:
    found, came = Incoming(), set()
    for start, stop in pieces:
        found.add(*piece(start, stop))
        came.update(range(start, stop))
    if len(came) == len(DATA):
        assert found.whole("vector", 1) == DATA
    else:
        with pytest.raises(SiteError, match=r"^the vector that is meant is not here|^pieces"):
            found.whole("vector", 1)
        found.add(*piece(0, len(DATA)))  # it may still come
        assert found.whole("vector", 1) == DATA


def test_an_empty_vector_is_whole_with_its_one_empty_piece() -> None:
    found = Incoming()
    with pytest.raises(SiteError, match="not here"):
        found.whole("extras", 3)
    found.add({"name": "extras", "mark": 3, "start": 0, "total": 0}, b"")
    assert found.whole("extras", 3) == b""


@given(st.integers(0, len(DATA) - 1), st.binary(min_size=1, max_size=len(DATA)))
def test_what_is_in_use_does_not_change(start: int, body: bytes) -> None:
    found = whole()
    used, body = found.whole("vector", 1), body[: len(DATA) - start]
    fields, same = piece(start, start + len(body))
    if body == same:
        found.add(fields, body)
    else:
        with pytest.raises(SiteError, match="would change the vector after it was put to use"):
            found.add(fields, body)
    assert used == DATA
    assert found.whole("vector", 1) is used  # the same question may be asked again


def test_a_repeated_piece_is_harmless_and_the_next_vector_comes_as_ever() -> None:
    found = whole(7)
    used = found.whole("vector", 7)
    found.add(*piece(4, 8, 7))
    found.add(*piece(4, 8, 6))  # was long on its way
    found.add({"name": "vector", "mark": 8, "start": 0, "total": 2}, b"ab")
    assert found.whole("vector", 8) == b"ab"
    assert used == DATA
    with pytest.raises(SiteError, match="not here"):
        found.whole("vector", 7)


@pytest.mark.parametrize("closed", [True, False])
def test_a_vector_keeps_its_length(closed: bool) -> None:
    found = whole() if closed else Incoming()
    found.add(*piece(0, len(DATA)))
    with pytest.raises(SiteError, match="a piece of vector does not fit"):
        found.add({"name": "vector", "mark": 1, "start": 0, "total": 4}, b"abcd")
    assert found.whole("vector", 1) == DATA
