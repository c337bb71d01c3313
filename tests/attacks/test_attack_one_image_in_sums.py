"""One image in the sums of a closed-form head: noise hides it only if it changes them by 1 at most.

Noise is sized for what one image may change in all sums of a round together, in their units
(`Algorithm.units`). The bound is exact, in whole numbers: levels are rounded towards zero. A build
that rounds to nearest, as the form without a clip does, makes levels that are longer than stated,
and a neighbour of the site's data set is farther away than the noise is accounted for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar

import federations
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsight.algorithms import closed_form
from fedsight.algorithms.ncm import NearestClassMean
from fedsight.algorithms.ridge import Ridge
from fedsight.client.step import Client
from fedsight.core.errors import ConfigError
from fedsight.core.rng import generator
from fedsight.core.types import Batch, Order
from fedsight.data.base import ArrayImages
from fedsight.governance.charges import charge
from fedsight.models.base import Network
from fedsight.models.zoo.small_cnn import SmallCNN
from fedsight.privacy.accounting import spent
from fedsight.privacy.base import Plan
from fedsight.privacy.event import gaussian
from fedsight.privacy.mechanisms import example
from fedsight.privacy.mechanisms.example import Example
from fedsight.privacy.noise import FINEST, TAIL, fresh
from fedsight.program.federation import Federation, federate

Sums = Mapping[str, Tensor]
CLASSES = 3
FORMS = (
    Ridge(clip=1.0, bits=12),
    Ridge(clip=0.3, bits=2),
    Ridge(clip=1.0, bits=16, held_out=0.4, strengths=(0.1, 1.0)),
    NearestClassMean(clip=2.0, bits=9),
)


def bare(wide: int) -> Network:
    """Features are the images."""
    head = nn.Linear(wide, CLASSES)
    return Network(nn.Sequential(head), frozenset({"0.weight", "0.bias"}), frozenset(), ())


def sums(form: Ridge | NearestClassMean, x: Tensor, y: Tensor) -> Sums:
    with torch.no_grad():
        return form.statistics(bare(x.shape[1]), CLASSES, [Batch(x, y)])


def moved(form: Ridge | NearestClassMean, before: Sums, after: Sums) -> Fraction:
    """The square of the distance in units, exactly: those of `units` are roots of whole numbers."""
    far = Fraction(0)
    for part, unit in form.units.items():
        square = round(unit * unit)
        assert math.isclose(square, unit * unit, rel_tol=1e-12)
        changes = (after[part] - before[part]).flatten().tolist()
        far += Fraction(sum(one * one for one in changes), square)
    return far


def drawn(seed: int, images: int, wide: int, scale: float) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(images, wide)) * rng.choice([0.0, 1.0, 1.0, 30.0], size=(images, wide))
    if seed % 3 == 0:  # equal values: rounding goes the same way in all of them
        x = np.ones((images, wide)) * rng.normal(size=(images, 1))
    y = torch.from_numpy(rng.integers(0, CLASSES, images))
    return torch.from_numpy(x * scale).float(), y


@given(
    st.sampled_from(FORMS),
    st.integers(0, 2**32 - 1),
    st.integers(2, 6),
    st.integers(1, 80),
    st.sampled_from([1e-30, 0.01, 1.0, 1e30]),
)
def test_one_image_changes_the_sums_by_one_unit_at_most(
    form: Ridge | NearestClassMean, seed: int, images: int, wide: int, scale: float
) -> None:
    x, y = drawn(seed, images, wide, scale)
    whole = sums(form, x, y)
    for at in range(images):
        rest = torch.arange(images) != at
        assert moved(form, sums(form, x[rest], y[rest]), whole) <= 1


def nearest(x: Tensor, clip: float, top: int) -> Tensor:
    """The weakened build: levels are rounded to nearest."""
    x = x.double()
    lengths = x.norm(dim=1, keepdim=True).clamp(min=clip * math.sqrt(x.shape[1]))
    return (x / lengths * top).round()


def test_the_bound_is_reached_and_rounding_to_nearest_breaks_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    form, y = Ridge(clip=1.0, bits=8), torch.zeros(1, dtype=torch.int64)
    alone, equal = torch.zeros(1, 16), torch.ones(1, 55)  # 256 / sqrt(55) = 34.52 levels each
    alone[0, 3] = -5.0
    assert moved(form, nothing(form, alone, y), sums(form, alone, y)) == 1
    assert moved(form, nothing(form, equal, y), sums(form, equal, y)) < 1
    monkeypatch.setattr(closed_form, "shortened", nearest)
    assert moved(form, nothing(form, equal, y), sums(form, equal, y)) > Fraction(101, 100)


def nothing(form: Ridge, x: Tensor, y: Tensor) -> Sums:
    return {part: torch.zeros_like(value) for part, value in sums(form, x, y).items()}


def test_features_that_are_no_numbers_count_as_nothing() -> None:
    x, y = torch.rand(3, 5), torch.tensor([0, 1, 1])
    x[1, 2], x[2, 0] = float("nan"), float("inf")
    for form in FORMS:
        found, alone = sums(form, x, y), sums(form, x[:1], y[:1])
        assert all(torch.equal(found[part], alone[part]) for part in alone)


def private(noise: float, **sections: Any) -> Federation:
    given: dict[str, Any] = {
        "rounds": {"rounds": 1},
        "algorithm": {"name": "ridge", "clip": 1.0},
        "model": {"lift": 40},
        "privacy": {"name": "example", "noise_multiplier": noise},
        **sections,
    }
    return federations.federation(**given)


def order(of: Federation) -> Order:
    return Order(1, of.initial[of.layout.travelling])


def test_a_site_sends_its_sums_with_the_noise_that_it_is_charged_for() -> None:
    of, exact = private(2.5), private(1e-9)  # so little that it is rounded away
    found, due = (Client(one).step(order(one), 1, {}).payload for one in (of, exact))
    units, values = dict(of.plan.units), []
    for part in ("squares", "products", "cross"):
        assert found[part].dtype == torch.int64
        values.append((found[part] - due[part]).double() / units[part])
    noise = torch.cat(values)
    assert float(noise.std()) == pytest.approx(2.5, rel=0.08)
    assert abs(float(noise.mean())) < 0.3
    assert charge(of.program.privacy, of.plan, 40) == (gaussian(2.5).table(), 1)
    one = spent([(gaussian(2.5), 1)], 1e-5)
    assert of.program.privacy.spent(of.plan, 1) == pytest.approx(one)  # type: ignore[attr-defined]


@pytest.mark.parametrize("bits", [12, 16])
def test_noise_beyond_its_last_digits_tells_those_of_the_sums(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program asks for so much noise that the ledger counts it as nothing spent. A float64 that
    large is a multiple of 2, 4, ...; from 2^63 on, it is no int64 at all."""
    form, values = Ridge(clip=1.0, bits=bits), {}
    plan = Plan(1, None, 1, units=tuple(form.units.items()))
    for part in form.units:
        values[part] = torch.randint(0, 200, (4000,), generator=generator(0, part))

    def released(noise_multiplier: float) -> Iterator[Tensor]:
        sent = Example(noise_multiplier=noise_multiplier).release(
            values, {}, plan, "a", lambda *_, values=(): fresh()
        )
        yield from (sent[part] % 8 == values[part] % 8 for part in ("squares", "products"))

    large = 1e9 if bits == 12 else 1e8
    with pytest.raises(ConfigError, match="too coarse"):
        next(released(large))
    most = FINEST / TAIL / max(form.units.values()) / 1.001
    assert all(abs(float(one.double().mean()) - 1 / 8) < 0.03 for one in released(most))
    monkeypatch.setattr(example, "FINEST", math.inf)
    assert all(float(one.double().mean()) > 0.25 for one in released(large))


