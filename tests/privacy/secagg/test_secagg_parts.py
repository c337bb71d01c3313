"""Shares, masks, packing, rounding and key files each do what the protocol leans on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import DeployError, SiteError
from fedsight.privacy.secagg import masks, pack, shares
from fedsight.privacy.secagg.keys import Identity
from fedsight.privacy.secagg.quantise import Quantiser
from fedsight.privacy.secure import Secure

SECRET = st.binary(min_size=32, max_size=32)


@given(SECRET, st.sets(st.integers(0, 20_000), min_size=1, max_size=12), st.data())
def test_any_threshold_of_shares_make_the_secret(
    secret: bytes, holders: set[int], data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, len(holders)))
    dealt = shares.split(secret, sorted(holders), threshold)
    some = data.draw(st.sets(st.sampled_from(sorted(holders)), min_size=threshold))
    assert shares.join({holder: dealt[holder] for holder in some}, threshold) == secret
    with pytest.raises(ValueError, match="shares, but"):
        shares.join(dict(list(dealt.items())[: threshold - 1]), threshold)


def test_one_share_fewer_says_nothing_and_a_wrong_one_is_noticed_or_changes_it() -> None:
    secret = b"\xff" * 32
    dealt = shares.split(secret, [0, 1, 2], 3)
    found = []
    for guess in range(50):
        try:
            forged = {**dealt, 2: guess.to_bytes(33, "big")}
            found.append(shares.join(forged, 3))
        except ValueError:
            continue
    assert secret not in found


def test_the_prime_is_one_and_no_secret_reaches_it() -> None:
    prime = shares.PRIME
    assert prime > 2**256
    assert all(pow(base, prime - 1, prime) == 1 for base in (2, 3, 5, 7, 11, 13))
    odd, twos = prime - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13):  # Miller and Rabin
        x = pow(base, odd, prime)
        chain = [pow(x, 2**power, prime) for power in range(twos)]
        assert x == 1 or prime - 1 in chain


@pytest.mark.parametrize(
    ("secret", "holders", "threshold"),
    [(b"short", [0], 1), (bytes(32), [0, 0], 1), (bytes(32), [0], 2), (bytes(32), [0, -1], 1)],
)
def test_shares_that_cannot_be_dealt_are_refused(
    secret: bytes, holders: list[int], threshold: int
) -> None:
    with pytest.raises(ValueError, match="secret"):
        shares.split(secret, holders, threshold)


@given(st.integers(0, 40_000), SECRET)
def test_a_mask_is_taken_off_again_and_does_not_depend_on_blocks(length: int, key: bytes) -> None:
    words = np.arange(length, dtype=np.uint32)
    masks.apply(words, [(key, False)])
    longer = np.arange(length + 1, dtype=np.uint32)
    masks.apply(longer, [(key, False)])
    assert np.array_equal(words, longer[:length])
    masks.apply(words, [(key, True)])
    assert np.array_equal(words, np.arange(length))


def test_a_short_key_is_no_mask_key() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        masks.apply(np.zeros(4, np.uint32), [(bytes(16), False)])


@given(st.integers(1, 32), st.integers(0, 70), st.integers(0, 2**32))
def test_packed_numbers_come_out_as_they_went_in(bits: int, count: int, seed: int) -> None:
    words = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint32)
    data = pack.pack(words, bits)
    assert len(data) == pack.size(count, bits) == -(-count * bits // 8)
    assert np.array_equal(pack.unpack(data, count, bits), words)
    number = sum(int(word) << (place * bits) for place, word in enumerate(words))
    assert int.from_bytes(data, "little") == number
    with pytest.raises(ValueError, match="bytes, not"):
        pack.unpack(data + b"x", count, bits)


def test_packing_goes_on_over_many_groups() -> None:
    words = np.random.default_rng(0).integers(0, 1 << 26, 100_003).astype(np.uint32)
    assert np.array_equal(pack.unpack(pack.pack(words, 26), len(words), 26), words)


def quantiser(size: int = 5, terms: int = 4, cap: int = 10, **secure: object) -> Quantiser:
    return Secure(**secure).quantiser({"delta": size}, terms, cap, 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("sites", "bits"), [(100, 25), (1_000, 22), (10_000, 18), (2, 31)])
def test_values_have_as_many_bits_as_the_cohort_allows(sites: int, bits: int) -> None:
    found = quantiser(terms=sites)
    assert found.bits == bits
    assert found.modulus == 32
    assert sites * ((1 << bits) - 1) < 2**32


def test_given_bits_make_a_smaller_modulus() -> None:
    found = quantiser(terms=1024, bits=16)
    assert (found.bits, found.modulus) == (16, 26)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=6), st.integers(0, 99))
def test_the_mean_of_levels_is_the_weighted_mean(weights: list[int], seed: int) -> None:
    how = quantiser(size=50, terms=len(weights), clip=1.0, bits=20)
    draws = np.random.default_rng(seed)
    values = [draws.uniform(-1, 1, 50).astype(np.float32) for _ in weights]
    total = np.zeros(50, np.uint32)
    for number, (value, weight) in enumerate(zip(values, weights, strict=True)):
        total += how.encode({"delta": torch.from_numpy(value)}, weight, f"s{number}", 0, 1)
    found = how.decode(total, len(weights), sum(weights))["delta"].numpy()
    due = sum(v.astype(float) * w for v, w in zip(values, weights, strict=True)) / sum(weights)
    step = 2 * 1.0 / (2**20 - 1) * how.cap
    assert np.abs(found - due).max() <= step * len(weights) / sum(weights)


def test_rounding_has_no_bias() -> None:
    how = quantiser(size=200_000, terms=1, cap=1, clip=1.0, bits=8)
    value = 0.3
    words = how.encode({"delta": torch.full((200_000,), value)}, 1, "a", 0, 1)
    assert set(np.unique(words)) == {165, 166}
    mean = float(how.decode(words, 1, 1)["delta"].mean())
    assert abs(mean - value) < 5 * 2 / 255 / 2 / 200_000**0.5


def test_clipping_is_by_coordinate_and_by_the_norm_of_all_parts() -> None:
    cut = quantiser(size=3, terms=1, cap=1, clip=0.5)
    words = cut.encode({"delta": torch.tensor([-9.0, 9.0, 0.25])}, 1, "a", 0, 1)
    assert cut.decode(words, 1, 1)["delta"].tolist() == pytest.approx([-0.5, 0.5, 0.25])
    assert words[0] == 0
    sizes = {"delta": 1, "control": 1}
    both = Secure(clip=1.0, norm=0.5).quantiser(sizes, 1, 1, 0.1)
    assert both.ranges == {"delta": 1.0, "control": 10.0}
    payload = {"delta": torch.tensor([0.6]), "control": torch.tensor([0.8])}
    found = both.decode(both.encode(payload, 1, "a", 0, 1), 1, 1)
    assert float(found["delta"]) == pytest.approx(0.3)
    assert float(found["control"]) == pytest.approx(0.4)


def test_an_update_of_nothing_has_no_norm_to_divide_by() -> None:
    how = quantiser(norm=1.0)
    zero = how.encode({"delta": torch.zeros(5)}, 1, "a", 0, 1)
    assert how.decode(zero, 1, 1)["delta"].abs().max() < 1e-6


@pytest.mark.parametrize(
    ("payload", "weight", "why"),
    [
        ({"delta": torch.tensor([0.0, float("nan"), 0, 0, 0])}, 1, "not finite"),
        ({"delta": torch.tensor([0.0, float("-inf"), 0, 0, 0])}, 1, "not finite"),
        ({"delta": torch.zeros(5)}, 11, "weight 11, but secure.cap is 10"),
        ({"delta": torch.zeros(5)}, 0, "weight 0"),
        ({"delta": torch.zeros(5)}, 1.5, "weight 1.5"),
        ({"delta": torch.zeros(4)}, 1, r"sent values of shape \(4,\)"),
        ({"delta": torch.zeros(5, dtype=torch.float64)}, 1, "float64"),
        ({"control": torch.zeros(5)}, 1, "the parts"),
    ],
)
def test_what_may_not_be_summed_is_refused_by_name(payload, weight, why) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SiteError, match=why) as caught:
        quantiser().encode(payload, weight, "clinic", 0, 1)
    assert "'clinic'" in caught.value.cause


def test_a_key_file_is_made_for_its_owner_only_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    first = Identity.at(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Identity.at(path).public == first.public


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_file_that_others_may_use_is_refused_with_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    Identity.at(path)
    path.chmod(mode)
    with pytest.raises(DeployError, match=f"mode {mode:04o}"):
        Identity.at(path)


def test_a_key_file_that_holds_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(b"short")
    path.chmod(0o600)
    with pytest.raises(DeployError, match="5 bytes"):
        Identity.at(path)
    with pytest.raises(DeployError, match="cannot be used"):
        Identity.at(tmp_path / "nowhere" / "identity.key")


def test_many_masks_are_added_group_by_group() -> None:
    keys = [(bytes([n % 256, n // 256]) * 16, bool(n % 3)) for n in range(masks.TOGETHER + 5)]
    at_once, one_by_one = np.zeros(40, np.uint32), np.zeros(40, np.uint32)
    masks.apply(at_once, keys)
    for key in keys:
        masks.apply(one_by_one, [key])
    assert np.array_equal(at_once, one_by_one)
