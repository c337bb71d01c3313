"""Sums in which each patient counts once stand beside figures over all images: what one kind says
more than the other must not be a single patient's, and the coordinator must not choose the kind.

On a build where the program says which images are one patient's, two programs divide the same
images otherwise, and their sums differ by a few images'. On one that counts only how many images
and patients there are, the figures, less the sums, tell the loss of the one image that a patient
has more than others. On one that adds noise to sums over all images, a patient with many stands out
of the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked_site import CLASSES, AttackedSite, known, noise_images, program
from PIL import Image
from torch import Tensor

from fedsight.client.step import Client
from fedsight.core.types import Sum
from fedsight.deploy import declaration
from fedsight.deploy.site import trainer_process
from fedsight.deploy.site.calibration import PART_TOO_SMALL
from fedsight.deploy.site.trainer import CalibrateStep
from fedsight.evaluation.trust.answers import Respondent
from fedsight.evaluation.trust.calibration import UNIT
from fedsight.evaluation.trust.conformal import BINS
from fedsight.evaluation.trust.noised import BOUNDS, ENERGY, SCORES
from fedsight.evaluation.trust.sums import EVERY, CountSums, FitSums, form, read
from fedsight.privacy import noised_sums
from fedsight.program.federation import federate
from fedsight.program.program import Program, Speed
from fedsight.program.views import View

Attack = Callable[..., AttackedSite]
PATTERN = "{group}_*"
PEOPLE = 28


def draw(root: Path, several: dict[int, int]) -> Path:
    """PEOPLE patients with one test image each, but `several` have more."""
    for part, people in (("train", range(100, 108)), ("test", range(PEOPLE))):
        for person in people:
            pixels = noise_images(several.get(person, 1), person)
            for number, one in enumerate(pixels):
                place = root / part / CLASSES[(person + number) % 2]
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(one).save(place / f"p{person}_{number}.png")
    return root


def owned(images: Path, knows: bool = True) -> dict[str, Any]:
    grouped = {"group": PATTERN} if knows else {}
    return {"name": "folder", "path": str(images), **grouped}


def model(of: Program, spread: float) -> Tensor:
    vector = known(of).initial.clone()
    return vector + spread * torch.randn(len(vector), generator=torch.Generator().manual_seed(3))


def both_programs(attack: Attack, images: Path, knows: bool) -> list[bytes]:
    """The sums of two runs of one model, whose programs say otherwise whose images are whose."""
    site, found = attack(f"ward{knows}", owned(images, knows), test_images=5), []
    vector = model(program(images), 0.5)
    for number, data in enumerate(({}, {"group": PATTERN})):
        assert "declared" in site.join(program(images, data=data), f"run{number}")
        found.append(b"".join(site.calibrate(vector, temperature=one)[1] for one in (None, 1.0)))
    return found


def test_where_a_program_says_whose_images_are_whose_two_sums_tell_of_few(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = draw(tmp_path / "images", dict.fromkeys(range(0, PEOPLE, 2), 2))
    monkeypatch.setattr(declaration, "PROGRAM_KEYS", declaration.PROGRAM_KEYS | {"group"})
    one, other = both_programs(attack, images, knows=False)
    assert one
    assert other
    assert one != other


@pytest.mark.parametrize("knows", [False, True])
def test_a_program_does_not_choose_what_is_counted(
    attack: Attack, tmp_path: Path, knows: bool
) -> None:
    images = draw(tmp_path / "images", dict.fromkeys(range(0, PEOPLE, 2), 2))
    one, other = both_programs(attack, images, knows)
    assert one
    assert one == other


def left_over(site: AttackedSite, of: Program, vector: Tensor) -> float | None:
    """The loss of what the sums lack of the figures; None if they lack nothing or are withheld."""
    assert "declared" in site.join(of)
    told, data = site.calibrate(vector)
    if "withheld" in told:
        assert told["withheld"] == PART_TOO_SMALL
        return None
    data += site.calibrate(vector, temperature=1.0)[1]
    both = torch.frombuffer(bytearray(data), dtype=torch.int64)
    cut = form(FitSums, 2).size
    fit, counts = read(FitSums, both[:cut], 2), read(CountSums, both[cut:], 2)
    if not counts.grouped:
        return None
    sums, images = site.measure(vector, round=3)["metrics"]["loss"]
    assert images == int(fit.images[0] + counts.images.sum())
    middles = 1 - (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
    histogram = (counts.cover + counts.tested).sum(0).double()
    return sum(sums) - int(fit.losses[EVERY // 2]) / UNIT + float(histogram @ middles.log())


def own_losses(images: Path, of: Program, vector: Tensor, person: str) -> list[float]:
    """The losses of each of a patient's images (of all images of a nameless one), which no
    coordinator has."""
    here = federate(of)
    client = Client(here, Speed(device="cpu"))
    client.load(vector, {})
    names = here.dataset.test.images
    mine = [at for at in range(len(here.dataset.test)) if f"{person}_" in names.name(at)]
    ask = Respondent(lambda _: client, client.network, 2)
    found = ask.answers([here.tested(View(0, np.array(mine)))])
    each = torch.nn.functional.cross_entropy(found.logits.double(), found.labels, reduction="none")
    return [float(one) for one in each]


def test_where_only_parts_have_to_be_large_an_image_more_of_a_patient_is_told(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = draw(tmp_path / "images", {3: 2})
    of = program(images)
    vector = model(of, 0.1)
    monkeypatch.setattr(trainer_process, "fewest", lambda *given: min(map(len, given[:3])))
    found = [left_over(attack(f"w{number}", owned(images), test_images=5), of, vector)
             for number in range(6)]  # fmt: skip
    told = [one for one in found if one is not None]
    assert told, "in no site's name the patient is in a part of which one image is drawn"
    alone = own_losses(images, of, vector, "p3")
    every = own_losses(images, of, vector, "")
    assert abs(alone[0] - alone[1]) > 0.05
    assert float(np.std(every)) > 0.05
    for one in told:
        assert min(abs(one - loss) for loss in alone) < 0.01


def test_sums_less_figures_are_of_enough_patients_or_of_none(
    attack: Attack, tmp_path: Path
) -> None:
    images = draw(tmp_path / "images", {3: 2})
    of = program(images)
    vector = model(of, 0.1)
    for number in range(6):
        site = attack(f"w{number}", owned(images), test_images=5)
        assert left_over(site, of, vector) is None


def distance(attack: Attack, root: Path) -> Tensor:
    """How far apart the sums are of a site where a patient has one image, and forty."""
    found = []
    for several in (1, 40):
        images = draw(root / str(several), {3: several})
        of = program(images)
        site = attack(f"{root.name}{several}", owned(images), test_images=5)
        assert "declared" in site.join(of)
        trainer = site.service._trainer
        assert trainer is not None
        step = CalibrateStep(3, model(of, 0.5), 1.0, 5, noised=True)
        sums = trainer.ask(step, "counting")
        found.append(torch.cat([torch.as_tensor(sums[name].total) for name in (SCORES, ENERGY)]))
    return found[1] - found[0]


def told_apart(apart: Tensor, multiplier: float) -> float:
    """How often the likelier of both is the true one, with noise of this size."""
    deviation, half = noised_sums.deviation(BOUNDS, multiplier)[SCORES], len(apart) // 2
    right = 0
    for true in (0.0, 1.0):
        for _ in range(200):
            shares = (true * apart[:half], true * apart[half:], torch.zeros(2, 9))
            sums = {name: Sum(one.numpy(), 1) for name, one in zip(BOUNDS, shares, strict=True)}
            noised = noised_sums.noised(sums, BOUNDS, multiplier)
            seen = torch.cat([torch.as_tensor(noised[name].total) for name in (SCORES, ENERGY)])
            likely = float(apart @ (seen - apart / 2)) / deviation**2 > 0
            right += likely == bool(true)
    return right / 400


def test_noise_hides_a_patient_with_many_images(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = distance(attack, tmp_path / "ours")
    assert float(ours.abs().max()) <= 1
    assert told_apart(ours, 2.0) < 0.75
    monkeypatch.setattr(trainer_process, "one_of_each", lambda data, below: data)
    weak = distance(attack, tmp_path / "weak")
    assert float(weak.abs().sum()) > 40
    assert told_apart(weak, 2.0) > 0.95
