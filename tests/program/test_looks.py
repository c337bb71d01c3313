"""Each site's images get one mean and deviation, from statistics that stay at the site."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import federations
import pytest
import site_services
import torch
from torch import Generator, Tensor

from fedsight.client.step import Client
from fedsight.coordinator.session import Session
from fedsight.core.errors import ConfigError
from fedsight.core.rng import generator
from fedsight.data.augment.base import augment
from fedsight.data.augment.brightness import Brightness
from fedsight.deploy.declaration import declare, gather, open_site
from fedsight.deploy.site.owner import parse_owner
from fedsight.evaluation.description import describe
from fedsight.evaluation.figures import Evaluator
from fedsight.program.federation import Federation
from fedsight.program.looks import look_of
from fedsight.program.program import Speed

SHIFT = {"kind": "contrast", "strength": 0.8}
EXAMPLE = {"name": "example", "noise_multiplier": 1.0, "delta": 1e-3}


def opened(**sections: Any) -> Federation:
    data = {"harmonise": "site", **sections.pop("data", {})}
    return federations.federation(**{"shift": SHIFT, **sections}, data=data)


def normalised(of: Federation, site: int) -> Tensor:
    data = of.client(site)
    return of.batch(data, torch.arange(len(data))).x


def test_the_images_of_every_site_have_mean_zero_and_deviation_one() -> None:
    of = opened()
    for site in range(3):
        x = normalised(of, site).double()
        assert float(x.mean()) == pytest.approx(0.0, abs=1e-5)
        assert float(x.std(correction=0)) == pytest.approx(1.0, abs=1e-5)


def test_they_are_harmonised_as_their_own_device_shows_them() -> None:
    plain = federations.federation(shift=SHIFT)
    spread = [float(normalised(plain, site).std()) for site in (0, 2)]
    assert spread[1] < 0.3 * spread[0]
    first, last = (look_of(opened(), site)[1][0] for site in (0, 2))
    assert last < 0.3 * first


def test_every_site_is_tested_as_it_sees_images() -> None:
    of = opened(shift={})
    assert Evaluator(of).site_test == "whole test part"
    seen = of.batch(of.tested(of.views[1]), torch.arange(4)).x
    mean, std = look_of(of, 1)
    raw = of.dataset.test.images.read(torch.arange(4))
    torch.testing.assert_close(seen, (raw - mean[0]) / std[0], atol=1e-5, rtol=1e-5)


def test_validation_and_test_images_take_no_part_in_the_statistics() -> None:
    of = opened(shift={}, rounds={"rounds": 1, "validation": 0.25})
    own = of.dataset.train.images.read(torch.from_numpy(of.partition.indices(0)))
    assert look_of(of, 0)[0][0] == pytest.approx(float(own.double().mean()), abs=1e-9)
    assert of.validating is not None
    assert look_of(of.validating, 0) == look_of(of, 0)


def test_pooled_images_keep_the_look_of_their_site() -> None:
    of = opened()
    pooled = of.all_pooled()
    whole = pooled.client(0)
    at = (whole.origins == 2).nonzero().flatten()
    torch.testing.assert_close(pooled.batch(whole, at).x, normalised(of, 2))


def test_stated_numbers_take_the_place_of_statistics() -> None:
    numbers = {"site_mean": (("", (0.25,)),), "site_std": (("", (0.5,)),)}
    of = opened(shift={}, data=numbers)
    raw = of.dataset.train.images.read(torch.from_numpy(of.partition.indices(1)))
    torch.testing.assert_close(normalised(of, 1), (raw - 0.25) / 0.5, atol=1e-5, rtol=1e-5)


def problems(**sections: Any) -> list[Any]:
    with pytest.raises(ConfigError) as caught:
        opened(**sections)
    return list(caught.value.problems)


def test_statistics_of_all_images_are_refused_where_single_ones_are_protected() -> None:
    (problem,) = problems(privacy=EXAMPLE)
    assert problem.where == "data.harmonise"
    assert "one image changes what all others look like" in problem.cause
    assert "data.site_mean" in problem.cure
    numbers = {"site_mean": (("", (0.25,)),), "site_std": (("", (0.5,)),)}
    Client(opened(privacy=EXAMPLE, data=numbers), Speed(device="cpu"))
    for kind in ("image", "histogram"):
        Client(opened(privacy=EXAMPLE, data={"harmonise": kind}), Speed(device="cpu"))


def test_a_site_does_not_take_the_coordinators_word_for_it() -> None:
    of = opened()
    protected = federations.program(shift=SHIFT, privacy=EXAMPLE, data={"harmonise": "site"})
    with pytest.raises(ConfigError, match="one image changes what all others look like"):
        Client(of.under(protected), Speed(device="cpu"))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"site_mean": (("a", (0.5,)),), "site_std": (("a", (0.5,)),)}, "'a', which is not a site"),
    (
        {"site_mean": (("site-00", (0.5,)),), "site_std": (("", (0.5,)),)},
        "site 'site-01' has no number",
    ),
    ({"site_mean": (("", (0.5, 0.5)),), "site_std": (("", (0.5,)),)}, "the images have 1 channel"),
    ({"site_mean": (("", (0.5,)),), "site_std": (("", (0.0,)),)}, "the images have 1 channel"),
]


@pytest.mark.parametrize(("data", "cause"), WRONG)
def test_numbers_that_do_not_fit_are_refused(data: dict[str, Any], cause: str) -> None:
    found = problems(data=data)
    assert cause in found[0].cause
    assert all(one.cure for one in found)


def test_a_simulated_run_keeps_the_numbers_that_prediction_needs() -> None:
    of = opened()
    entry = describe(Session(of), "run")["sites"][1]
    assert entry["look"] == {"mean": list(look_of(of, 1)[0]), "std": list(look_of(of, 1)[1])}
    assert "look" not in describe(Session(federations.federation()), "run")["sites"][1]


def test_the_numbers_of_a_deployed_site_stay_there(site_images: Path) -> None:
    program = site_services.program(site_images, data={"harmonise": "site"})
    declared = {}
    for name in ("north", "south"):
        table = {"data": {"name": "folder", "path": str(site_images / name)}}
        federation, number = open_site(program, parse_owner(table, Path("/")), name)
        assert federation.program.data.harmonise == "site"
        x = federation.batch(federation.client(number), torch.arange(3)).x
        assert bool(x.isfinite().all())
        declared[name] = declare(federation, number, False)
    assert declared["north"].preprocess == declared["south"].preprocess
    gathered = gather(program, declared)
    assert all("look" not in site for site in describe(Session(gathered), "run")["sites"])


def test_an_owner_may_state_public_numbers(site_images: Path) -> None:
    program = site_services.program(site_images, data={"harmonise": "site"})
    data = {"name": "folder", "path": str(site_images / "north")}
    stated = parse_owner({"data": {**data, "site_mean": [0.3], "site_std": [0.2]}}, Path("/"))
    federation, number = open_site(program, stated, "north")
    assert look_of(federation, number) == ((0.3,), (0.2,))
    assert not federation.computes_looks


def test_augmented_pixels_are_harmonised_after_they_are_cut_to_their_range() -> None:
    """Brightness cuts off what is beyond [0, 1], where harmonised pixels mostly are."""
    of = opened(train={"augment": ["brightness"]}, shift={})
    positions, data = torch.arange(8), of.client(1)
    changed, _ = augment(data.pixels(positions), of.program.train.augment, generator(3))
    assert float(changed.min()) >= 0.0
    assert float(changed.max()) <= 1.0
    mean, std = look_of(of, 1)
    look = partial(data.harmonised, positions=positions)
    found, _ = augment(data.pixels(positions), of.program.train.augment, generator(3), look)
    x = of.batch(data, positions, found).x
    torch.testing.assert_close(x, (changed - mean[0]) / std[0], atol=1e-5, rtol=1e-5)
    assert float(x.min()) < -0.5


def test_in_training_too_they_are_augmented_first(monkeypatch: pytest.MonkeyPatch) -> None:
    of, seen, apply = opened(train={"augment": ["brightness"]}), [], Brightness.apply

    def spied(self: Brightness, x: Tensor, generator: Generator) -> Tensor:
        seen.append((float(x.min()), float(x.max())))
        return apply(self, x, generator)

    monkeypatch.setattr(Brightness, "apply", spied)
    federations.learn(of)
    assert seen
    assert min(low for low, _ in seen) >= 0.0
    assert max(high for _, high in seen) <= 1.0
