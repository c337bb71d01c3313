"""Integers under masks of 32 bits show their high bits; under masks of 64 bits they show nothing.

Sums of products are larger than 2^32. A build that masks them with the words that levels are masked
with, modulo 2^32, adds less than 2^32 for each mask: the coordinator divides by it and reads the
rest off. Another weakened build takes both masks of a key from one stream, so a known level tells
half of an integer's mask. A third lets the coordinator state the bound, and asks whether an integer
exceeds it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsight.core.errors import SiteError
from fedsight.core.types import Order, PartSpec
from fedsight.deploy.site import secagg_client
from fedsight.deploy.site.enforcement import ContractEnforcement, Requester
from fedsight.deploy.site.owner import parse_owner
from fedsight.deploy.site.secagg_client import SiteSecAgg
from fedsight.deploy.site.trainer import TrainedUpdate, TrainStep
from fedsight.engines.protected import encoding_plan_of
from fedsight.privacy.noise import Noise
from fedsight.privacy.secagg import masks
from fedsight.privacy.secagg.integers import Integers
from fedsight.privacy.secagg.masks import Masker, Residues, WideResidues
from fedsight.program.config import parse
from fedsight.program.program import Program

LENGTH, NEIGHBOURS, BINS = 4096, 3, 64
Keys = Iterable[tuple[bytes, bool]]


@pytest.fixture
def statistics() -> WideResidues:
    """Sums of products, as a site wants to hide them: positive and negative, about 2^45."""
    draws = np.random.default_rng(0)
    found = draws.integers(-(1 << 45), 1 << 45, LENGTH)
    return found.view(np.uint64)


def masker() -> Masker:
    pairs = [(secrets.token_bytes(32), bool(n % 2)) for n in range(NEIGHBOURS)]
    return Masker(secrets.token_bytes(32), pairs)


def narrow(words: Residues | WideResidues, keys: Keys, counter: bytes | None = None) -> None:
    """The weakened build: the words of the 32-bit stream, added to integers of 64 bits."""
    for key, subtract in keys:
        mask = np.zeros(len(words), np.uint32)
        masks_apply(mask, [(key, False)])
        combine = np.subtract if subtract else np.add
        combine(words, mask.astype(words.dtype), out=words)


masks_apply = masks.apply


def high_bits(words: WideResidues) -> np.ndarray:
    """What a coordinator that knows no key reads: the integers, but for their low 34 bits."""
    return np.asarray(words.view(np.int64) >> 34)


def test_high_bits_show_under_masks_of_32_bits(
    monkeypatch: pytest.MonkeyPatch, statistics: WideResidues
) -> None:
    monkeypatch.setattr(masks, "apply", narrow)
    words = statistics.copy()
    masker().mask(np.zeros(0, np.uint32), words)
    # Four masks below 2^32 each, two of them subtracted: the high bits are right, or next to it.
    assert np.abs(high_bits(words) - high_bits(statistics)).max() <= 1
    assert len(np.unique(high_bits(words))) > 1000


def test_masks_of_64_bits_leave_nothing_of_them(statistics: WideResidues) -> None:
    words = statistics.copy()
    masker().mask(np.zeros(0, np.uint32), words)
    right = np.abs(high_bits(words) - high_bits(statistics)) <= 1
    assert right.mean() < 0.01


def chi_square(words: WideResidues, shift: int) -> float:
    """How unevenly six bits of the words from `shift` on are distributed; 63 on average."""
    counts = np.bincount((words >> np.uint64(shift)).astype(np.int64) & (BINS - 1), minlength=BINS)
    due = len(words) / BINS
    return float(((counts - due) ** 2 / due).sum())


@pytest.mark.parametrize("value", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_what_is_masked_is_uniform_whatever_it_is(
    value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chi-square of 63 degrees of freedom exceeds 160 with probability 2e-10."""
    plain = np.full(1 << 14, value, np.int64).view(np.uint64)
    words = plain.copy()
    masker().mask(np.zeros(0, np.uint32), words)
    assert max(chi_square(words, shift) for shift in range(0, 59, 6)) < 160
    monkeypatch.setattr(masks, "apply", narrow)
    weak = plain.copy()
    masker().mask(np.zeros(0, np.uint32), weak)
    assert chi_square(weak, 58) > 10_000, "the test tells a mask that does not reach so far"


