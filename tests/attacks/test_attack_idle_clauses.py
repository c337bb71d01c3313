"""Clauses that an owner believes in and that did nothing, without a word.

Noise was stated for figures that left exactly, because `figures` was left out; and sums of masked
updates were limited to one list of sites at a site that took part in programs without masks, which
send each update by itself. The contract was accepted, and the coordinator chose what it liked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program, values
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


def alike(images: Path) -> Program:
    """A program that `contract.lists` permits, if it is named; without masks."""
    return program(images, train={"steps": 1, "sampling": "independent"})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw(tmp_path / "images", noise_images(8), noise_images(TESTED, 5))


def clauses(images: Path) -> list[dict[str, Any]]:
    return [{"figures_noise": 50.0}, {"sums": 1}, {"lists": 1, "programs": [alike(images).fingerprint]}]


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


@pytest.mark.parametrize("clause", ["figures_noise", "sums", "lists"])
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
    Contract(require=("secure_aggregation",), sums=1, lists=1)
    assert Contract(figures="noised").noise_of_figures == 5.0
