"""What is said between coordinator and site: exact when sound, refused by name when not."""

from __future__ import annotations

import contextlib
import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import SiteError
from fedsight.core.types import PartSpec, Sum
from fedsight.engines.remote import messages

SIZES = st.dictionaries(st.text(max_size=5), st.integers(0, 40), max_size=4)
COUNTS = st.integers(0, messages.MAX_COUNT)
FINITE = st.floats(-messages.MAX_SUM, messages.MAX_SUM)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(SIZES, st.integers(0, 2**32))
def test_vectors_come_out_as_they_went_in_bit_for_bit(sizes: dict[str, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = {name: rng.integers(0, 2**32, size, np.uint32) for name, size in sizes.items()}
    parts = {name: torch.from_numpy(value.view(np.float32)) for name, value in bits.items()}
    sent = bytearray(messages.pack(parts.values()))  # any bit pattern: NaNs of all kinds too
    assert len(sent) == 4 * sum(sizes.values())
    found = messages.unpack(sent, sizes)
    assert list(found) == list(sizes)
    for name, value in bits.items():
        assert np.array_equal(found[name].numpy().view(np.uint32), value)


@given(SIZES, st.binary(max_size=300))
def test_bytes_of_another_length_are_refused(sizes: dict[str, int], data: bytes) -> None:
    if len(data) == 4 * sum(sizes.values()):
        data += b"!"
    with pytest.raises(ValueError, match=r"bytes, not"):
        messages.unpack(bytearray(data), sizes)


def test_what_is_unpacked_may_be_changed_and_changes_nothing_else() -> None:
    buffer = bytearray(messages.pack([torch.ones(3)]))
    found = messages.unpack(buffer, {"a": 3})["a"]
    found += 1
    assert found.tolist() == [2, 2, 2]


@given(st.integers(0, 9), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9))
def test_integers_come_out_as_they_went_in_wherever_they_begin(
    floats: int, integers: list[int]
) -> None:
    """After an odd number of float32 values, integers are not aligned in the message."""
    specs = {"delta": PartSpec((floats,)), "sums": PartSpec((len(integers),), torch.int64)}
    values = torch.tensor(integers, dtype=torch.int64)
    sent = bytearray(messages.pack([torch.ones(floats), values]))
    assert len(sent) == sum(spec.bytes for spec in specs.values())
    found = messages.unpack_parts(sent, specs)
    assert torch.equal(found["sums"], values)
    assert found["sums"].data_ptr() % 8 == 0 or not integers
    with pytest.raises(ValueError, match="bytes, not"):
        messages.unpack_parts(sent + b"x", specs)


@given(st.integers(0, 5 * messages.PIECE + 9))
def test_pieces_cover_everything_once(total: int) -> None:
    found = list(messages.PieceSizer().pieces(total))
    assert found[0][0] == 0
    assert found[-1][1] == total
    assert all(one[1] == other[0] for one, other in pairwise(found))
    assert all(0 < stop - start <= messages.PIECE for start, stop in found) or found == [(0, 0)]


@given(st.dictionaries(st.text(max_size=5), JUNK))
def test_a_header_is_the_fields_of_a_json_object(fields: dict[str, Any]) -> None:
    text = json.dumps(fields)
    assert json.dumps(messages.read_header(text, "x")) == text


NO_HEADERS = {
    "none": None,
    "a number": 7,
    "bytes": b"{}",
    "a list": [],
    "a dict": {},
    "nothing": "",
    "a cut object": '{"round": 1',
    "a JSON list": "[1]",
    "a JSON number": "1",
    "null": "null",
    "junk": "\x00\xff{",
    "a deep nest": "[" * 100_000,
    "a deep object": '{"a":' * 100_000,
    "an endless number": '{"a": ' + "1" * 5000 + "}",
    "too many values": '{"a": [' + "0," * messages.HEADER.values + "0]}",
    "too long": '{"a": "' + "x" * messages.HEADER.characters + '"}',
}


@pytest.mark.parametrize("text", NO_HEADERS.values(), ids=NO_HEADERS.keys())
def test_what_is_no_header_is_refused_with_the_senders_name(text: Any) -> None:
    with pytest.raises(SiteError, match="site 'x' sent a message") as caught:
        messages.read_header(text, "site 'x'")
    assert caught.value.cure


@given(st.text(max_size=40))
def test_any_text_is_a_header_or_refused(text: str) -> None:
    try:
        found = messages.read_header(text, "x")
    except SiteError:
        return
    assert isinstance(found, dict)


@given(COUNTS)
def test_a_count_is_read(value: int) -> None:
    assert messages.whole_number({"n": value}, "n", "x") == value


@given(JUNK | st.integers(max_value=-1) | st.integers(min_value=messages.MAX_COUNT + 1))
def test_any_value_is_a_count_or_refused(value: Any) -> None:
    if type(value) is int and 0 <= value <= messages.MAX_COUNT:
        return
    with pytest.raises(SiteError, match=r"site 'x' sent n = .* not a valid count") as caught:
        messages.whole_number({"n": value}, "n", "site 'x'")
    assert len(caught.value.cause) < 200


@pytest.mark.parametrize(
    "value", [True, 1.0, "1", None, -1, messages.MAX_COUNT + 1, [1], "x" * 10**6]
)
def test_what_is_nearly_a_count_is_refused_in_few_words(value: Any) -> None:
    with pytest.raises(SiteError) as caught:
        messages.whole_number({"n": value}, "n", "x")
    assert len(caught.value.cause) < 200
    with pytest.raises(SiteError):
        messages.whole_number({}, "n", "x")


SHAPES = st.lists(st.integers(0, 4), max_size=2).map(tuple)


@given(st.dictionaries(st.text(max_size=5), st.tuples(SHAPES, COUNTS), max_size=3), st.data())
def test_sums_keep_all_their_bits(
    shapes: dict[str, tuple[tuple[int, ...], int]], data: st.DataObject
) -> None:
    sums = {}
    for name, (shape, count) in shapes.items():
        size = math.prod(shape)
        values = data.draw(st.lists(FINITE, min_size=size, max_size=size))
        sums[name] = Sum(np.array(values, np.float64).reshape(shape), count)
    kinds = {name: shape for name, (shape, _) in shapes.items()}
    text = json.dumps(messages.metrics_table(sums))
    messages.HeaderLimits(2, 1).with_sums(kinds).check(text, "x")
    found = messages.read_metrics(json.loads(text), kinds, "x")
    assert found.keys() == sums.keys()
    for name, one in sums.items():
        assert found[name].count == one.count
        assert found[name].total.shape == one.total.shape
        assert found[name].total.tobytes() == one.total.tobytes()
        assert found[name].total.dtype == np.float64


NO_SUMS = {
    "none": None,
    "a list": [["loss", [1.0, 2]]],
    "a number": 3,
    "no pair": {"loss": 1.0},
    "three": {"loss": [1.0, 2, 3]},
    "NaN": {"loss": [math.nan, 2]},
    "infinite": {"loss": [math.inf, 2]},
    "infinities that cancel": {"loss": [[math.inf, -math.inf], 2]},
    "a NaN among numbers": {"loss": [[1.0, math.nan], 2]},
    "ragged": {"loss": [[[1.0], [1.0, 2.0]], 2]},
    "a text": {"loss": ["1.5", 2]},
    "texts": {"loss": [["1", "2"], 2]},
    "a truth value": {"loss": [True, 2]},
    "nothing": {"loss": [None, 2]},
    "an object": {"loss": [{"a": 1}, 2]},
    "beyond floats": {"loss": [10**400, 2]},
    "beyond floats among numbers": {"loss": [[1.0, 10**400], 2]},
    "a fractional count": {"loss": [1.0, 2.5]},
    "a true count": {"loss": [1.0, True]},
    "a negative count": {"loss": [1.0, -1]},
    "an enormous count": {"loss": [1.0, messages.MAX_COUNT + 1]},
    "other names": {"accuracy": [1.0, 2]},
    "a name too many": {"loss": [1.0, 2], "accuracy": [1.0, 2]},
    "no name": {},
    "a longer row": {"loss": [[1.0, 2.0, 3.0], 2]},
    "too deep a row": {"loss": [[[1.0, 2.0], [1.0, 2.0]], 2]},
    "a deep nest": {"loss": [json.loads("[" * 500 + "]" * 500), 2]},
}


@pytest.mark.parametrize("shape", [(), (2,), (1, 2), (500,)])
@pytest.mark.parametrize("table", NO_SUMS.values(), ids=NO_SUMS.keys())
def test_what_are_no_finite_sums_is_refused_with_the_senders_name(
    table: Any, shape: tuple[int, ...]
) -> None:
    with pytest.raises(SiteError, match=r"^site 'x' sent figures that are not the finite"):
        messages.read_metrics(table, {"loss": shape}, "site 'x'")


def test_large_finite_sums_pass() -> None:
    largest = messages.MAX_SUM
    found = messages.read_metrics({"loss": [[largest, -largest], 2]}, {"loss": (2,)}, "x")
    assert found["loss"].total.tolist() == [largest, -largest]


def test_sums_of_all_sites_stay_finite() -> None:
    assert math.isfinite(messages.MAX_SUM * messages.MAX_COUNT)
    with pytest.raises(SiteError):
        messages.read_metrics({"loss": [1e308, 2]}, {"loss": ()}, "x")


@given(JUNK, st.dictionaries(st.sampled_from(["", "a", "loss"]), SHAPES, max_size=2))
def test_any_table_is_sums_or_refused(table: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    try:
        found = messages.read_metrics(table, shapes, "x")
    except SiteError:
        return
    assert {name: one.total.shape for name, one in found.items()} == shapes
    assert all(np.isfinite(one.total).all() for one in found.values())


def test_pieces_grow_over_a_quick_line_and_shrink_over_a_slow_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(messages.time, "monotonic", lambda: now[0])
    sizer, total = messages.PieceSizer(), 40 << 20
    for seconds, size in ((0.01, messages.PIECE), (1.0, messages.PIECE), (9.0, messages.MIN_PIECE)):
        for _ in sizer.pieces(total):
            now[0] += seconds
        assert sizer.size == size


def test_an_overdue_piece_makes_room_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(messages.time, "monotonic", lambda: now[0])
    budget, third = messages.Budget(), messages.IN_FLIGHT // 3

    def fill() -> contextlib.ExitStack:
        held = contextlib.ExitStack()
        for _ in range(3):
            held.enter_context(budget.take(third, 0.0))
        with pytest.raises(TimeoutError), budget.take(third, 0.0):
            raise AssertionError
        return held

    hung = fill()
    now[0] += messages.OVERDUE
    with fill():
        hung.close()  # its room was given back already
        with pytest.raises(TimeoutError), budget.take(third, 0.0):
            raise AssertionError
    fill().close()
    with budget.take(100 * messages.IN_FLIGHT, 0.0):  # more than all of it is all of it
        pass
