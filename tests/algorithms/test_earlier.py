"""Sites that join a finished run or leave it: the head is that of a run over the others."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import federations
import pytest
import torch
from torch import Tensor

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import ModelError, SiteError
from fedsight.data.partition import Groups
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

FORMS: dict[str, dict[str, Any]] = {
    "ridge": {"name": "ridge", "high": 4.0, "held_out": 0.2},
    "ncm": {"name": "ncm", "high": 4.0},
}


def opened(sites: tuple[int, ...], algorithm: dict[str, Any], **sections: Any) -> Federation:
    """Of four sites, these."""
    split = {"name": "dirichlet", "alpha": 0.3, "sites": 4}
    of = federations.federation(rounds={"rounds": 1}, algorithm=algorithm, split=split, **sections)
    whole = of.partition
    groups = [whole.indices(site) for site in sites]
    return replace(of, partition=Groups(groups, [whole.name(site) for site in sites])).viewed()


def finished(folder: Path, of: Federation) -> tuple[dict[str, str], Tensor]:
    """A run over the sites: the settings that name its sums, and its model."""
    store, trained = RunStore(folder), federations.learn(of)
    folder.mkdir()
    store.write_program(of.program, Speed())
    store.save_checkpoint(trained.checkpoint)
    data = of.dataset
    facts = {"preprocess": asdict(data.preprocess), "classes": list(data.classes)}
    store.write_json("run.json", facts)
    path = folder / "checkpoint.safetensors"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"earlier": str(path), "earlier_sha256": sha256}, trained.vector


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_site_leaves_as_if_it_had_never_been_there_and_joins_as_if_always(
    form: dict[str, Any], tmp_path: Path
) -> None:
    (all_four, whole), (others, without) = (
        finished(tmp_path / name, opened(sites, form))
        for name, sites in (("whole", (0, 1, 2, 3)), ("without", (0, 2, 3)))
    )
    assert not torch.equal(whole, without)
    left, after = finished(tmp_path / "left", opened((1,), {**form, **all_four, "change": "leave"}))
    assert torch.equal(after, without)
    _, joined = finished(tmp_path / "joined", opened((1,), {**form, **others}))
    assert torch.equal(joined, whole)
    _, again = finished(tmp_path / "again", opened((1,), {**form, **left}))
    assert torch.equal(again, whole)
    with pytest.raises(SiteError, match="not all images of this run are in the sums"):
        federations.learn(opened((0, 1, 2, 3), {**form, **others, "change": "leave"}))
    masked = opened((1, 2, 3), {**form, **others}, secure={"name": "secagg"})
    assert not torch.equal(federations.learn(masked).vector, whole)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    form = FORMS["ncm"]
    known, _ = finished(tmp_path / "first", opened((0, 1, 3), form, secure={"name": "secagg"}))

    def refused(algorithm: dict[str, Any], **sections: Any) -> list[str]:
        given = {"rounds": {"rounds": 1}, "secure": {"name": "secagg"}, **sections}
        of = federations.program(algorithm={**form, **known, **algorithm}, **given)
        return [problem.where for problem in of.check()]

    assert refused({}) == []
    assert refused({"high": 5.0}) == ["algorithm.high"]
    assert refused({}, model={"width": 8}) == ["model.width"]
    assert refused({}, seed=1) == ["seed"]
    assert refused({}, secure={"name": "none"}) == ["secure.name"]
    assert refused({"clip": 1.0}) == ["algorithm.earlier"]
    assert refused({"earlier_sha256": None}) == ["algorithm.earlier_sha256"]
    assert refused({"earlier": str(tmp_path)})[0] == "algorithm.earlier"
    assert refused({"earlier": None}) == ["algorithm.earlier"]
    assert refused({"change": "leave"}) == ["algorithm.change"]
    other = opened((0,), {**form, **known, "earlier_sha256": "0" * 64})
    with pytest.raises(ModelError, match="SHA-256"):
        federations.learn(other)
    narrow = opened((0,), {**form, **known}, model={"width": 8})
    with pytest.raises(SiteError, match="not of the same parts and sizes"):
        federations.learn(narrow)


def test_images_that_are_prepared_in_another_way_do_not_join(tmp_path: Path) -> None:
    form = FORMS["ncm"]
    known, _ = finished(tmp_path / "first", opened((0, 1, 3), form))
    program = opened((2,), {**form, **known}).program
    dataset = program.data.open()
    assert program.algorithm.check_data(dataset) == []
    darker = replace(dataset, preprocess=replace(dataset.preprocess, mean=(0.4,)))
    (problem,) = program.algorithm.check_data(darker)
    assert "another mean: [0.286], not [0.4]" in problem.cause
    turned = replace(dataset, classes=dataset.classes[::-1])
    (problem,) = program.algorithm.check_data(turned)
    assert problem.where == "data.classes"


def test_masked_sums_are_over_three_sites_at_least() -> None:
    """So a sum that others are added to differs from the new one by three sites or more. None is
    taken away where sums were masked: it is what stays that may be of one site."""
    secure, split = {"name": "secagg"}, {"sites": 2}
    problems = federations.program(secure=secure, split=split, rounds={"rounds": 1}).check()
    assert [problem.where for problem in problems] == ["secure"]