def test_what_is_sent_of_a_bounded_part_is_uniform_in_all_its_bits() -> None:
    of = Integers.of({"p": PartSpec((1 << 14,), torch.int64, bound=1000)}, 10)
    assert of.modulus("p") == 15
    words = np.full(1 << 14, 999, np.uint64)
    masker().mask(np.zeros(0, np.uint32), words)
    sent = of.unpack(of.pack(words))
    assert int(sent.max()) < 1 << 15
    assert max(chi_square(sent, shift) for shift in range(0, 10, 3)) < 160


def one_stream(words: Residues | WideResidues, keys: Keys, counter: bytes | None = None) -> None:
    """The weakened build: both masks of a key begin at the same block."""
    masks_apply(words, keys, bytes(16))


def half_of_the_integers(levels: Residues, integers: WideResidues) -> Residues:
    """The low half of each integer, where the levels are known: those of an update of zeros.

    An integer's mask is two words of the levels' mask, the first of them the lower one. With an own
    mask only, that word is what was added to the known level.
    """
    return integers.astype(np.uint32) - levels[: 2 * len(integers) : 2]


def test_a_stream_used_twice_tells_half_of_each_integer(
    monkeypatch: pytest.MonkeyPatch, statistics: WideResidues
) -> None:
    low = statistics.astype(np.uint32)
    for build, leaks in ((one_stream, True), (masks_apply, False)):
        monkeypatch.setattr(masks, "apply", build)
        levels, integers = np.zeros(2 * LENGTH, np.uint32), statistics.copy()
        Masker(secrets.token_bytes(32), []).mask(levels, integers)
        found = half_of_the_integers(levels, integers)
        assert np.array_equal(found, low) == leaks
        assert leaks or (found == low).mean() < 0.01


# The bound as a question ------------------------------------------------------------------------

SECRET = 37  # how many images of some class the site has; the coordinator does not know it
OWN = {"counts": PartSpec((1,), torch.int64, bound=100)}  # the site has 100 images


def quantised(folder: Path) -> SiteSecAgg:
    """A site in a run that masks nothing, so that no keys are needed; bounds are checked alike."""
    site = SiteSecAgg(folder, "a")
    owner = parse_owner({"data": {"name": "fashion-mnist-12k"}}, folder)
    enforcement = ContractEnforcement(folder, Requester())
    enforcement.begin_run(program(), owner, "run1")
    site.join(program(), owner, "run1", enforcement.release)
    return site


def program() -> Program:
    found, _ = parse(
        {
            "data": {"name": "fashion-mnist-12k"},
            "split": {"name": "iid", "sites": 4},
            "rounds": {"weighting": "uniform"},
            "secure": {"name": "quantised"},
        },
        Path(),
    )
    return found


def exceeds(site: SiteSecAgg, bound: int) -> bool:
    """Whether the site's count exceeds a bound that the coordinator chose: it fails to answer."""
    specs = {"counts": PartSpec((1,), torch.int64, bound=bound)}
    of = encoding_plan_of(program(), {"delta": 2}, 1, partial(Noise, 0), specs).quantiser(4)
    step = TrainStep(Order(1, torch.zeros(2)), 0, 0)
    payload = {"delta": torch.zeros(2), "counts": torch.tensor([SECRET])}
    protection = site.protection(step, None, {"quantiser": of.table()}, OWN)
    try:
        protection.apply(TrainedUpdate(payload, 1, {}))
    except SiteError as error:
        return "sent the integer" in error.cause
    return False


def search(site: SiteSecAgg) -> int:
    """The count, by halving."""
    low, high = 0, 128
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if exceeds(site, middle) else (low, middle)
    return low


def test_a_bound_that_the_coordinator_chooses_is_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secagg_client, "_check_bound", lambda *_: None)
    assert search(quantised(tmp_path)) == SECRET


def test_a_bound_below_what_the_sites_images_allow_is_refused_unseen(tmp_path: Path) -> None:
    """Whatever the count is: the bound is compared with the number of images, which is declared."""
    site = quantised(tmp_path)
    for bound in (0, SECRET - 1, SECRET, 99):
        with pytest.raises(SiteError, match="not those of this site's program and images"):
            exceeds(site, bound)
    assert not exceeds(site, 100)
    assert not exceeds(site, 10**6), "another site may have more images"
