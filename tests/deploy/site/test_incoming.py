"""Vectors that arrive in pieces: complete or not available, and unchangeable once in use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import SiteError
from fedsight.core.layout import Entry, Kind, Layout
from fedsight.deploy.site.incoming import EXTRAS, IncomingVectors, lengths_of

DATA = bytes(range(1, 13))
LENGTHS = {"vector": 16, "extras": 0}
PIECES = st.lists(st.tuples(st.integers(0, len(DATA)), st.integers(0, len(DATA))), max_size=12)


def piece(start: int, stop: int, mark: int = 1) -> tuple[dict[str, Any], bytes]:
    fields = {"name": "vector", "mark": mark, "start": start, "total": len(DATA)}
    return fields, DATA[start:stop]


def in_use(mark: int = 1) -> IncomingVectors:
    """A vector that has arrived, and is in use."""
    found = IncomingVectors()
    found.add(*piece(0, len(DATA), mark), LENGTHS)
    assert found.take("vector", mark) == DATA
    return found


@given(PIECES)
def test_a_vector_is_available_exactly_when_all_pieces_have_arrived(
    pieces: list[tuple[int, int]],
) -> None:
    found, arrived = IncomingVectors(), set()
    for start, stop in pieces:
        found.add(*piece(start, stop), LENGTHS)
        arrived.update(range(start, stop))
    if len(arrived) == len(DATA):
        assert found.take("vector", 1) == DATA
    else:
        with pytest.raises(SiteError, match=r"^the vector has not been received|^pieces"):
            found.take("vector", 1)
        found.add(*piece(0, len(DATA)), LENGTHS)  # the rest may still arrive
        assert found.take("vector", 1) == DATA


def test_an_empty_vector_is_complete_with_its_one_empty_piece() -> None:
    found = IncomingVectors()
    with pytest.raises(SiteError, match="has not been received"):
        found.take("extras", 3)
    found.add({"name": "extras", "mark": 3, "start": 0, "total": 0}, b"", LENGTHS)
    assert found.take("extras", 3) == b""


@given(st.integers(0, len(DATA) - 1), st.binary(min_size=1, max_size=len(DATA)))
def test_a_vector_in_use_does_not_change(start: int, body: bytes) -> None:
    found = in_use()
    used, body = found.take("vector", 1), body[: len(DATA) - start]
    fields, same = piece(start, start + len(body))
    if body == same:
        found.add(fields, body, LENGTHS)
    else:
        with pytest.raises(SiteError, match="would change the vector while it is in use"):
            found.add(fields, body, LENGTHS)
    assert used == DATA
    assert found.take("vector", 1) is used  # the same request may be sent again


def test_a_repeated_or_late_piece_does_no_harm() -> None:
    found = in_use(7)
    used = found.take("vector", 7)
    found.add(*piece(4, 8, 7), LENGTHS)
    found.add(*piece(4, 8, 6), LENGTHS)  # a late piece of an earlier vector
    found.add({"name": "vector", "mark": 8, "start": 0, "total": 2}, b"ab", LENGTHS)
    assert found.take("vector", 8) == b"ab"
    assert used == DATA
    with pytest.raises(SiteError, match="has not been received"):
        found.take("vector", 7)


@pytest.mark.parametrize("closed", [True, False])
def test_a_vector_keeps_its_length(closed: bool) -> None:
    found = in_use() if closed else IncomingVectors()
    found.add(*piece(0, len(DATA)), LENGTHS)
    with pytest.raises(SiteError, match="a piece of 'vector' does not fit"):
        found.add({"name": "vector", "mark": 1, "start": 0, "total": 4}, b"abcd", LENGTHS)
    assert found.take("vector", 1) == DATA


MISFITS: dict[str, dict[str, Any]] = {
    "beyond the end": {"start": 6, "total": 8},
    "unknown name": {"name": "labels"},
    "a vector that the run does not need": {"name": "kept"},
    "no name": {"name": None},
    "too large": {"total": 17},
    "negative start": {"start": -4},
    "fractional start": {"start": 0.5},
    "no total": {"total": None},
}


@pytest.mark.parametrize("changes", MISFITS.values(), ids=MISFITS.keys())
def test_a_piece_that_does_not_fit_is_refused_and_not_kept(changes: dict[str, Any]) -> None:
    found = IncomingVectors()
    with pytest.raises(SiteError):
        found.add(
            {"name": "vector", "mark": 1, "start": 0, "total": 8, **changes}, b"1234", LENGTHS
        )
    with pytest.raises(SiteError, match="the vector has not been received"):
        found.take("vector", 1)


def test_the_lengths_are_those_of_the_network() -> None:
    kinds = (Kind.SHARED, Kind.BUFFER, Kind.PERSONAL, Kind.FROZEN)
    entries = tuple(Entry(kind.name, (10,), kind, 10 * n) for n, kind in enumerate(kinds))
    known = {"vector": 80, "extras": 4 * 40 * EXTRAS, "kept": 80}
    assert lengths_of(Layout(entries), [torch.zeros(20)]) == known
    many = [torch.zeros(100), torch.zeros(200)]
    assert lengths_of(Layout(entries), many) == {**known, "extras": 1200}
