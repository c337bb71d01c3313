"""Masks from a 32-bit seed, as Flower's SecAgg+ makes them, hide nothing; ours withstand this.

Flower's SecAgg+ folds the 32-byte secret that two clients share into 32 bits and seeds NumPy's
Mersenne twister with them. A curious server that colludes with all neighbours of a client but one
lacks one such mask, and tries all seeds. It knows
when it is right: quantised updates fill 22 of the 32 bits, so what remains of a wrong guess is too
large in 1,023 of 1,024 coordinates.

The first number of the twister depends on three of its 624 words, which are computed here for many
seeds at once. The test searches the 2^20 seeds around the right one, a fraction of a second; all
2^32 are 4,096 such searches, a quarter of an hour on one core with NumPy, less in compiled code.
"""

from __future__ import annotations

import secrets

import numpy as np
import pytest

from fedsight.privacy.secagg import masks
from fedsight.privacy.secagg.graph import parameters
from fedsight.privacy.secagg.local import LocalExchange
from fedsight.privacy.secagg.masks import Residues
from fedsight.privacy.secure import Secure

BITS = 22  # of a quantised value, as in Flower's default
LENGTH = 1_000
WINDOW = 1 << 20  # seeds tried here of the 2^32


def fold(secret: bytes) -> int:
    """32 bytes become 32 bits, as in Flower's `pseudo_rand_gen`."""
    return int(np.bitwise_xor.reduce(np.frombuffer(secret, "<u4")))


def weak_mask(seed: int) -> Residues:
    """The mask that is made of them."""
    return np.random.RandomState(seed).randint(0, 1 << 32, LENGTH, dtype=np.uint32)


def first_numbers(seeds: Residues) -> Residues:
    """The first number of the Mersenne twister (Matsumoto and Nishimura 1998) for each seed."""
    word = seeds.copy()
    first, second = seeds, seeds
    for place in range(1, 398):
        word = np.uint32(1812433253) * (word ^ (word >> np.uint32(30))) + np.uint32(place)
        if place == 1:
            second = word
    joined = (first & np.uint32(0x80000000)) | (second & np.uint32(0x7FFFFFFF))
    y = word ^ (joined >> np.uint32(1)) ^ ((joined & np.uint32(1)) * np.uint32(0x9908B0DF))
    y ^= y >> np.uint32(11)
    y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
    y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
    return y ^ (y >> np.uint32(18))


def attack(masked: Residues, centre: int) -> tuple[int, Residues] | None:
    """The seed whose mask, once taken off, leaves an update, and that update; None if none does."""
    start = centre & ~(WINDOW - 1)
    for begin in range(start, start + WINDOW, 1 << 16):
        seeds = np.arange(begin, begin + (1 << 16), dtype=np.uint64).astype(np.uint32)
        first = first_numbers(seeds)
        for sign in (1, -1):  # whether the client added the mask or subtracted it
            left = masked[0] - first if sign == 1 else masked[0] + first
            for seed in seeds[left < 1 << BITS]:
                mask = weak_mask(int(seed))
                update = masked - mask if sign == 1 else masked + mask
                if update.max() < 1 << BITS:
                    return int(seed), update
    return None


@pytest.fixture
def update() -> Residues:
    """What a client wants to hide."""
    return np.random.default_rng(0).integers(0, 1 << BITS, LENGTH).astype(np.uint32)


def test_first_numbers_are_those_of_numpy() -> None:
    seeds = np.array([0, 1, 42, 2**31, 2**32 - 1, 123_456_789], np.uint32)
    due = [int(weak_mask(int(seed))[0]) for seed in seeds]
    assert first_numbers(seeds).tolist() == due


def test_an_update_masked_from_32_bit_seeds_is_recovered(update: Residues) -> None:
    own, *pairs = (secrets.token_bytes(32) for _ in range(4))
    masked = update + weak_mask(fold(own))  # the server is told the own one: the client survived
    for secret in pairs:
        masked += weak_mask(fold(secret))
    known = [weak_mask(fold(secret)) for secret in (own, *pairs[:-1])]  # the others collude
    left = masked - np.sum(known, axis=0, dtype=np.uint32)
    found = attack(left, fold(pairs[-1]))
    assert found is not None
    assert found[0] == fold(pairs[-1])
    assert np.array_equal(found[1], update)


def test_the_same_attack_fails_on_ours(update: Residues) -> None:
    sites = [f"site-{number}" for number in range(4)]
    quantiser = Secure(bits=BITS).quantiser({"delta": LENGTH}, 4, 1, 0.1)
    local = LocalExchange("run")
    maskers = local.begin(1, "model", sites, parameters(4, 0.0, 0.25, True), quantiser)
    masked = update.copy()
    masker = maskers["site-0"]
    masker.mask(masked)
    *colluding, (last, subtract) = masker.pairs
    masks.apply(masked, [(masker.own, True), *((key, not less) for key, less in colluding)])
    # All that the attacker lacks is one key. Wherever 32 bits of it are looked for: nothing.
    for centre in (fold(last), int(np.frombuffer(last, "<u4")[0])):
        assert attack(masked, centre) is None
    masks.apply(masked, [(last, not subtract)])  # only the whole key of 256 bits does it
    assert np.array_equal(masked, update)
