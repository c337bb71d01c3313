"""Calibration asks for exact sums over parts of a site's test images: no difference of such sums
may be one image.

On a build that divides the images by the program's seed, a coordinator finds two seeds under which
a part differs in one image, without seeing any: it needs the number of images alone. Both programs
are permitted, and each run's answer is exact. Where only the part that is summed has to be large,
the figures over all images, less its sums, are those of the others: of one, where an owner's groups
or a limit to the number of images leave one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked_site import CLASSES, AttackedSite, Model, draw, known, noise_images, program
from PIL import Image
from torch import Tensor

from fedsight.client.step import Client
from fedsight.data.partition import Groups
from fedsight.deploy.site import trainer_process
from fedsight.deploy.site.delivery import process
from fedsight.deploy.site.trainer import CalibrateStep
from fedsight.deploy.site.trainer_process import SiteTrainer
from fedsight.evaluation.trust import images as chosen
from fedsight.evaluation.trust.answers import Respondent
from fedsight.evaluation.trust.calibration import UNIT
from fedsight.evaluation.trust.images import parts_of_test
from fedsight.evaluation.trust.measure import INFINITE
from fedsight.evaluation.trust.sums import EVERY, CountSums, FitSums, form, read
from fedsight.governance.ledger import Ledger
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Program, Speed
from fedsight.program.site_data import SiteData
from fedsight.program.views import View

Attack = Callable[..., AttackedSite]
TESTED, SEEDS = 24, 400
CALIBRATE = SiteTrainer.calibrate


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


def model(of: Program, spread: float = 0.5) -> Tensor:
    vector = known(of).initial.clone()
    return vector + spread * torch.randn(len(vector), generator=torch.Generator().manual_seed(3))


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
    halved = chosen._halved

    def by_the_program(federation: Federation, views: Any, purpose: str) -> Any:
        monkeypatch.setattr(chosen, "SEED", federation.program.split_seed)
        return halved(federation, views, purpose)

    monkeypatch.setattr(chosen, "_halved", by_the_program)
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


def grouped(root: Path) -> Path:
    """Test images of which one is a patient's, and all others are another's."""
    for part, some in (("train", noise_images(8)), ("test", noise_images(TESTED, 5))):
        for number, pixels in enumerate(some):
            place = root / part / CLASSES[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            name = "many" if number else "one"
            Image.fromarray(pixels).save(place / f"{part}{name}_{number}.png")
    return root


def part_by_part(site: AttackedSite, of: Program, vector: Tensor) -> tuple[float, float] | None:
    """What the figures say of all images and the losses of a part, summed; None if either is
    withheld."""
    assert "declared" in site.join(of)
    told, data = site.calibrate(vector)
    if "withheld" in told:
        assert "contract.test_images" in told["withheld"]
        assert "withheld" in site.calibrate(vector, temperature=1.0)[0]
        return None
    sums = read(FitSums, torch.frombuffer(bytearray(data), dtype=torch.int64), 2)
    loss, images = site.measure(vector, round=3)["metrics"]["loss"]
    assert int(sums.images[0]) == images - 1
    return sum(loss), int(sums.losses[EVERY // 2]) / UNIT


def only_what_is_summed(trainer: SiteTrainer, step: CalibrateStep) -> Tensor | str:
    """As if the part that is summed now alone had to have enough images."""
    fitted, cover, tested = chosen.divided(trainer.federation)
    asked = [fitted] if step.temperature is None else [cover, tested]
    if min(map(len, asked)) < step.least:
        return trainer_process.TOO_FEW
    return CALIBRATE(trainer, replace(step, least=0))


def test_where_only_what_is_summed_is_counted_a_group_leaves_one_image(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = grouped(tmp_path / "images")
    owned = {"name": "folder", "path": str(images), "group": "{group}_*"}
    of = program(images)
    monkeypatch.setattr(SiteTrainer, "calibrate", only_what_is_summed)
    vector = model(of, 0.02)  # at most 64 nats of an image's loss are summed
    both = part_by_part(attack("w2", owned), of, vector)  # the name decides which part it is
    assert both is not None
    here = opened(of)
    client = Client(here, Speed(device="cpu"))
    client.load(vector, {})
    names = here.dataset.test.images
    one = [place for place in range(TESTED) if "one_" in names.name(place)]
    ask = Respondent(lambda _: client, client.network, 2)
    found = ask.answers([here.tested(View(0, np.array(one)))])
    alone = float(torch.nn.functional.cross_entropy(found.logits.double(), found.labels))
    assert both[0] - both[1] == pytest.approx(alone, abs=1e-5)


def test_every_part_has_enough_images_or_none_is_summed(attack: Attack, tmp_path: Path) -> None:
    images = grouped(tmp_path / "images")
    owned = {"name": "folder", "path": str(images), "group": "{group}_*"}
    of = program(images)
    for number in range(8):
        assert part_by_part(attack(f"w{number}", owned), of, model(of, 0.02)) is None


def summed_images(attack: Attack, root: Path, count: int) -> tuple[int, Tensor]:
    """How many of so many test images the three parts have together, and all their sums."""
    images = draw(root / "images", noise_images(8), noise_images(count, 5))
    of, site = program(images), attack(f"{root.name}/ward", images, test_images=5)
    assert "declared" in site.join(of)
    data = b"".join(site.calibrate(model(of), temperature=heat)[1] for heat in (None, 1.0))
    both = torch.frombuffer(bytearray(data), dtype=torch.int64)
    cut = form(FitSums, 2).size
    losses, scores = read(FitSums, both[:cut], 2), read(CountSums, both[cut:], 2)
    return int(losses.images[0] + scores.cover.sum() + scores.tested.sum()), both


def test_no_image_is_left_over_however_many_there_are(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = summed_images(attack, tmp_path / "few", 22)
    for module in (chosen, trainer_process):
        monkeypatch.setattr(module, "MOST", 10)  # instead of 5,000
    found = summed_images(attack, tmp_path / "many", 22)
    assert found[0] == whole[0] == 22
    assert torch.equal(found[1], whole[1])  # in pieces they are the same

    def cut(federation: Federation) -> tuple[SiteData, ...]:
        parts = parts_of_test(federation, apart=False)
        return parts.fitted[0], parts.cover[0], parts.tested[0]

    monkeypatch.setattr(trainer_process, "divided", cut)
    assert summed_images(attack, tmp_path / "cut", 22)[0] == 21  # figures less these are one's


def test_sums_of_a_run_are_of_one_model(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = draw(tmp_path / "images", noise_images(8), noise_images(TESTED, 5))
    of = program(images)
    vector = model(of)

    def second(name: str, **changes: Any) -> dict[str, Any]:
        site = attack(name, images, test_images=5)
        site.join(of)
        assert "bytes" in site.calibrate(vector)[0]
        return site.calibrate(2 * vector, temperature=1.0, **changes)[0]

    for number, changes in enumerate(({}, {"round": 2})):
        told = second(f"ward{number}", **changes)
        assert "another model of this run" in told["withheld"]
    monkeypatch.setattr(Ledger, "_check_calibration", lambda ledger, entry: None)
    assert "bytes" in second("weak")


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


def test_a_model_that_overflows_on_bright_images_costs_no_recogniser(
    attack: Attack, tmp_path: Path
) -> None:
    """What is said of its answers is computed where they are not numbers; it is still delivered."""
    test = noise_images(16, 5)
    test[:6] = [np.full((8, 8), 250 + number, np.uint8) for number in range(6)]
    images = draw(tmp_path / "images", noise_images(8), test)
    of, site = program(images), attack("ward", images)
    site.join(of)
    bright = Model(known(of)).looking(torch.full((2, 64), 3.4e38 / 150))  # at 2.5 a pixel and more
    passing = torch.zeros(200, 200)
    passing[0, 0] = passing[1, 1] = 1
    head = torch.zeros(2, 200)
    head[0, 0], head[0, 1] = 1e-38, -1e-38
    bright.set("hidden1.weight", passing).set("head.weight", head)
    site.deliver(bright.travelling, 3)
    site.close()
    (order,) = site.home.glob("received/*/order.json")
    outcome = process.deliver(site.home, order.parent.name)
    assert outcome.state == "delivered"
    assert {one["reason"] for one in outcome.facts["trust"].values()} == {INFINITE}
