"""One test image that cannot be read takes away what all others add to sums for calibration.

An owner may have images streamed without a look at each before (`verify = false`), and a file may
be damaged later. Where noise protects what leaves, it hides what one image adds to two histograms;
a site that failed as a whole moved all of its images into the last bin. Inside a masked sum such a
site was a sum of zeros, and the exact number of images in the sum told which site has that image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacked_site import AttackedSite, Model, draw, known, noise_images, program
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.deploy.site import trainer_process
from fedsight.deploy.site.trainer import CalibrateStep
from fedsight.deploy.site.trainer_process import SiteTrainer
from fedsight.evaluation.trust.answers import Answers, Respondent
from fedsight.evaluation.trust.cover_sums import CoverSums, tallied
from fedsight.evaluation.trust.noised import BOUNDS, ENERGY
from fedsight.evaluation.trust.noised_cover import LOSSES, UNITS
from fedsight.evaluation.trust.sums import CountSums, FitSums, read
from fedsight.privacy.noised_sums import deviation
from fedsight.program.program import Program
from fedsight.program.site_data import SiteData

Attack = Callable[..., AttackedSite]
TESTED, NOISE = 200, 2.0
DEVIATION = deviation(BOUNDS, NOISE)[ENERGY]
NOISED = {"privacy": {"name": "local", "noise_multiplier": 1.0}}
RULE: dict[str, Any] = {
    "require": ["local_dp"],
    "min_noise_multiplier": 0.5,
    "figures": "noised",
    "figures_noise": NOISE,
}


def images_of(root: Path, broken: bool) -> Path:
    folder = draw(root, noise_images(8), noise_images(TESTED, 5))
    if broken:
        path = folder / "test" / "ant" / "0.png"
        path.write_bytes(path.read_bytes()[:40])
    return folder


def site_of(attack: Attack, folder: Path, **contract: Any) -> AttackedSite:
    """A site that streams its images, and has not looked at each of them."""
    data = {"name": "folder", "path": str(folder), "in_memory": False, "verify": False}
    return attack(f"{folder.parent.name}-{folder.name}/ward", data, **contract)


def ignorant(of: Program) -> Tensor:
    """A model that gives the same answer to every image."""
    return Model(known(of)).set("head.weight", 0.0).set("head.bias", 0.0).travelling


def last_bins(attack: Attack, root: Path) -> list[float]:
    """How many energies are in the last bin, at two sites that differ in one image."""
    of = program(images_of(root / "public", broken=False), **NOISED)
    vector, found = ignorant(of), []
    for broken in (False, True):
        site = site_of(attack, images_of(root / f"broken-{broken}", broken), **RULE)
        assert "declared" in site.join(of)
        told, _ = site.calibrate(vector)
        found.append(told["metrics"]["energy"][0][-1])
    return found


def test_one_image_moved_all_others(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def together(self: Respondent, data: SiteData) -> Answers:
        return self.answers([data])

    monkeypatch.setattr(Respondent, "singly", together)
    whole, broken = last_bins(attack, tmp_path)
    assert broken - whole > TESTED - 15 * DEVIATION > 15 * DEVIATION, "no noise hides that"


def test_ours_moves_that_image_alone(attack: Attack, tmp_path: Path) -> None:
    whole, broken = last_bins(attack, tmp_path)
    assert abs(broken - whole) < 12 * DEVIATION


@pytest.fixture
def trainer(attack: Attack, tmp_path: Path) -> SiteTrainer:
    """The trainer of a site with one image that cannot be read."""
    of = program(images_of(tmp_path / "public", broken=False), secure={"name": "secagg"})
    site = site_of(attack, images_of(tmp_path / "broken", broken=True))
    assert "declared" in site.join(of)
    held: Any = site.service._trainer
    found: SiteTrainer = held._commands._trainer
    return found


def summed(trainer: SiteTrainer) -> int:
    """How many test images of the site are in the sums that it would mask."""
    vector, images = ignorant(trainer.federation.program), 0
    asked: list[tuple[float | None, Any]] = [(None, FitSums), (1.0, CountSums)]
    for heat, kind in asked:
        step = CalibrateStep(3, vector, heat, 11, masked=True)
        try:
            numbers = trainer.calibrate(step)
        except Exception:  # a protected site sends zeros instead
            continue
        assert not isinstance(numbers, str)
        sums: Any = read(kind, numbers, 2)
        images += int(sums.images) if kind is FitSums else int(sums.cover.sum() + sums.tested.sum())
    return images


def test_a_masked_sum_told_by_its_images_which_site_failed(
    trainer: SiteTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_or_nothing(asks: Respondent, data: SiteData, masked: bool) -> Answers:
        return asks.answers([data]).finite

    monkeypatch.setattr(trainer_process, "_answers", all_or_nothing)
    assert summed(trainer) <= 3 * TESTED // 4, "a quarter of the images, or three, are missing"


def test_in_ours_that_image_counts_like_one_that_the_model_knows_nothing_of(
    trainer: SiteTrainer,
) -> None:
    assert summed(trainer) == TESTED


def test_images_are_asked_one_by_one_and_give_what_they_give_together(
    attack: Attack, tmp_path: Path
) -> None:
    of = program(images_of(tmp_path / "public", broken=False), secure={"name": "secagg"})
    site = site_of(attack, tmp_path / "public")
    site.join(of)
    held: Any = site.service._trainer
    client = held._commands._trainer.client
    client.load(known(of).initial, {})
    asks = Respondent(lambda _: client, client.network, 2)
    federation = held._commands._trainer.federation
    data = federation.tested(federation.views[0])
    alone, together = asks.singly(data), asks.answers([data])
    assert np.allclose(alone.logits, together.logits, atol=1e-5)
    assert alone.labels.equal(together.labels)


GRADED = {"task": {"name": "ordinal"}}


def graded(attack: Attack, root: Path, broken: bool, **tables: Any) -> SiteTrainer:
    """The trainer of a site that grades its images, one of which perhaps cannot be read."""
    of = program(images_of(root / "public", broken=False), **GRADED, **tables)
    rules = RULE if "privacy" in tables else {}
    site = site_of(attack, images_of(root / f"graded-{broken}", broken), **rules)
    assert "declared" in site.join(of)
    held: Any = site.service._trainer
    found: SiteTrainer = held._commands._trainer
    return found


def losses(trainer: SiteTrainer) -> np.ndarray[Any, Any]:
    """What the site adds noise to: what its images lose, or what it sends if that fails."""
    of = trainer.federation.program
    step = CalibrateStep(3, known(of).initial, None, 11)
    try:
        counted = trainer.count(step)
    except Exception:  # what a protected site does
        counted = trainer.count(replace(step, blank=True))
    return np.concatenate([counted[one].total for one in (LOSSES, UNITS)])


@pytest.mark.parametrize("weakened", [True, False])
def test_one_image_that_cannot_be_graded_adds_as_much_as_any(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weakened: bool
) -> None:
    if weakened:
        monkeypatch.setattr(trainer_process, "tallied_singly", tallied)
    whole, broken = (losses(graded(attack, tmp_path, one, **NOISED)) for one in (False, True))
    moved = np.abs(broken - whole).sum()
    if weakened:
        assert moved > TESTED / 2, "all of them are lost: no noise hides that"
    else:
        assert 0 < moved <= 3, "one unit more or less, and its losses at two levels"


@pytest.mark.parametrize("weakened", [True, False])
def test_a_masked_sum_of_losses_has_all_images(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weakened: bool
) -> None:
    trainer = graded(attack, tmp_path, True, secure={"name": "secagg"})
    if weakened:
        monkeypatch.setattr(trainer_process, "_cover_sums", lambda *given: CoverSums.of(*given[:3]))
    step = CalibrateStep(3, known(trainer.federation.program).initial, None, 11, masked=True)
    if weakened:
        with pytest.raises(DataError):  # a protected site sends zeros then
            trainer.calibrate(step)
        return
    numbers = trainer.calibrate(step)
    assert not isinstance(numbers, str)
    covering = trainer.federation.program.task.covering
    assert covering is not None
    sums = CoverSums.read(numbers, covering, 2)
    assert int(sums.images[0]) == TESTED
    assert sums.is_possible(TESTED)
