"""Masked integers: the sum is that of Python's integers, whoever drops out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import secagg_rounds
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsight.aggregation.secure import EncodingPlan, SecureSum
from fedsight.core.errors import SiteError
from fedsight.core.sums import LIMIT
from fedsight.core.types import PartSpec
from fedsight.privacy.mechanisms.none import Unprotected
from fedsight.privacy.noise import Noise
from fedsight.privacy.secagg import masks, pack, words
from fedsight.privacy.secagg.graph import parameters
from fedsight.privacy.secagg.integers import Integers
from fedsight.privacy.secagg.local import LocalExchange
from fedsight.privacy.secagg.messages import Binding
from fedsight.privacy.secure import Secure

KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")


def plan(integers: dict[str, PartSpec], delta: int = 0, name: str = "secagg") -> EncodingPlan:
    sizes = {"delta": delta} if delta else {}
    noise = partial(Noise, 0)
    return EncodingPlan(Secure(name=name), sizes, 0, 9, 0.1, Unprotected(), 1, noise, integers)


def integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[dict[str, PartSpec], list[dict[str, list[int]]], set[int]]:
    """Integer parts, what each site has of them, and which sites drop out."""
    sites = draw(st.integers(3, 6))
    bounds = draw(
        st.lists(
            st.one_of(st.none(), st.integers(0, LIMIT // sites), st.sampled_from([0, 1, 4095])),
            min_size=1,
            max_size=3,
        )
    )
    specs, values = {}, {}
    for number, bound in enumerate(bounds):
        size = draw(st.integers(0, 7))
        specs[f"p{number}"] = PartSpec((size,), torch.int64, bound=bound)
        most = LIMIT // sites if bound is None else bound
        one = st.one_of(st.integers(-most, most), st.sampled_from([-most, most]))
        values[f"p{number}"] = st.lists(one, min_size=size, max_size=size)
    replies = [{part: draw(lists) for part, lists in values.items()} for _ in range(sites)]
    allowed = sites - parameters(sites, 0.0, 0.2, True).survivors
    gone = draw(st.sets(st.integers(0, sites - 1), max_size=allowed))
    return specs, replies, gone


@settings(max_examples=25)
@given(rounds(), st.sampled_from([0, 5]))
def test_the_masked_sum_is_the_plain_one_whoever_drops_out(
    drawn: tuple[dict[str, PartSpec], list[dict[str, list[int]]], set[int]], delta: int
) -> None:
    specs, replies, gone = drawn
    names = [f"s{n}" for n in range(len(replies))]
    of, exchange = plan(specs, delta), LocalExchange("run")
    masked, plain = (
        SecureSum(of, len(names)),
        SecureSum(plan(specs, delta, "quantised"), len(names)),
    )
    given = parameters(len(names), 0.0, 0.2, True)
    maskers = exchange.begin(1, "order", names, given, masked.quantiser)
    plain.begin(1, {})
    left = [n for n in range(len(names)) if n not in gone]
    for n in left:
        payload: dict[str, Tensor] = {p: integers(v) for p, v in replies[n].items()}
        if delta:
            payload["delta"] = torch.full((delta,), 0.1 * n - 0.2)
        plain.add(payload, 3, names[n])
        # As between machines: packed, sent, unpacked.
        sent = of.protect(masked.quantiser, payload, 3, names[n], 1, maskers[names[n]])
        data = words.packed(sent, masked.quantiser)
        assert len(data) == words.size(masked.quantiser)
        masked.add_words(words.unpacked(data, masked.quantiser), 3, names[n])
    exchange.finish(masked.words, [names[n] for n in left])
    for part, spec in specs.items():
        columns = [[replies[n][part][i] for n in left] for i in range(spec.values)]
        due = [sum(column) for column in columns]
        assert masked.integers()[part].tolist() == due == plain.integers()[part].tolist()
    if delta:
        assert torch.equal(masked.mean()["delta"], plain.mean()["delta"])


@given(st.integers(1, 64), st.integers(0, 70), st.integers(0, 2**32))
def test_wide_numbers_come_out_as_they_went_in(bits: int, count: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)
    numbers = pack.lowest(numbers, bits)
    data = pack.pack(numbers, bits)
    assert len(data) == pack.size(count, bits)
    number = sum(int(one) << (place * bits) for place, one in enumerate(numbers))
    assert int.from_bytes(data, "little") == number
    assert np.array_equal(pack.unpack_wide(data, count, bits), numbers)
    with pytest.raises(ValueError, match="bytes, not"):
        pack.unpack_wide(data + b"x", count, bits)


@given(st.integers(1, 1 << 20), st.integers(0, LIMIT))
def test_a_modulus_holds_every_sum_and_no_bit_more(terms: int, bound: int) -> None:
    of = Integers.of({"p": PartSpec((1,), torch.int64, bound=bound)}, terms)
    most = terms * of.bounds["p"]
    bits = of.modulus("p")
    assert most <= LIMIT
    assert 2 * most + 1 <= 1 << bits <= 1 << 64
    assert bits == 1 or 2 * most >= 1 << (bits - 1)
    for total in (most, -most):
        word = np.array([total % 2**64], np.uint64)
        assert of.decode(word)["p"].tolist() == [total]
        assert of.decode(of.unpack(of.pack(word)))["p"].tolist() == [total]


def test_a_modulus_is_what_a_site_needs_and_the_spare_bits_of_the_sum() -> None:
    """Three sites and values below 2^20 in absolute value: 21 bits, and 2 for the sum."""
    of = Integers.of({"p": PartSpec((1000,), torch.int64, bound=(1 << 20) - 1)}, 3)
    assert of.modulus("p") == 23
    assert of.packed_size == 23 * 1000 // 8
    assert replace(of, bounds={"p": LIMIT // 3}).packed_size == 8 * 1000


def test_wide_masks_are_aes_256_ctr_of_nist_sp_800_38a_f_5_5() -> None:
    """As little-endian uint64, from the counter of that document."""
    found = np.zeros(8, np.uint64)
    masks.apply(found, [(KEY, False)], bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))
    stream = (
        "0bdf7df1591716335e9a8b15c860c5025a6e699d536119065433863c8f657b94"
        "1bc12c9c01610d5d0d8bd6a3378eca622956e1c8693536b1bee99c73a31576b6"
    )
    assert found.astype("<u8").tobytes().hex() == stream


def test_the_two_masks_of_a_key_have_no_block_in_common() -> None:
    """Else the masks of integers would be known where those of known levels are."""
    narrow, wide = np.zeros(1 << 16, np.uint32), np.zeros(1 << 15, np.uint64)
    masks.apply(narrow, [(KEY, False)])
    masks.apply(wide, [(KEY, False)])
    blocks = [set(one.view("V16").tolist()) for one in (narrow, wide)]
    assert len(blocks[0]) == len(blocks[1]) == 1 << 14
    assert not blocks[0] & blocks[1]


@given(st.integers(0, 20_000))
def test_a_wide_mask_is_taken_off_again_and_does_not_depend_on_blocks(length: int) -> None:
    found, longer = np.arange(length, dtype=np.uint64), np.arange(length + 1, dtype=np.uint64)
    masks.apply(found, [(KEY, False)])
    masks.apply(longer, [(KEY, False)])
    assert np.array_equal(found, longer[:length])
    masks.apply(found, [(KEY, True)])
    assert np.array_equal(found, np.arange(length))


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ({"p": torch.tensor([5, 11])}, r"the integer 11, .* at most 10"),
        ({"p": torch.tensor([-11, 5])}, r"the integer -11"),
        ({"p": torch.tensor([-(2**63), 5])}, r"-9,223,372,036,854,775,808"),
        ({"p": torch.tensor([1, 2, 3])}, r"shape \(3,\)"),
        ({"p": torch.tensor([1.0, 2.0])}, "float32 as 'p', expected"),
        ({"q": torch.tensor([1, 2])}, r"the parts \['q'\], expected \['p'\]"),
        ({}, r"the parts \[\]"),
    ],
)
def test_integers_that_may_not_be_summed_are_refused_by_the_name_of_the_site(
    payload: dict[str, Any], why: str
) -> None:
    of = plan({"p": PartSpec((2,), torch.int64, bound=10)}, name="quantised")
    total = SecureSum(of, 3)
    with pytest.raises(SiteError, match=f"site 'clinic'.*{why}"):
        total.add(payload, 1, "clinic")
    assert (total.count, total.words.integers.tolist()) == (0, [0, 0])


def test_the_binding_covers_the_layout_of_the_integers() -> None:
    """Another length, bound or order of the parts is another round."""
    base = {"p": PartSpec((2,), torch.int64, bound=10), "q": PartSpec((3,), torch.int64)}
    others = [
        {**base, "p": PartSpec((3,), torch.int64, bound=10)},
        {**base, "p": PartSpec((2,), torch.int64, bound=11)},
        {"p": base["p"]},
        {},
    ]
    tables = [plan(specs, 4).quantiser(5).table() for specs in (base, *others)]
    given = parameters(5, 0.0, 0.3, True)
    digests = {secagg_rounds.binding(5, given, quantiser=table).digest for table in tables}
    assert len(digests) == len(tables)
    of = secagg_rounds.binding(5, given, quantiser=tables[0])
    assert Binding.read(of.data).digest == of.digest, "it survives the way to a site"


def test_a_message_of_another_length_is_refused() -> None:
    of = plan({"p": PartSpec((2,), torch.int64)}, 3).quantiser(3)
    for data in (b"", bytes(words.size(of) - 1), bytes(words.size(of) + 1)):
        with pytest.raises(ValueError, match=r"expected 28 bytes, not"):
            words.unpacked(data, of)
