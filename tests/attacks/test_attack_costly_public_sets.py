"""A public set that a program names, and that is as large as the program likes.

A site opens the public images of a program itself, because they are built in. But a setting of such
a set says how many scenes are composed, or that all images are kept in memory at any size: a site
composed 200 million scenes if a proposal said so, whatever its own images are and whether or not
anything looks at them. Ours opens a built-in set as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, draw, noise_images, program

from fedsight.data.sources.scenes import Scenes
from fedsight.program import public
from fedsight.program.config import parse
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
MANY = {"name": "scenes", "sites": 2, "train": 20, "test": 5, "size": 32}
PUBLIC = {"images": 5}


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of each scene that is composed."""
    found: list[int] = []
    scene = Scenes._scene

    def counted(self: Scenes, material: Any, site: int, part: int, number: int) -> Any:
        found.append(number)
        return scene(self, material, site, part, number)

    monkeypatch.setattr(Scenes, "_scene", counted)
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw(tmp_path / "images", noise_images(6))


def beside(images: Path) -> Program:
    """The set is one of its own."""
    return program(images, public={**PUBLIC, "source": MANY})


def in_place(images: Path) -> Program:
    """The set is what the program calls the data, though the sites have images of their own."""
    split = {"name": "iid", "sites": 2}
    return parse({"data": MANY, "public": PUBLIC, "split": split}, images)[0]


SETS = pytest.mark.parametrize(
    ("of", "where"), [(beside, "public.source.sites"), (in_place, "data.sites")]
)


@SETS
def test_a_site_composes_as_many_scenes_as_a_program_says(
    attack: Attack,
    images: Path,
    of: Callable[[Path], Program],
    where: str,
    composed: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(public, "elsewhere", lambda *given, **named: [])
    attack("weak", images).join(of(images))
    assert len(composed) == 2 * (20 + 5)


@SETS
def test_ours_composes_none(
    attack: Attack, images: Path, of: Callable[[Path], Program], where: str, composed: list[int]
) -> None:
    answer = attack("ours", images).join(of(images))
    assert answer["error"].startswith(f"{where}: the sites of a federation open a built-in set as")
    assert composed == []


def test_what_a_program_may_say_is_how_the_images_are_prepared(
    attack: Attack, images: Path
) -> None:
    source = {"name": "fashion-mnist-12k", "size": 8, "mean": [0.5], "harmonise": "image"}
    sections = {"public": {**PUBLIC, "source": source}, "algorithm": {"name": "feddf"}}
    assert "declared" in attack("honest", images).join(program(images, **sections))
