"""Clauses that an owner believes in and that did nothing, without a word.

Noise was stated for figures that left exactly, because `figures` was left out; and sums of masked
updates were limited to one list of sites at a site that took part in programs without masks, which
send each update by itself. The contract was accepted, and the coordinator chose what it liked.
Where a run was not to be told how many images of each class there are, the sums of closed forms and
prototypes said it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked_site import CLASSES, AttackedSite, draw, known, noise_images, program, values
from pydantic import field_validator

from fedsight.core.errors import ConfigError
from fedsight.deploy.site import owner
from fedsight.governance.contract import Contract
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
TESTED = 24


class Lenient(Contract):
    """The weakened build: a clause without effect is accepted."""

    @field_validator("sums", "lists")
    @classmethod
    def _bounds_sums(cls, value: Any) -> Any:  # type: ignore[override]
        return value

    @field_validator("figures_noise")
    @classmethod
    def _noises_figures(cls, value: Any) -> Any:  # type: ignore[override]
        return value


class Telling(Contract):
    """The weakened build: a program's sums may say what the declaration does not."""

    def _check_counts(self, *arguments: Any) -> None:
        pass


def alike(images: Path) -> Program:
    """A program that `contract.lists` permits, if it is named; without masks."""
    return program(images, train={"steps": 1, "sampling": "independent"})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw(tmp_path / "images", noise_images(8), noise_images(TESTED, 5))


def clauses(images: Path) -> list[dict[str, Any]]:
    named = [alike(images).fingerprint]
    return [
        {"figures_noise": 50.0},
        {"figures_lists": 1},
        {"figures": "none", "evaluations": 5},
        {"sums": 1},
        {"lists": 1, "programs": named},
    ]


def test_figures_with_a_stated_noise_left_without_any(
    attack: Attack, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "Contract", Lenient)
    site, of = attack("ward", images, figures_noise=50.0), program(images)
    site.join(of)
    told = site.measure(known(of).initial)
    counts, tested = told["metrics"]["confusion"]
    assert "noise" not in told
    assert (sum(map(sum, counts)), tested) == (TESTED, TESTED), "the exact counts of one site"


@pytest.mark.parametrize("clause", ["sums", "lists"])
def test_an_update_left_alone_where_sums_were_limited(
    attack: Attack, images: Path, monkeypatch: pytest.MonkeyPatch, clause: str
) -> None:
    monkeypatch.setattr(owner, "Contract", Lenient)
    contract = next(one for one in clauses(images) if clause in one)
    site, of = attack("ward", images, **contract), alike(images)
    assert "declared" in site.join(of)
    _, sent = site.train(known(of).initial)
    assert bool(values(sent).any()), "one site's update, without a mask"


@pytest.mark.parametrize(
    "clause", ["figures_noise", "figures_lists", "evaluations", "sums", "lists"]
)
def test_ours_are_refused_by_name(attack: Attack, images: Path, clause: str) -> None:
    contract = next(one for one in clauses(images) if clause in one)
    table = {"data": {"name": "folder", "path": str(images)}, "contract": contract}
    with pytest.raises(ConfigError) as caught:
        owner.parse_owner(table, images)
    (problem,) = caught.value.problems
    assert problem.where == f"contract.{clause}"
    assert f"leave contract.{clause} out" in problem.cause
    answer = attack("ward", images, **contract).join(alike(images))
    assert f"contract.{clause}" in answer["error"], "and nothing leaves a site that has it"


def test_what_they_need_beside_them_is_accepted() -> None:
    Contract(figures="noised", figures_noise=50.0)
    Contract(figures="masked", figures_lists=2)
    Contract(require=("secure_aggregation",), sums=1, lists=1)
    Contract(epsilon=8.0, sums=1, lists=1)
    Contract(require=("distributed_dp",), min_noise_multiplier=1.0, sums=1)
    assert Contract(figures="noised").noise_of_figures == 5.0


COUNTED = 5, 3  # images of each class
BY_CLASS = ["ncm", "ridge", "fedproto"]


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    folder = draw(tmp_path / "uneven", noise_images(2 * max(COUNTED)), noise_images(TESTED, 5))
    for number in range(COUNTED[1], COUNTED[0]):
        (folder / "train" / CLASSES[1] / f"{2 * number + 1}.png").unlink()
    return folder


def counted(images: Path, name: str, **sections: Any) -> Program:
    """One round of sums by class."""
    return program(images, algorithm={"name": name}, rounds={"rounds": 1}, **sections)


@pytest.mark.parametrize("name", BY_CLASS)
def test_numbers_of_each_class_were_read_from_sums(
    attack: Attack, uneven: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(owner, "Contract", Telling)
    site, of = attack("ward", uneven, counts=False), counted(uneven, name)
    assert site.join(of)["declared"]["labels"] == []
    federation = known(of)
    vector = federation.initial[federation.layout.travelling]
    _, sent = site.train(vector, of.algorithm.shared(of.algorithm.init(vector)))
    spec = of.algorithm.integer_parts(federation.network, len(CLASSES), sum(COUNTED))
    part = "sums" if name == "fedproto" else "cross"
    shape = spec[part].shape
    found = torch.frombuffer(bytearray(sent[-8 * math.prod(shape) :]), dtype=torch.int64)
    row = found.reshape(shape)[:, -1] if name == "fedproto" else found.reshape(shape)[-1]
    assert tuple(row.tolist()) == COUNTED


@pytest.mark.parametrize("name", BY_CLASS)
def test_ours_refuses_sums_that_say_it(attack: Attack, uneven: Path, name: str) -> None:
    answer = attack("ward", uneven, counts=False).join(counted(uneven, name))
    assert "contract.counts" in answer["error"]
    masked = counted(uneven, name, secure={"name": "secagg"})
    assert "declared" in attack("masked", uneven, counts=False).join(masked)
