"""Algorithms whose sites send integers: what they declare is checked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import federations
import pytest
import torch
from torch import Tensor

from fedsight.algorithms.fedavg import FedAvg
from fedsight.client.step import Client
from fedsight.compression.pipeline import HEADER
from fedsight.core.errors import ConfigError, FedSightError, SiteError
from fedsight.core.sums import LIMIT
from fedsight.core.types import Batch, Order, PartSpec, PartSpecs
from fedsight.models.base import Network
from fedsight.program.federation import Federation, federate


class Counting(FedAvg):
    """FedAvg that counts images by class; subclasses make one mistake each."""

    def integer_parts(self, network: Network, classes: int, images: int) -> PartSpecs:
        """At most all images of the site."""
        return {"counts": PartSpec((classes,), torch.int64, bound=images)}

    def statistics(
        self, network: Network, classes: int, batches: Iterable[Batch]
    ) -> Mapping[str, Tensor]:
        """By class."""
        assert not network.module.training
        assert not torch.is_grad_enabled()
        labels = torch.cat([batch.y for batch in batches])
        return {"counts": torch.bincount(labels, minlength=classes)}


class Declares(Counting):
    """What is declared is set by the test."""

    declared: ClassVar[Any] = {}

    def integer_parts(self, network: Network, classes: int, images: int) -> PartSpecs:
        """As set."""
        return self.declared  # type: ignore[no-any-return]


class Computes(Counting):
    """What is computed is set by the test."""

    computed: ClassVar[Any] = {}

    def statistics(
        self, network: Network, classes: int, batches: Iterable[Batch]
    ) -> Mapping[str, Tensor]:
        """As set."""
        return self.computed  # type: ignore[no-any-return]


class Fails(Counting):
    """An algorithm with a defect."""

    def integer_parts(self, network: Network, classes: int, images: int) -> PartSpecs:
        """Raise what no mistake of a user raises."""
        raise ZeroDivisionError("a mistake in the algorithm")


def opened(algorithm: FedAvg, **sections: Any) -> Federation:
    return federate(replace(federations.program(**sections), algorithm=algorithm))


def order(of: Federation) -> Order:
    return Order(1, of.initial[of.layout.travelling])


def test_the_bound_is_that_of_the_largest_site() -> None:
    of = opened(Counting(), split={"name": "quantity", "sites": 4})
    sizes = [of.size(site) for site in range(4)]
    assert len(set(sizes)) > 1
    assert of.parts["counts"].bound == max(sizes)
    assert list(of.parts) == ["delta", "counts"]
    assert of.sizes.keys() == {"delta"}


def test_every_image_is_counted_once() -> None:
    of = opened(Counting())
    reply = Client(of).step(order(of), 1, {})
    due = torch.bincount(of.client(1).labels(), minlength=10)
    assert torch.equal(reply.payload["counts"], due)
    assert reply.weight == 40, "which changes nothing in the integers"


def test_a_site_that_says_nothing_sends_zeros_of_the_same_form() -> None:
    of = opened(Counting())
    blank, full = (Client(of).blank(order(of), 0, {}), Client(of).step(order(of), 0, {}))
    assert blank.payload.keys() == full.payload.keys()
    for part, value in blank.payload.items():
        assert (value.shape, value.dtype) == (full.payload[part].shape, full.payload[part].dtype)
        assert not bool(value.any())


def test_a_lossy_codec_leaves_integers_alone() -> None:
    of = opened(Counting(), codec={"up": {"steps": ["float16"]}})
    assert of.parts["delta"].codec is not None
    assert of.parts["counts"].codec is None
    found = federations.learn(of, None, diary := federations.Diary())
    assert diary.lines[0]["bytes_up"] == 3 * (HEADER + 2 * of.sizes["delta"] + 8 * 10)
    assert torch.isfinite(found.vector).all()


def bounded(bound: int) -> dict[str, PartSpec]:
    return {"a": PartSpec((1,), torch.int64, bound=bound)}


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        (
            bounded(LIMIT // 3 + 1),
            "over 3 sites, .* leave 64 bits",
        ),
        (bounded(2**70), "may leave 64 bits"),
        ({"a": PartSpec((1,))}, "'a' is not described by a PartSpec of torch.int64"),
        ({"a": (1,)}, "'a' is not described by a PartSpec"),
        ({"delta": PartSpec((1,), torch.int64)}, "two parts of a reply are called 'delta'"),
    ],
)
def test_what_cannot_be_summed_is_refused_before_anything_runs(
    declared: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Declares, "declared", declared)
    with pytest.raises(ConfigError, match=why) as caught:
        opened(Declares())
    assert all(problem.cure for problem in caught.value.problems)


def test_the_largest_bound_that_fits_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Declares, "declared", bounded(LIMIT // 3))
    assert opened(Declares()).integers["a"].bound == LIMIT // 3


def test_a_declaration_that_fails_is_the_algorithms_fault() -> None:
    with pytest.raises(FedSightError, match=r"Fails fails: ZeroDivisionError: a mistake"):
        opened(Fails())


@pytest.mark.parametrize(
    ("computed", "why"),
    [
        ({}, r"computed nothing as 'counts' at .*, and declares \(10,\)"),
        ({"counts": torch.zeros(9, dtype=torch.int64)}, r"computed \(9,\) as 'counts'"),
        ({"counts": torch.zeros(2, 5, dtype=torch.int64)}, r"computed \(2, 5\)"),
        ({"counts": torch.zeros(10)}, "float32, not a tensor of torch.int64"),
        ({"counts": torch.full((10,), 41)}, "the integer 41, but each site may send at most 40"),
        (
            {"counts": torch.zeros(10, dtype=torch.int64), "more": torch.zeros(1)},
            r"sent the parts \['counts', 'delta', 'more'\]",
        ),
    ],
)
def test_what_was_not_declared_is_refused_by_the_name_of_the_site(
    computed: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Computes, "computed", computed)
    with pytest.raises(SiteError, match=why) as caught:
        federations.learn(opened(Computes()))
    assert "'site-00'" in caught.value.cause
