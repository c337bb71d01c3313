"""A model overflows at the sites whose machines round otherwise than that of one site.

In which order a product of matrices is added up hangs on the processor, the device, the number of
threads and the version of PyTorch. Huge numbers that cancel leave their rounding alone, which is
the same for all images, and greater than zero on some machines only. Multiplied up to infinity it
makes the training of all sites with such machines fail. They send zeros, and the masked sum is the
update of the one that has another machine.

Likewise, a model can be certain of one class on these machines, whatever the image: of a masked sum
over test images all but the sums of the one site are then known.

Both are stated as not stopped: the coordinator chooses the model. Noise of the sites alone bounds
what comes out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked_site import AttackedSite, Model, known, program
from masked_counts import ROUND, TESTS, Sites, draw
from masked_counts import program as counts_program
from masked_round import MaskedRound, in_the_clear, masked_sites
from torch import Tensor
from torch.nn import functional as F

from fedsight.core.types import Order
from fedsight.deploy.site.service import SiteService
from fedsight.deploy.site.trainer import CalibrateStep
from fedsight.engines.remote.sums import SumQuestion
from fedsight.evaluation.trust.sums import CountSums, form
from fedsight.models.zoo.fedavg_cnn import MLP
from fedsight.program.federation import Federation

Attack = Callable[..., AttackedSite]
NAMES, IMAGES = ("a", "b", "c"), 6
UNITS, CONSTANT = 200, 100  # units of a hidden layer, and those whose value no image changes
TRAPS = 256  # so many the coordinator tries on machines like those of the sites

_linear = F.linear


def backwards(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer on another machine, which adds up the same products from the last on."""
    return _linear(x.flip(-1), weight.flip(-1), bias)


def trap(federation: Federation, seed: int, gain: float) -> Model:
    """One unit of the second layer is what rounding leaves of zero, and drives the first score to
    `gain` times that if it is greater than zero."""
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
    last[:, 0] = 0
    last[0, 0] = gain
    for name, value in zip(names, (first, bias, second, least, last), strict=True):
        found.set(name, value)
    return found


def left(model: Model, linear: Callable[..., Tensor], rows: int) -> Tensor:
    """What is left of zero in each row of a batch, on a machine with this `linear`."""
    x = torch.zeros(rows, UNITS)
    x[:, :CONSTANT] = model.get("hidden0.bias")[:CONSTANT]
    return linear(x, model.get("hidden1.weight"), model.get("hidden1.bias"))[:, 0]


def chosen(federation: Federation, gain: float, batches: Sequence[int] = (IMAGES,)) -> Model:
    """A model that leaves nothing greater than zero on this machine, and something on the other, in
    batches of these sizes."""
    for one in (trap(federation, seed, gain) for seed in range(TRAPS)):
        here = [float(left(one, _linear, rows).max()) for rows in batches]
        there = [float(left(one, backwards, rows).min()) for rows in batches]
        if max(here) <= 0 < min(there):
            return one
    raise ValueError("no trap tells the two machines apart")


_thread = threading.local()  # whose layers are added up as on the other machine, or as on this one


@pytest.fixture(autouse=True)
def _two_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    def either(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        linear = backwards if getattr(_thread, "elsewhere", False) else _linear
        return linear(x, weight, bias)

    monkeypatch.setattr(F, "linear", either)


def move(service: SiteService) -> None:
    """Have a site compute on the other machine."""
    ask = service._ask_trainer

    def asked(command: Any, doing: str) -> Any:
        _thread.elsewhere = True
        try:
            return ask(command, doing)
        finally:
            _thread.elsewhere = False

    service._ask_trainer = asked  # type: ignore[method-assign]


@pytest.mark.parametrize("differ", [True, False])
def test_the_sum_is_one_update_where_the_other_machines_round_otherwise(
    attack: Attack, tmp_path: Path, differ: bool
) -> None:
    """Where all machines are the same, all sites train or none does."""
    sites = masked_sites(attack, tmp_path, NAMES)
    of = program(tmp_path / "images-a", secure={"name": "secagg"})
    for site in sites[1:] if differ else []:
        move(site.service)
    assert all("declared" in site.join(of) for site in sites)
    attacker = MaskedRound(sites, of, Order(1, chosen(known(of), gain=3e38).travelling))
    found = attacker.sum([attacker.train(number) for number in range(3)])["delta"]
    target, *others = (in_the_clear(site, of, attacker.order) for site in sites)
    assert all(one.abs().max() > 1e-3 for one in (target, *others))
    assert ((found - target).abs().max() < 1e-6) == differ
    assert ((found - target - sum(others)).abs().max() < 1e-6) == (not differ)


# Sums over test images ----------------------------------------------------------------------------


def counted(sites: Sites, site: str, vector: Tensor) -> Tensor:
    """The sums of one site alone, on this machine."""
    step = CalibrateStep(ROUND, vector, 1.0, 1, masked=True)
    found = sites.places.seats[site]._ask_trainer(step, "counting")
    assert isinstance(found, Tensor)
    return found


def test_of_a_sum_over_test_images_the_other_machines_sums_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of a model that sees no image: how many images of each class there are."""
    sites = Sites(draw(tmp_path / "images"), tmp_path / "sites", monkeypatch)
    for site in TESTS:
        sites.owner(site, figures="masked", require=["secure_aggregation"])
    target, *others = TESTS
    of = replace(counts_program(sites.images), model=MLP())
    federation, engine = sites.join(of, "run1")
    batches = range(1, 3 * max(TESTS.values()) + 1)
    attacker = chosen(federation, 1e6, batches).travelling
    blind = Model(federation).set("head.weight", 0.0).set("head.bias", torch.tensor([1e9, 0, 0]))
    own = counted(sites, target, attacker)
    known_sums = [counted(sites, site, blind.travelling) for site in others]
    for site in others:
        move(sites.places.seats[site])
    found: list[Tensor] = []
    asked = SumQuestion(1.0, form(CountSums, 3))
    engine.add_up((attacker, ROUND), asked, lambda at, images, numbers: found.append(numbers))
    sites.close()
    assert torch.equal(found[0] - sum(known_sums), own)
