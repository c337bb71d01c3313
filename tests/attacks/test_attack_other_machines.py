"""A model overflows at the sites whose machines round otherwise than that of one site.

In which order a product of matrices is added up hangs on the processor, the device, the number of
threads and the version of PyTorch. Huge numbers that cancel leave their rounding alone, which is
the same for all images, and greater than zero on some machines only. Multiplied up to infinity it
makes the training of all sites with such machines fail. They send zeros, and the masked sum is the
update of the one that has another machine.

It is stated as not stopped: the coordinator chooses the model. Noise of the sites alone bounds what
comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from attacked_site import AttackedSite, Model, known, program
from masked_round import MaskedRound, in_the_clear, masked_sites
from torch import Tensor
from torch.nn import functional as F

from fedsight.core.types import Order
from fedsight.program.federation import Federation

Attack = Callable[..., AttackedSite]
NAMES, IMAGES = ("a", "b", "c"), 6
UNITS, CONSTANT = 200, 100  # units of a hidden layer, and those whose value no image changes
TRAPS = 256  # so many the coordinator tries on machines like those of the sites

_linear = F.linear


def backwards(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer on another machine, which adds up the same products from the last on."""
    return _linear(x.flip(-1), weight.flip(-1), bias)


def trap(federation: Federation, seed: int) -> Model:
    """One unit of the second layer is what rounding leaves of zero, and drives a score to infinity
    if that is greater than zero."""
    draws = torch.Generator().manual_seed(seed)
    half, order = CONSTANT // 2, torch.randperm(CONSTANT, generator=draws)
    values = torch.rand(half, generator=draws) + 0.5
    huge = torch.randn(half, generator=draws) * 1e12
    found = Model(federation)
    names = ("hidden0.weight", "hidden0.bias", "hidden1.weight", "hidden1.bias", "head.weight")
    first, bias, second, least, last = map(found.get, names)
    first[:CONSTANT] = 0
    bias[:CONSTANT] = torch.cat([values, values])[order]
    second[0] = 0
    second[0, :CONSTANT] = torch.cat([huge, -huge])[order]
    least[0] = -1  # what rounding leaves is far more, or less
    last[:, 0] = torch.tensor([3e38, 0.0])
    for name, value in zip(names, (first, bias, second, least, last), strict=True):
        found.set(name, value)
    return found


def left(model: Model, linear: Callable[..., Tensor]) -> Tensor:
    """What is left of zero in each row of a batch, on a machine with this `linear`."""
    x = torch.zeros(IMAGES, UNITS)
    x[:, :CONSTANT] = model.get("hidden0.bias")[:CONSTANT]
    return linear(x, model.get("hidden1.weight"), model.get("hidden1.bias"))[:, 0]


def chosen(federation: Federation) -> Model:
    """A model that leaves nothing greater than zero on this machine, and something on the other."""
    traps = (trap(federation, seed) for seed in range(TRAPS))
    return next(
        one for one in traps if left(one, F.linear).max() <= 0 and left(one, backwards).min() > 0
    )


def elsewhere(site: AttackedSite) -> None:
    """Have `site` compute on the other machine."""
    answer = site.service.answer

    def answered(kind: str, header: str, body: bytes) -> tuple[str, bytes]:
        with mock.patch.object(F, "linear", backwards):
            return answer(kind, header, body)

    site.service.answer = answered  # type: ignore[method-assign]


@pytest.mark.parametrize("differ", [True, False])
def test_the_sum_is_one_update_where_the_other_machines_round_otherwise(
    attack: Attack, tmp_path: Path, differ: bool
) -> None:
    """Where all machines are the same, all sites train or none does."""
    sites = masked_sites(attack, tmp_path, NAMES)
    of = program(tmp_path / "images-a", secure={"name": "secagg"})
    for site in sites[1:] if differ else []:
        elsewhere(site)
    assert all("declared" in site.join(of) for site in sites)
    attacker = MaskedRound(sites, of, Order(1, chosen(known(of)).travelling))
    found = attacker.sum([attacker.train(number) for number in range(3)])["delta"]
    target, *others = (in_the_clear(site, of, attacker.order) for site in sites)
    assert all(one.abs().max() > 1e-3 for one in (target, *others))
    assert ((found - target).abs().max() < 1e-6) == differ
    assert ((found - target - sum(others)).abs().max() < 1e-6) == (not differ)
