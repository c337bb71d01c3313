"""Two sums over one list of sites, within one program: from models that the coordinator chooses.

Sites that take more steps than others are told apart by two models between which only the later
steps differ; sites whose batches are drawn, beside others of which a batch always holds all images,
by the same model twice. What is left is an update of theirs, or the difference of two. Where all
sites take the same number of steps, on images that are drawn alike whatever their number, neither
leaves one site by itself.

What a model can be chosen for still is what the images are like: that is measured here, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked_site import CLASSES, known
from four_masked_sites import NAMES, Attack, Federation, like
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fedsight.governance.contract import Contract
from fedsight.program.program import Program

MORE = 3  # images of the target beyond the six of each other site
EPOCHS: dict[str, Any] = {"batch": 6, "lr": 0.5}
SHUFFLED: dict[str, Any] = {**EPOCHS, "steps": 4}
ALIKE: dict[str, Any] = {**SHUFFLED, "sampling": "independent"}
ROUNDING = 1e-5  # what masked sums of all values are off by at most


def opened(
    attack: Attack,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: dict[str, Any],
    weak: bool = False,
    task: dict[str, Any] | None = None,
    **more: Any,
) -> Federation:
    """Sites that permit one list and this program only; `weak`: however unlike they train in it."""
    if weak:
        monkeypatch.setattr(Contract, "_check_alike", lambda self, program: None)
    sections = {"train": train, "task": task or {}}
    named = [like(root, **sections).fingerprint]
    federation = Federation(attack, root, monkeypatch, lists=1, programs=named, **more)
    federation.program = federation.like(**sections)
    return federation


def vectors(of: Program) -> tuple[Tensor, Tensor, slice]:
    """A model, one that doubles its features, and where the weights are that tell.

    Without biases and with an output of zero, twice the first weights are twice the features, and
    twice the first step of the output's weights. Not so the later steps.
    """
    whole = known(of)
    first, *_, output = [e for e in whole.layout.entries if e.name.endswith("weight")]
    single = whole.initial.clone()
    for entry in whole.layout.entries:
        if entry == output or entry.name.endswith("bias"):
            entry.view(single).zero_()
    double = single.clone()
    first.view(double).mul_(2)
    return single, double, slice(output.start, output.start + output.size)


def of_two_models(federation: Federation) -> tuple[float, float]:
    """How far what two models leave in the sums is from a single site's, and how large it is."""
    single, double, told = vectors(federation.program)
    one, two = (
        federation.sum(NAMES, round=number, vector=vector)[told]
        for number, vector in ((1, single), (2, double))
    )
    assert float(one.abs().max()) > 0.01
    return apart(two - 2 * one, [two[told] - 2 * one[told] for one, two in pairs(federation)])


def of_two_rounds(federation: Federation) -> tuple[float, float]:
    """The same, of one model in two rounds."""
    vector = known(federation.program).initial
    one, two = (federation.sum(NAMES, round=number, vector=vector) for number in (1, 2))
    return apart(two - one, [two - one for one, two in pairs(federation)])


def pairs(federation: Federation) -> list[tuple[Tensor, Tensor]]:
    """Updates of the two rounds, any with any: one of the pairs is of the target."""
    return list(itertools.product(federation.trained[:4], federation.trained[4:]))


def apart(found: Tensor, own: list[Tensor]) -> tuple[float, float]:
    """The distance of what was found to the nearest of the sites' own, and its size."""
    return min(float((found - one).norm()) for one in own), float(found.norm())


Way = Callable[[Federation], tuple[float, float]]
OTHERWISE: list[dict[str, Any]] = [
    *({}, {"steps": 1}, {"batch": 8}, {"batch": 64}, {"momentum": 0.9}),
    *({"optimiser": "adamw", "lr": 0.01}, {"schedule": "linear", "schedule_by": "step"}),
]
WEAK = [(of_two_models, EPOCHS), (of_two_rounds, SHUFFLED)]


@pytest.mark.parametrize(("way", "train"), WEAK, ids=["more steps", "drawn batches"])
def test_a_site_of_more_images_is_left_where_they_decide_how_it_trains(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Way, train: dict[str, Any]
) -> None:
    federation = opened(attack, tmp_path, monkeypatch, train, weak=True, more=MORE)
    distance, size = way(federation)
    assert distance < ROUNDING < 1e-2 < size


