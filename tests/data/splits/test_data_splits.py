"""Splits: every sample once, the same again, minimum honoured or refused, each one's promise."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedsight.core.errors import DataError
from fedsight.core.rng import numpy_generator
from fedsight.data.base import ArrayImages, Part
from fedsight.data.partition import Groups, Partition, label_counts, site_name, splits

SEEDS = st.integers(0, 2**32)


def part(labels: np.ndarray, sites: list[str] | None = None) -> Part:
    import torch

    images = ArrayImages(torch.zeros((len(labels), 1, 1, 1), dtype=torch.uint8), "test")
    return Part(images, labels.astype(np.int64), sites)


def divide(name: str, data: Part, seed: int = 0, **options: Any) -> Partition:
    return splits.get(name)(**options).divide(data, int(data.labels.max()) + 1, seed)


def check_partition(partition: Partition, total: int) -> None:
    every = np.concatenate([partition.indices(site) for site in range(len(partition))])
    assert np.array_equal(np.sort(every), np.arange(total))
    names = [partition.name(site) for site in range(len(partition))]
    assert len(set(names)) == len(names)


def same(one: Partition, two: Partition) -> bool:
    return len(one) == len(two) and all(
        np.array_equal(one.indices(site), two.indices(site)) for site in range(len(one))
    )


@st.composite
def parts(draw: st.DrawFn) -> Part:
    counts = draw(st.lists(st.integers(1, 60), min_size=1, max_size=8))
    labels = np.repeat(np.arange(len(counts)), counts)
    return part(numpy_generator(draw(SEEDS), "labels").permutation(labels))


@settings(max_examples=60, deadline=None)
@given(data=parts(), sites=st.integers(1, 20), low=st.integers(1, 4), seed=SEEDS, which=st.data())
def test_partitions_use_every_sample_once(
    data: Part, sites: int, low: int, seed: int, which: st.DataObject
) -> None:
    name, options = which.draw(
        st.sampled_from(
            [
                ("iid", {}),
                ("dirichlet", {"alpha": 0.1}),
                ("dirichlet", {"alpha": 100.0}),
                ("labels", {"labels": 1}),
                ("labels", {"labels": 3}),
                ("quantity", {"alpha": 0.3}),
                ("quantity", {"law": "lognormal", "sigma": 2.0}),
            ]
        )
    )
    options = {**options, "sites": sites, "min_samples": low}
    try:
        partition = divide(name, data, seed, **options)
    except DataError as error:
        fits = sites * low <= len(data)
        if not error.cure or (fits and name in ("iid", "quantity")):  # these honour what fits
            raise
        return
    assert len(partition) == sites
    check_partition(partition, len(data))
    assert min(len(partition.indices(site)) for site in range(sites)) >= low
    assert same(partition, divide(name, data, seed, **options))


@settings(max_examples=60, deadline=None)
@given(data=parts(), sites=st.integers(1, 20), k=st.integers(1, 8), seed=SEEDS)
def test_labels_per_site_is_exact(data: Part, sites: int, k: int, seed: int) -> None:
    classes = np.unique(data.labels, return_counts=True)[1]
    feasible = (
        k <= len(classes) <= sites * k
        and sites * k <= np.minimum(classes, sites).sum()
        and sites <= len(data)
    )
    if not feasible:
        with pytest.raises(DataError):
            divide("labels", data, seed, sites=sites, labels=k)
        return
    partition = divide("labels", data, seed, sites=sites, labels=k)
    held = (label_counts(partition, data.labels, len(classes), sites) > 0).sum(axis=1)
    assert (held == k).all()
    check_partition(partition, len(data))


def test_seeds_matter() -> None:
    data = part(np.arange(200) % 5)
    for name in ("iid", "dirichlet", "labels", "quantity"):
        one, two = (divide(name, data, seed) for seed in (0, 1))
        assert not same(one, two), name


def test_iid_is_even() -> None:
    partition = divide("iid", part(np.arange(103) % 5), sites=10)
    assert sorted(len(partition.indices(site)) for site in range(10)) == [10] * 7 + [11] * 3


def test_dirichlet_alpha_sets_the_skew() -> None:
    data = part(np.repeat(np.arange(10), 200))

    def largest_share(alpha: float) -> float:
        counts = label_counts(divide("dirichlet", data, alpha=alpha), data.labels, 10, 10)
        return float((counts.max(axis=1) / counts.sum(axis=1)).mean())

    assert largest_share(0.1) > 0.4 > largest_share(1.0) > largest_share(1000.0)
    assert largest_share(1000.0) < 0.13


def test_dirichlet_proportions_have_the_right_moments() -> None:
    alpha, sites = 0.5, 4
    data = part(np.repeat(np.arange(300), 50))
    counts = label_counts(divide("dirichlet", data, sites=sites, alpha=alpha), data.labels, 300, 4)
    shares = counts / 50
    assert abs(shares.mean() - 1 / sites) < 1e-9
    variance = (1 / sites) * (1 - 1 / sites) / (sites * alpha + 1)
    assert abs(shares.var() / variance - 1) < 0.15


def test_quantity_skews_sizes_and_not_labels() -> None:
    data = part(np.arange(20_000) % 4)
    for law in ("dirichlet", "lognormal"):
        partition = divide("quantity", data, law=law, sites=8, min_samples=100)
        counts = label_counts(partition, data.labels, 4, 8)
        sizes = counts.sum(axis=1)
        assert sizes.min() >= 100
        assert sizes.max() > 3 * sizes.min()
        big = counts[sizes.argmax()] / sizes.max()
        assert np.abs(big - 0.25).max() < 0.05
    even = divide("quantity", data, law="lognormal", sigma=0.0, sites=8)
    assert len(even.indices(3)) == 2500


def test_natural_ids_become_sites() -> None:
    partition = divide("natural", part(np.zeros(5), ["b", "a", "b", "c", "a"]))
    assert [partition.name(site) for site in range(3)] == ["a", "b", "c"]
    assert [partition.indices(site).tolist() for site in range(3)] == [[1, 4], [0, 2], [3]]


def test_virtual_population() -> None:
    data = part(np.arange(500) % 5)
    huge = divide("virtual", data, sites=1_000_000, samples=20)
    assert len(pickle.dumps(huge)) < 500
    chosen = huge.indices(999_999)
    assert len(np.unique(chosen)) == 20
    assert chosen.max() < 500
    assert np.array_equal(chosen, huge.indices(999_999))
    assert not np.array_equal(chosen, huge.indices(0))
    small = divide("virtual", data, sites=1000, samples=20)
    assert np.array_equal(small.indices(7), huge.indices(7))  # not a function of the population
    assert huge.name(3) == "site-000003"


@pytest.mark.parametrize(
    ("name", "options", "cause"),
    [
        ("iid", {"sites": 21}, "21 sites with at least 1 sample(s) each need more than the 20"),
        ("iid", {"sites": 5, "min_samples": 5}, "need more than the 20"),
        ("dirichlet", {"sites": 10, "alpha": 0.01, "min_samples": 2}, "alpha = 0.01 over 10 sites"),
        ("labels", {"sites": 5, "labels": 3}, "cannot hold 3 classes"),
        ("labels", {"sites": 1, "labels": 1}, "cannot hold all 2"),
        ("labels", {"sites": 12, "labels": 2}, "need more samples"),
        ("natural", {}, "needs site ids"),
        ("virtual", {"samples": 21}, "split.samples = 21"),
    ],
)
def test_refusals_name_the_numbers_and_the_cure(
    name: str, options: dict[str, Any], cause: str
) -> None:
    with pytest.raises(DataError) as caught:
        divide(name, part(np.arange(20) % 2), **options)
    assert cause in caught.value.cause
    assert caught.value.cure


def test_a_natural_site_below_the_minimum_is_named() -> None:
    with pytest.raises(DataError, match="site 'tiny' has 1 training samples"):
        divide("natural", part(np.zeros(4), ["big", "big", "big", "tiny"]), min_samples=2)


@given(sites=st.integers(1, 10**7))
def test_site_names_sort_as_numbers(sites: int) -> None:
    assume(sites > 1)
    assert site_name(sites - 2, sites) < site_name(sites - 1, sites)


def test_groups_know_their_sizes() -> None:
    groups = Groups([np.array([3, 1]), np.array([0, 2, 4])])
    assert groups.sizes.tolist() == [2, 3]
    assert groups.name(1) == "site-01"
