"""The public set: which images it has, what of it is checked, and where it may come from."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import federations
import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image

from fedsight.core.errors import ConfigError, DataError, Problem
from fedsight.core.settings import without_none
from fedsight.data.contents import contents
from fedsight.data.public import misfit
from fedsight.program import config, public
from fedsight.program.federation import federate
from fedsight.program.program import Program, Speed

FEDMD: dict[str, Any] = {"algorithm": {"name": "fedmd"}}
SAMPLE = {"name": "fashion-mnist-12k", "size": 14}


def program(given: dict[str, Any], **sections: Any) -> Program:
    return federations.program(**{**FEDMD, "public": given, **sections})


def refused(given: dict[str, Any], **sections: Any) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        federate(program(given, **sections))
    return caught.value.problems


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of 14 x 14 pixels, in two folders."""
    draws = np.random.default_rng(0)
    for number in range(6):
        place = tmp_path / "pictures" / "train" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (14, 14), np.uint8)).save(place / f"{number}.png")
    place = tmp_path / "pictures" / "test" / "a"
    place.mkdir(parents=True)
    Image.new("L", (14, 14)).save(place / "t.png")
    return tmp_path / "pictures"


def test_images_of_a_folder_are_public_and_the_sites_keep_all_of_theirs(folder: Path) -> None:
    source = {"name": "folder", "path": str(folder), "size": 14, "channels": 1}
    of = federate(program({"source": {**source, "classes": ["a", "b"]}}))
    assert len(of.public) == 6
    assert sum(of.size(site) for site in range(of.population)) == 120
    with Image.open(folder / "train" / "a" / "0.png") as shown:
        first = torch.from_numpy(np.array(shown))
    seen = of.public.pixels(torch.tensor([0]))[0, 0]
    assert torch.equal((seen * 255).round().to(torch.uint8), first)
    some = federate(program({"images": 4, "source": source}))
    assert len(some.public) == 4
    assert some.initial.numel() - of.initial.numel() == (4 - 6) * 10


def test_which_images_are_public_follows_from_its_own_seed_alone() -> None:
    def drawn(of: Program) -> list[int]:
        return of.public.drawn(federate(of).dataset.train).tolist()

    one = program({"images": 20})
    assert drawn(one) == drawn(program({"images": 20}, seed=5))
    assert drawn(one) != drawn(program({"images": 20, "seed": 1}))
    prints = {program(given).fingerprint for given in ({"images": 20}, {"images": 21}, {})}
    assert len(prints) == 3


def test_it_is_written_as_it_is_read_and_its_place_has_no_meaning(tmp_path: Path) -> None:
    source = {"name": "folder", "path": "pictures", "channels": 1}
    given: dict[str, Any] = {"data": SAMPLE, **FEDMD, "public": {"source": source}}
    here, there = (config.parse(given, tmp_path / one)[0] for one in "ab")
    assert here.public.source.path == tmp_path / "a" / "pictures"
    assert here.fingerprint == there.fingerprint
    again = tomllib.loads(tomli_w.dumps(without_none(here.table())))
    assert config.parse(again, tmp_path)[0] == here
    other = {**given, "public": {"source": {**source, "channels": 3}}}
    assert config.parse(other, tmp_path)[0].fingerprint != here.fingerprint


def test_its_images_are_hashed_and_its_labels_are_not() -> None:
    one = federate(program({"images": 20, "source": SAMPLE}))
    found = contents(one.dataset).hashes
    assert "public images" in found
    assert "public labels" not in found
    other = federate(program({"images": 20, "seed": 1, "source": SAMPLE}))
    assert contents(other.dataset).hashes["public images"] != found["public images"]


@pytest.mark.parametrize(
    ("given", "where", "words"),
    [
        ({"images": 121}, "public.images", "only 120 images"),
        ({"images": 9, "source": {"name": "fashion-mnist-12k"}}, "public.source", "1 x 28 x 28"),
        ({"images": 9, "source": {**SAMPLE, "channels": 3}}, "public.source", "3 x 14 x 14"),
    ],
)
def test_a_set_that_does_not_fit_is_refused_before_training(
    given: dict[str, Any], where: str, words: str
) -> None:
    (found,) = refused(given)
    assert found.where == where
    assert words in found.cause
    assert found.cure


def test_texts_are_not_public_images() -> None:
    own = federate(program({"images": 9})).dataset
    found = misfit(replace(own, preprocess=replace(own.preprocess, modality="text")), own)
    assert found is not None
    assert "texts" in found.cause


def test_images_of_the_sites_are_not_public_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it can be seen: both are in memory."""
    same = federations.Tiny(train=130)
    monkeypatch.setattr("fedsight.data.sources.samples.FashionMnist12k.open", lambda _: same.open())
    (found,) = refused({"source": {"name": "fashion-mnist-12k"}})
    assert found.where == "public.source"
    assert "120 of the public images are also training images" in found.cause


def test_a_site_keeps_some_of_its_images() -> None:
    with pytest.raises(DataError, match=r"all images of site '.*' are drawn for the public"):
        federate(program({"images": 119}))


@pytest.mark.parametrize(
    ("given", "where", "words"),
    [
        ({"images": 0}, "public.images", "0 does not fit"),
        ({"source": {"name": "foldr"}}, "public.source", "foldr"),
        ({"source": {"name": "folder", "path": "x", "sise": 3}}, "public.source.sise", "no such"),
        ({"source": {"path": "x"}}, "public.source", "neither the name"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(
    given: dict[str, Any], where: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        program(given)
    (found,) = caught.value.problems
    assert found.where == where
    assert words in found.cause
    assert found.cure


def test_a_folder_that_is_not_there_and_sites_that_share_images() -> None:
    (found,) = program({"source": {"name": "folder", "path": "/no/such"}}).check()
    assert found.where == "public.source.path"
    shares = {"name": "virtual", "sites": 5, "samples": 10}
    (found,) = program({"images": 9}, split=shares).check()
    assert found.where == "public"
    assert program({"images": 9, "source": SAMPLE}, split=shares).check() == []


def test_sites_on_other_machines_have_built_in_images_only(folder: Path) -> None:
    source = {"name": "folder", "path": str(folder), "size": 14, "channels": 1}
    for own in ({"source": source}, {"images": 9}):  # the second: of some site
        with pytest.raises(ConfigError, match="built-in"):
            config.check_elsewhere(program(own), Speed())
    built_in = program({"images": 9, "source": SAMPLE})
    config.check_elsewhere(built_in, Speed())
    dataset = federate(program({"images": 9})).dataset
    assert len(public.shared(built_in, dataset).public) == 9


def test_the_example_has_three_networks_at_three_sites_each() -> None:
    of = federate(config.example("distillation")[0])
    networks = [of.member(site).model.registered for site in range(of.population)]
    assert networks == ["small_cnn"] * 3 + ["fedavg_cnn"] * 3 + ["mlp"] * 3
    assert len(of.public) == 2000
    assert of.program.check() == []
