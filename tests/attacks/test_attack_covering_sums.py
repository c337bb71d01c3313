"""What sites add up of masks, grades or faces tells of no single image or person by itself.

On a build where an answer that is not a number makes the counting fail, a coordinator sends a model
that overflows on some images only: a site that protects its images then sends zeros, and how many
images the masked sum lacks tells which site has such images. And where one of an odd number of
people is left out of the pairs, figures over all images less the sums over pairs are those of one
person; or, if faces were divided as other tasks' images are, the sums of two tasks over them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from covered_sites import KINDS, OF_A_PERSON, TESTS, Sites, final, program, vector_of
from torch import Tensor

from fedsight.evaluation.trust.covering import controlled
from fedsight.evaluation.trust.images import divided, parts_of_test
from fedsight.program.federation import Federation
from fedsight.program.views import View
from fedsight.tasks.covering import grades, levels
from fedsight.tasks.covering.pairs import paired

MASKED = {"name": "secagg", "dropout": 0.25}


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    made = Sites(tmp_path, monkeypatch)
    for site in TESTS:
        made.owner(site, figures="masked", require=["secure_aggregation"])
    yield made
    made.close()


def fails_on_nothing(probabilities: Tensor) -> Tensor:
    """Places of a build that supposes that probabilities are numbers."""
    if bool(probabilities.isnan().any()):
        raise ValueError("not finite")
    return levels.place(probabilities)


def test_a_model_that_overflows_makes_no_sums_fail(
    sites: Sites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, engine = sites.join(program(tmp_path, "ordinal", secure=MASKED), "huge1")
    huge = vector_of(federation) * 1e38
    sets = sites.measured(federation, engine, huge).summary["sets"]
    assert "missing" not in sets
    assert sets["images"] + sets["tested"] == sum(TESTS.values())
    monkeypatch.setattr(grades, "place", fails_on_nothing)
    of = program(tmp_path, "ordinal", secure=MASKED, seed=2)
    federation, engine = sites.join(of, "huge2")
    assert sites.measured(federation, engine, huge).summary["sets"]["reason"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_number_is_counted_whatever_the_task(tmp_path: Path, kind: str) -> None:
    for name in ("all", *TESTS):
        (tmp_path / name).mkdir()
    of = program(tmp_path, kind)
    assert of.task.covering is not None
    known = final(of, torch.zeros(1), tmp_path)
    nan = torch.full_like(vector_of(known.federation), float("nan"))
    sets = controlled(replace(known, vector=nan), of.task.covering, True).summary["sets"]
    assert sets["images"] > 0
    if kind != "ordinal":  # of grades one is always in
        assert sets.get("reason") or sets["coverage"] == 1.0


def at_site(root: Path, people: int) -> Federation:
    """The test images of one site, of so many people."""
    whole = final(program(root, "faces"), torch.zeros(1), root).federation
    owned = np.flatnonzero(np.array(whole.dataset.test.sites) == "north")
    return replace(whole, views=(View(1, owned[: people * OF_A_PERSON]),))


@pytest.mark.parametrize("people", range(9, 25))
def test_nobody_is_left_over(tmp_path: Path, people: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all", *TESTS):
        (tmp_path / name).mkdir()
    federation = at_site(tmp_path, people)
    assert left_over(federation, everybody=True) == 0
    assert left_over(federation, everybody=False) == people % 2, "the attack finds one"


def left_over(federation: Federation, everybody: bool) -> int:
    """How many people are in no sum over the parts of a site's images: each has a vector of its
    own, and is the only one whose likeness to another is none but 0."""
    fitted, cover, tested = divided(federation)
    parts = (torch.cat([fitted.labels(), cover.labels()]), tested.labels())
    found = 0
    for part, shows in zip(parts, (False, True), strict=True):
        for person in part.unique().tolist():
            vectors = torch.zeros(len(part), 2)
            vectors[:, 0] = 1
            vectors[part == person] = torch.tensor([0.0, 1.0])
            losses = paired(vectors, part, shows and everybody).losses[0]
            found += int(losses[-1]) == int(losses[1])  # nobody is unlike another
    return found


def test_faces_are_divided_in_another_way_than_by_other_tasks(tmp_path: Path) -> None:
    """Of people with one image each the halves would differ in one who makes their number even."""
    for name in ("all", *TESTS):
        (tmp_path / name).mkdir()
    federation = at_site(tmp_path, 24)
    labels = np.arange(len(federation.dataset.test))
    test = replace(federation.dataset.test, labels=labels)
    federation = replace(federation, dataset=replace(federation.dataset, test=test))
    other = replace(
        federation, program=replace(federation.program, task=program(tmp_path, "ordinal").task)
    )

    def tested(of: Federation) -> set[int]:
        return {at for data in parts_of_test(of, False).tested for at in data.indices.tolist()}

    assert len(tested(federation) ^ tested(other)) > 8
