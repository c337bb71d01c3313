"""Losses over a chunk of one test image rebuild it; losses over all test images do not.

A coordinator that may say which images are summed asks for one at a time. The network is a linear
layer, and the coordinator chooses its weights: in question p the loss of the image depends on its
pixel p alone, and a logarithm gives the pixel back. No round is trained, and secure aggregation
does not matter, because figures are not updates. If the program decides which images are held out,
the same works with sums over the whole test part: it holds out one image of each class.
(`test_attack_rich_figures.py` is about figures of many more numbers.)

The services are real ones, with the real trainer in the same process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tomli_w
import torch
from attacked_site import InlineTrainer
from PIL import Image
from torch import Tensor, nn

from fedsight.core.package import installed
from fedsight.deploy import declaration
from fedsight.deploy.site import trainer_holder
from fedsight.deploy.site.service import ServiceAnswer, SiteService
from fedsight.engines.remote import messages
from fedsight.models.base import Model, models
from fedsight.program.config import parse
from fedsight.program.program import Program

Picture = npt.NDArray[np.int64]  # [pixels], 0 to 255
SIDE, EACH = 5, 10  # small pictures, since each pixel takes a question
PIXELS, CLASSES = SIDE * SIDE, ("ant", "bee", "cat")
SLOPE = 1.5  # of the logit, per unit of a normalised pixel


class Linear(Model):
    """Logits that are linear in the pixels."""

    __module__ = "fedsight.models.zoo.attack_linear"  # as if it were installed everywhere

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """One layer."""
        head = nn.Linear(channels * height * width, classes)
        return nn.Sequential(nn.Flatten(), head), ["1"]


class ChunkService(SiteService):
    """The weakened build: sums over the images that the coordinator names, as often as it asks."""

    def _measure(self, kind: str, fields: dict[str, Any], body: bytes) -> ServiceAnswer:
        vector = self._model.of(fields["round"], fields)
        assert vector is not None
        site = self._running_trainer()[0]._commands._trainer  # type: ignore[attr-defined]
        seen, first = site.federation.tested(site.federation.views[0]), fields["first"]
        chunk = slice(first, first + 1)
        one = replace(seen, indices=seen.indices[chunk], origins=seen.origins[chunk])
        site.client.load(vector, {})
        return {"done": True, "metrics": messages.metrics_table(site.client.measure_all(one))}, b""


@pytest.fixture(autouse=True)
def near(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    models.add("attack_linear")(Linear)
    monkeypatch.setattr(trainer_holder, "Trainer", InlineTrainer)
    yield
    models.remove("attack_linear")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    """The site's images, ten of each class, in `images`."""
    rng = np.random.default_rng(5)
    drawn = []
    for name in CLASSES:
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for number in range(EACH):
            drawn.append(rng.integers(0, 256, (SIDE, SIDE)))
            Image.fromarray(drawn[-1].astype(np.uint8)).save(folder / f"{number}.png")
    return [picture.flatten() for picture in drawn]


def program(images: Path, secure: str, **data: Any) -> Program:
    """A program that may ask as often as a picture has pixels."""
    source = {"name": "folder", "path": str(images), "size": SIDE, "channels": 1, **data}
    made, _ = parse(
        {
            "data": {**source, "classes": list(CLASSES)},
            "split": {"name": "natural"},
            "model": {"name": "attack_linear"},
            "rounds": {"rounds": PIXELS},
            "secure": {"name": secure},
        },
        base=images,
    )
    return made


def seat(
    kind: type[SiteService], home: Path, asked: Program, images: Path, **contract: Any
) -> SiteService:
    """A site that has joined a run; half of its images are held out."""
    home.mkdir()
    data = {"name": "folder", "path": str(images), "test_fraction": 0.5}
    (home / "owner.toml").write_text(tomli_w.dumps({"data": data, "contract": contract}))
    site = kind(home, "ward")
    header = {"run": "abc", "program": asked.table(), "fingerprint": asked.fingerprint, "sites": 9}
    header["package"] = installed().table()
    answer = json.loads(site.answer("propose", json.dumps({**header, "seconds": 30}), b"")[0])
    assert answer.get("done"), answer
    return site


def trap(pixel: int) -> Tensor:
    """The model whose loss depends on one pixel: it is the logit of the second class."""
    weights = torch.zeros(len(CLASSES), PIXELS)
    weights[1, pixel] = SLOPE
    return torch.cat([weights.flatten(), torch.zeros(len(CLASSES))])