def test_a_site_refuses_such_noise_before_it_computes_anything() -> None:
    with pytest.raises(ConfigError, match="too coarse"):
        private(1e9)
    of = private(2.5)
    loud = replace(of.program, privacy=Example(noise_multiplier=1e9))
    with pytest.raises(ConfigError, match="too coarse"):
        Client(replace(of, program=loud))


def test_a_site_that_says_nothing_sends_noise_of_the_same_strength() -> None:
    of = private(2.5)
    blank = Client(of).blank(order(of), 1, {}).payload
    for part, unit in of.plan.units:
        assert float(blank[part].double().std()) == pytest.approx(2.5 * unit, rel=0.25)


class Failing(ArrayImages):
    """Images of which one cannot be read."""

    bad: ClassVar[int] = 43

    def read(self, indices: Tensor) -> Tensor:
        """Raise what a damaged file raises."""
        if self.bad in indices.tolist():
            raise OSError("torn")
        return super().read(indices)


def test_a_protected_site_computes_each_image_by_itself_and_none_takes_others_with_it() -> None:
    of = private(1e-9)
    (at,) = (i for i in range(of.population) if Failing.bad in of.client(i).indices.tolist())
    others = of.client(at).indices.tolist()
    others.remove(Failing.bad)
    client, alone = Client(of, hides=True), replace(of.network, together=1)
    client.load(order(of).vector, {})
    x = of.dataset.preprocess.normalise(of.dataset.train.images.read(torch.tensor(others)))
    y = torch.from_numpy(of.dataset.train.labels[others])
    with torch.no_grad():
        singles = map(Batch, x.split(1), y.split(1))
        due = of.program.algorithm.statistics(
            replace(alone, module=alone.module.eval()), 10, singles
        )
    seen: list[int] = []
    hook = of.network.module.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    of.dataset.train.images.__class__ = Failing
    try:
        found = client.step(order(of), at, {}).payload
        assert seen == [1] * len(others)
        with pytest.raises(OSError, match="torn"):
            Client(of).step(order(of), at, {})
    finally:
        of.dataset.train.images.__class__ = ArrayImages
        hook.remove()
    assert all(torch.equal(found[part], value.flatten()) for part, value in due.items())


class Mixing(nn.Module):
    """Subtracts the mean of the batch, in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, d]."""
        return x - x.mean(0)


class Mixed(SmallCNN):
    """A network in which the images of a batch change one another's features."""

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterator[str]]:
        """The mixture, before the head."""
        body = nn.Sequential(nn.Flatten(), Mixing(), nn.Linear(channels * height * width, classes))
        return body, iter(["2"])


def test_a_network_that_mixes_images_is_refused() -> None:
    of = replace(private(1.0).program, model=Mixed())
    with pytest.raises(ConfigError) as caught:
        federate(of)
    assert "depend on other images" in caught.value.problems[0].cause