@pytest.mark.parametrize(("way", "train"), WEAK, ids=["more steps", "drawn batches"])
def test_ours_refuse_such_a_program_though_its_owner_names_it(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Way, train: dict[str, Any]
) -> None:
    federation = opened(attack, tmp_path, monkeypatch, train, more=MORE)
    assert federation.refusals(federation.program) == {"contract.lists"}


@pytest.mark.parametrize("way", [of_two_models, of_two_rounds])
@pytest.mark.parametrize("otherwise", OTHERWISE, ids=str)
def test_no_site_is_left_where_all_train_alike(
    attack: Attack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: Way,
    otherwise: dict[str, Any],
) -> None:
    federation = opened(attack, tmp_path, monkeypatch, {**ALIKE, **otherwise}, more=MORE)
    distance, size = way(federation)
    assert distance > 1e-2, (distance, size)


# Four images of a class and five of the other give a shift of 0.04 of this; three of each, none.
MARGINS = {"name": "classify", "calibration": 1e6}
SURE = 500.0  # the least score of the right class above the other's: nothing is left to learn


def of_a_right_model(federation: Federation) -> tuple[float, float]:
    """What a model that is right of all images leaves in one sum, as `of_two_models`."""
    found = federation.sum(NAMES, vector=right_of_all(federation))
    return apart(found, federation.trained)


def right_of_all(federation: Federation) -> Tensor:
    """A model that is certain of the right class of each image of all sites."""
    whole = known(federation.program)
    model, images, labels = whole.network.module, [], []
    for site in NAMES:
        folder = federation.images.parent / f"images-{site}" / "train"
        for label, name in enumerate(CLASSES):
            for path in sorted((folder / name).iterdir()):
                pixels = torch.from_numpy(np.asarray(Image.open(path), dtype=np.float32))
                images.append(pixels[None] / 255 / 0.25)
                labels.append(label)
    x, y = torch.stack(images), torch.tensor(labels)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    with torch.no_grad():
        scores = model(x)
        least = float((scores.gather(1, y[:, None]) - scores.gather(1, 1 - y[:, None])).min())
        assert least > 0
        for name in whole.network.head:
            model.get_parameter(name).mul_(SURE / least)
    return whole.layout.vector(model.state_dict())


def test_a_strong_margin_leaves_the_site_of_another_size(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {**ALIKE, "lr": 1e-4}  # so that secure.clip changes nothing
    federation = opened(attack, tmp_path, monkeypatch, train, weak=True, task=MARGINS, more=MORE)
    distance, size = of_a_right_model(federation)
    assert distance < ROUNDING < 1e-2 < size
    assert [bool(one.any()) for one in federation.trained].count(True) == 1


def test_ours_refuse_a_program_with_margins(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = opened(attack, tmp_path, monkeypatch, ALIKE, task=MARGINS, more=MORE)
    assert federation.refusals(federation.program) == {"contract.lists"}


def test_weights_by_shares_leave_nobody(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"name": "classify", "class_weights": "site"}
    federation = opened(attack, tmp_path, monkeypatch, ALIKE, task=weights, more=MORE)
    _, size = of_a_right_model(federation)
    assert size < ROUNDING


def test_a_site_of_one_image_takes_the_same_update_each_time(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of it: beside such sites only, the differences of another's are in the open."""
    # With small steps: what exceeds the clip of the masks would be missing in the sums.
    train = {**ALIKE, "steps": 8, "lr": 0.1}
    federation = opened(attack, tmp_path, monkeypatch, train, more=MORE, each=1)
    distance, size = of_two_rounds(federation)
    assert distance < ROUNDING < 1e-2 < size


def test_a_model_still_tells_sites_apart_by_what_their_images_are(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left: sites learn nothing from a model that is certain of their class, which is that
    of the only image of three of them. One sum is the update of the other one."""
    train = {**ALIKE, "lr": 0.02}  # so that secure.clip changes nothing
    federation = opened(attack, tmp_path, monkeypatch, train, more=MORE, each=1)
    whole = known(federation.program)
    vector = whole.initial.clone()
    weight, bias = (e for e in whole.layout.entries if e.name in whole.network.head)
    weight.view(vector).zero_()
    bias.view(vector).copy_(torch.tensor([200.0, 0.0]))
    found = federation.sum(NAMES, vector=vector)
    distance, size = apart(found, federation.trained)
    assert distance < ROUNDING < 1e-2 < size
    assert [bool(one.any()) for one in federation.trained].count(True) == 1