def ask(site: SiteService, pixel: int, first: int = 0) -> dict[str, Any]:
    """A question about one pixel: its answer."""
    data, mark = bytes(messages.pack([trap(pixel)])), 1 + first * PIXELS + pixel
    piece = {"name": "vector", "mark": mark, "start": 0, "total": len(data)}
    site.answer("piece", json.dumps(piece), data)
    header = {"round": pixel + 1, "vector": mark, "attempt": mark, "accepted": 0}
    header |= {"first": first, "seconds": 30}
    return dict(json.loads(site.answer("measure", json.dumps(header), b"")[0]))


def read(table: dict[str, Any], label: int) -> int:
    """The pixel of the only image with the label in the sums, 0 to 255."""
    loss = table["loss"][0][label]
    size = len(CLASSES) - 1
    if label == 1:  # loss = log(1 + 2 exp(-x))
        logit = -math.log(max(math.expm1(loss), 1e-9) / size)
    else:  # loss = log(2 + exp(x))
        logit = math.log(max(math.exp(loss) - size, 1e-9))
    return round(255 * (0.5 + 0.25 * logit / SLOPE))


def rebuild(site: SiteService, label: int, first: int = 0) -> Picture:
    """A picture from one answer for each pixel."""
    tables = [ask(site, pixel, first)["metrics"] for pixel in range(PIXELS)]
    return np.array([read(table, label) for table in tables])


def found(picture: Picture, pictures: list[Picture]) -> bool:
    """Whether the attack has rebuilt one of the site's pictures, pixel by pixel."""
    return any(np.array_equal(picture, one) for one in pictures)


def test_one_image_at_a_time_a_picture_is_rebuilt_despite_secure_aggregation(
    tmp_path: Path, pictures: list[Picture]
) -> None:
    asked = program(tmp_path / "images", "secagg")
    contract = {"require": ["secure_aggregation"]}
    weak = seat(ChunkService, tmp_path / "weak", asked, tmp_path / "images", **contract)
    label = int(np.argmax(np.sum(ask(weak, 0)["metrics"]["confusion"][0], axis=1)))
    assert found(rebuild(weak, label), pictures)
    ours = seat(SiteService, tmp_path / "ours", asked, tmp_path / "images", **contract)
    answer = ask(ours, 0)
    assert "metrics" not in answer
    assert answer["withheld"].startswith("contract.figures: ")


def test_sums_over_all_test_images_give_no_picture(tmp_path: Path, pictures: list[Picture]) -> None:
    asked = program(tmp_path / "images", "none")
    ours = seat(SiteService, tmp_path / "ours", asked, tmp_path / "images")
    tables = [ask(ours, pixel, first=7)["metrics"] for pixel in range(PIXELS)]
    assert {one["loss"][1] for one in tables} == {len(CLASSES) * EACH // 2}
    for label in range(len(CLASSES)):
        means = [{"loss": [[value / (EACH // 2) for value in one["loss"][0]], 1]} for one in tables]
        guess = np.array([read(one, label) for one in means])
        assert min(np.abs(guess - one).mean() for one in pictures) > 30  # of 255


HELD_OUT = {"test_fraction", "test_seed"}


@pytest.mark.parametrize("weak", [True, False])
def test_a_program_cannot_make_the_test_part_one_image_of_each_class(
    tmp_path: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    asked = program(tmp_path / "images", "none", test_fraction=0.01)
    if weak:
        monkeypatch.setattr(declaration, "PROGRAM_KEYS", declaration.PROGRAM_KEYS | HELD_OUT)
    site = seat(SiteService, tmp_path / "site", asked, tmp_path / "images", test_images=1)
    guess = rebuild(site, label=2)
    assert found(guess, pictures) == weak


def test_a_test_part_of_a_few_images_is_not_summed_at_all(
    tmp_path: Path, pictures: list[Picture]
) -> None:
    asked = program(tmp_path / "images", "none")
    site = seat(SiteService, tmp_path / "site", asked, tmp_path / "images", test_images=16)
    assert ask(site, 0)["withheld"] == (
        "contract.test_images: the site has 15 test images, and figures are summed over at least 16"
    )


def test_a_second_question_about_a_round_gets_nothing(
    tmp_path: Path, pictures: list[Picture]
) -> None:
    """So that a run answers at most as many questions as it has rounds."""
    asked = program(tmp_path / "images", "none")
    site = seat(SiteService, tmp_path / "site", asked, tmp_path / "images")
    assert "metrics" in ask(site, 0)
    data = bytes(messages.pack([trap(1)]))
    piece = {"name": "vector", "mark": 99, "start": 0, "total": len(data)}
    site.answer("piece", json.dumps(piece), data)
    header = {"round": 1, "vector": 99, "attempt": 99, "accepted": 0, "seconds": 30}
    answer = json.loads(site.answer("measure", json.dumps(header), b"")[0])
    assert answer["withheld"] == "figures of another model of round 1 have left already"
