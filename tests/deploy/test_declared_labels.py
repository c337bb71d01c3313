"""A deployed site's owner says what its classes are called, and which of them it labels."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import site_services

from fedsight.core.errors import ConfigError, DataError, DeployError
from fedsight.data.base import Preprocess
from fedsight.deploy.declaration import (
    Declaration,
    declare,
    disagreeing_sites,
    gather,
    open_site,
    read_declaration,
)
from fedsight.deploy.site.opening import open_images
from fedsight.deploy.site.owner import OwnerSettings, parse_owner

SIZE = Preprocess(1, 8, 8, "stretch", (0.5,), (0.25,))
SOUND = Declaration((6, 4, 4), 5, False, site_services.CLASSES, SIZE)


def owner(contract: dict[str, Any] | None = None, **data: Any) -> OwnerSettings:
    return parse_owner({"data": {"name": "folder", **data}, "contract": contract or {}}, Path("/"))


@pytest.fixture
def renamed(site_images: Path, tmp_path: Path) -> Path:
    """The west's images in folders with names of its own, and one class that nobody knows."""
    shutil.copytree(site_images / "west", tmp_path / "west")
    for part in (tmp_path / "west").iterdir():
        (part / "ant").rename(part / "Formica")
        shutil.copytree(part / "bee", part / "wasp")
    return tmp_path / "west"


def test_the_owner_maps_the_site_s_names_onto_the_program_s_classes(
    site_images: Path, renamed: Path
) -> None:
    program = site_services.program(site_images)
    data = {"path": str(renamed), "duplicates": "keep", "class_map": {"Formica": "ant"}}
    with pytest.raises(DataError, match=r"'wasp' is not in data\.classes"):
        open_site(program, owner(**data), "west")
    own = owner(**data, unknown_class="cat")
    federation, number = open_site(program, own, "west")
    found = declare(federation, number, own.share)
    assert found.classes == site_services.CLASSES
    assert found.labels[0] == 5
    assert found.labels[2] > 0
    assert "Formica" not in json.dumps(found.table())


def test_a_site_starts_with_its_map_before_any_program_names_the_classes(renamed: Path) -> None:
    mapped = {"Formica": "ant", "wasp": "bee"}
    data = {"path": str(renamed), "duplicates": "keep", "class_map": mapped}
    with pytest.raises(DataError, match="nobody called a merge") as caught:
        open_images(owner(**data))
    assert "data.merged" in caught.value.cure
    assert open_images(owner(**data, merged=["bee"]))["classes"] == ["ant", "bee"]


def test_a_map_onto_a_class_that_the_program_does_not_have_is_refused(
    site_images: Path, renamed: Path
) -> None:
    mapped = {"Formica": "ants", "wasp": "cat"}
    own = owner(path=str(renamed), duplicates="keep", class_map=mapped)
    with pytest.raises(DataError, match=r"data\.class_map: 'Formica' is read as 'ants'") as caught:
        open_site(site_services.program(site_images), own, "west")
    assert "ant" in caught.value.cure


def test_what_a_site_does_not_label_is_declared_and_known_at_the_coordinator(
    site_images: Path,
) -> None:
    program = site_services.program(site_images)
    own = owner(path=str(site_images / "west"), labelled=["ant", "bee"])
    federation, number = open_site(program, own, "west")
    assert federation.hidden is not None
    assert federation.hidden[0].tolist() == [False, False, True]
    found = declare(federation, number, own.share)
    assert found.unlabelled == (2,)
    assert read_declaration(json.loads(json.dumps(found.table())), "west") == found
    assert disagreeing_sites({"east": SOUND, "west": found}, {}) == {}
    gathered = gather(program, {"east": SOUND, "west": found})
    assert gathered.hidden is not None
    assert gathered.hidden.tolist() == [[False] * 3, [False, False, True], [False] * 3]


def test_a_class_that_no_site_labels_is_refused_before_training(site_images: Path) -> None:
    none = replace(SOUND, labels=(6, 8, 0), unlabelled=(2,))
    with pytest.raises(ConfigError, match="no site labels the class 'cat'"):
        gather(site_services.program(site_images), {"east": none, "west": none})


def test_labels_that_the_owner_says_there_are_not_are_refused(site_images: Path) -> None:
    own = owner(path=str(site_images / "west"), labelled=["ant"])
    with pytest.raises(DataError, match="does not label 'bee'") as caught:
        open_site(site_services.program(site_images), own, "west")
    assert "data.labelled" in caught.value.cause


def test_a_task_that_cannot_leave_classes_out_is_refused_at_the_site(site_images: Path) -> None:
    program = site_services.program(site_images, task={"name": "ordinal"})
    own = owner(path=str(site_images / "west"), labelled=["ant", "bee"])
    with pytest.raises(DataError, match="cannot leave out the classes that a site does not label"):
        open_site(program, own, "west")


@pytest.mark.parametrize("hidden", [[3], [-1], [0, 0], [True], ["cat"], "cat", None])
def test_an_implausible_declaration_of_unlabelled_classes_is_refused(hidden: Any) -> None:
    with pytest.raises(DeployError, match="sent an invalid data declaration"):
        read_declaration({**SOUND.table(), "unlabelled": hidden}, "a")
