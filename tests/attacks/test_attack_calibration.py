"""Calibration asks for exact sums over parts of a site's test images: which, the coordinator must
not choose, or the difference of two sums is that of two images.

On a build that divides the images by the program's seed, a coordinator finds two seeds under which
a part differs in one image, without seeing any: it needs the number of images alone. Both programs
are permitted, and each run's answer is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked_site import AttackedSite, draw, known, noise_images, program
from torch import Tensor

from fedsight.client.step import Client
from fedsight.data.partition import Groups
from fedsight.evaluation.trust import images as chosen
from fedsight.evaluation.trust.answers import Respondent
from fedsight.evaluation.trust.calibration import UNIT
from fedsight.evaluation.trust.images import parts_of_test
from fedsight.evaluation.trust.sums import FitSums, read
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Program, Speed
from fedsight.program.views import View

Attack = Callable[..., AttackedSite]
TESTED, SEEDS = 24, 400


def divided(federation: Federation, seed: int) -> frozenset[int]:
    """The images of the part that temperatures are fitted to, under a seed."""
    other = federation.under(replace(federation.program, seed=seed))
    return frozenset(place for data in parts_of_test(other, False).fitted
                     for place in data.indices.tolist())  # fmt: skip


def opened(of: Program) -> Federation:
    """The images of a program as those of a site `ward`."""
    federation = federate(of)
    partition = Groups([np.arange(len(federation.dataset.train))], ["ward"])
    return replace(federation, partition=partition, views=(View(0, np.arange(TESTED)),))


def neighbours(of: Program) -> tuple[int, int] | None:
    """Two seeds under which that part differs in one image; None: there are none among SEEDS.

    The attacker's own images stand in for the site's: their number and order is all that counts.
    """
    found: dict[frozenset[int], int] = {}
    mine = opened(of)
    for seed in range(SEEDS):
        part = divided(mine, seed)
        for other, known_as in found.items():
            if len(part - other) == 1:
                return known_as, seed
        found[part] = seed
    return None


def losses_of(site: AttackedSite, of: Program, run: str, vector: Tensor) -> Tensor:
    assert "declared" in site.join(of, run)
    told, data = site.calibrate(vector)
    assert told["bytes"] == len(data), told
    sums = read(FitSums, torch.frombuffer(bytearray(data), dtype=torch.int64), 2)
    assert int(sums.images[0]) == TESTED // 4
    return sums.losses


def model(of: Program) -> Tensor:
    vector = known(of).initial.clone()
    return vector + 0.5 * torch.randn(len(vector), generator=torch.Generator().manual_seed(3))


def difference(attack: Attack, root: Path, seeds: tuple[int, int]) -> Tensor:
    """What two runs with these seeds tell, of one model."""
    images = draw(root / "images", noise_images(8), noise_images(TESTED, 5))
    site = attack(f"{root.name}/ward", images, test_images=5)
    vector, found = model(program(images)), []
    for number, seed in enumerate(seeds):
        of = replace(program(images), seed=seed)
        found.append(losses_of(site, of, f"run{number}", vector))
    return found[1] - found[0]


@pytest.fixture
def own_images(tmp_path: Path) -> Path:
    """Images of the attacker: as many as the site has declared."""
    return draw(tmp_path / "own", noise_images(8, 7), noise_images(TESTED, 8))


def test_where_the_program_divides_the_images_two_runs_tell_of_one(
    attack: Attack, tmp_path: Path, own_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen, "_seed", lambda federation: federation.program.split_seed)
    seeds = neighbours(program(own_images))
    assert seeds is not None
    apart = difference(attack, tmp_path, seeds)
    assert bool((apart != 0).any())
    # It is the difference of two images' losses at each temperature, to many digits.
    of = program(tmp_path / "images")
    here = opened(of)
    client = Client(here, Speed(device="cpu"))
    client.load(model(of), {})
    ask = Respondent(lambda _: client, client.network, 2)
    one, other = (divided(here, seed) for seed in seeds)
    alone = [
        FitSums.of(ask.answers([here.tested(View(0, np.array([*places])))])).losses
        for places in (one - other, other - one)
    ]
    assert int((apart - (alone[1] - alone[0])).abs().max()) < UNIT / 10_000


def test_no_seed_moves_an_image_to_another_part(
    attack: Attack, tmp_path: Path, own_images: Path
) -> None:
    assert neighbours(program(own_images)) is None
    for seeds in ((0, 1), (17, 391)):
        assert not bool(difference(attack, tmp_path / str(seeds), seeds).any())


def test_the_order_of_the_classes_moves_none(tmp_path: Path, own_images: Path) -> None:
    of = program(own_images)
    turned = program(own_images, data={"classes": ["bee", "ant"]})
    parts = []
    for one in (of, turned):
        federation = federate(one)
        images = federation.dataset.test.images
        parts.append({images.name(place) for place in divided(federation, 0)})
    assert parts[0] == parts[1]
    assert len(parts[0]) == TESTED // 4


@pytest.mark.parametrize("contract", [{"require": ["secure_aggregation"]}, {"figures": "none"}])
def test_a_site_that_requires_protection_answers_nothing(
    attack: Attack, tmp_path: Path, contract: dict[str, Any]
) -> None:
    images = draw(tmp_path / "images", noise_images(8), noise_images(TESTED, 5))
    site = attack("ward", images, **contract)
    of = program(images, secure={"name": "secagg"})
    site.join(of)
    told, data = site.calibrate(known(of).initial.clone())
    assert "withheld" in told
    assert not data
    assert np.all([kind != "fetch" for kind, _, _ in site.heard])
