"""Images that change in a run are noticed at their site, though their numbers stay the same."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attacked_site
import federations
import pytest
import site_services
from attacked_site import AttackedSite, draw, noise_images
from PIL import Image
from site_services import FaultyLink, Places

from fedsight.core.package import Package, installed
from fedsight.data.contents import stamp
from fedsight.deploy.server.joining import propose
from fedsight.deploy.site import memories, trainer_process
from fedsight.deploy.site.memories import contents_of_run
from fedsight.deploy.site.trainer import ChangedImagesError
from fedsight.program.program import Program

CHANGED = "the site's images or labels have changed since it joined this run"


@pytest.fixture
def south(places: Places, site_images: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the images of south, which tests may change; they are read in each round."""
    own = tmp_path / "south"
    shutil.copytree(site_images / "south", own)
    before = (places.root / "south" / "owner.toml").read_text()
    data = {"name": "folder", "path": str(own), "in_memory": False}
    places.write_owner("south", {"data": data})
    yield own
    (places.root / "south" / "owner.toml").write_text(before)


def repaint(image: Path) -> None:
    with Image.open(image) as found:
        pixels = found.point([255 - value for value in range(256)])
    pixels.save(image)


def of(images: Path) -> Program:
    return site_services.program(images, rounds={"quorum": 2})


@pytest.mark.parametrize("kind", ["pixels", "label"])
def test_a_run_does_not_go_on_with_other_images_in_its_next_job(
    places: Places, site_images: Path, south: Path, kind: str
) -> None:
    program, run = of(site_images), f"changed{kind}"
    assert propose(program, run, places.sit(), {}).absent == {}
    assert propose(program, run, places.sit(), {}).absent == {}, "nothing has changed"
    if kind == "pixels":
        repaint(south / "train" / "ant" / "0.png")
    else:  # each of two classes gets an image of the other: the counts stay
        bee, cat = (south / "train" / name / "0.png" for name in ("bee", "cat"))
        content = bee.read_bytes(), cat.read_bytes()
        bee.write_bytes(content[1])
        cat.write_bytes(content[0])
    found, absent, refused, _ = propose(program, run, places.sit(), {})
    assert set(found) == {"north", "west"}
    assert absent == {"south": f"site 'south': {CHANGED}"}
    assert refused == {}  # its owner may restore them
    assert propose(program, f"{run}other", places.sit(), {}).absent == {}, "another run may"


def test_images_that_an_upgrade_reads_otherwise_are_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents_of_run(tmp_path, {"training images": "a"})
    with pytest.raises(ChangedImagesError) as caught:
        contents_of_run(tmp_path, {"training images": "b"})
    assert caught.value.cause == CHANGED
    upgraded = Package("9.9", "f" * 64)
    before = str(installed())
    monkeypatch.setattr(memories.package, "installed", lambda: upgraded)
    contents_of_run(tmp_path, {"training images": "a"})  # it reads them as before
    with pytest.raises(ChangedImagesError) as caught:
        contents_of_run(tmp_path, {"training images": "b"})
    assert f"read by FedSight {upgraded} instead of {before}" in caught.value.cause
    assert "pillow" not in caught.value.cause
    contents_of_run(tmp_path, {"training images": "a"})


def test_files_that_change_between_rounds_are_not_trained_on(
    places: Places, site_images: Path, south: Path
) -> None:
    def alter(kind: str, header: Mapping[str, Any], text: str, data: bytes) -> tuple[str, bytes]:
        if kind == "measure" and header["round"] == 1:
            for image in (south / "train").rglob("*.png"):  # a backup that touches all files
                os.utime(image, (1, 1))
        if kind == "measure" and header["round"] == 2:
            repaint(south / "train" / "ant" / "0.png")
        return text, data

    diary = federations.Diary()
    program = site_services.program(site_images, rounds={"quorum": 2, "rounds": 3})
    federation, link = places.meet(program)
    site_services.learn(federation, FaultyLink(link, "south", alter), diary)
    rejected = [line["rejected"] for line in diary.lines]
    assert rejected == [{}, {}, {"south": f"site 'south': {CHANGED}"}]
    assert "south" in diary.lines[2]["not_measured"]


def test_each_round_looks_at_the_files_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacked_site.install(monkeypatch)  # its trainer is in this process
    looks: list[str] = []
    monkeypatch.setattr(trainer_process, "stamp", lambda of: looks.append(stamp(of)) or looks[-1])
    images = draw(tmp_path / "images", noise_images(4))
    data = {"name": "folder", "path": str(images), "in_memory": False}
    of = attacked_site.program(images)
    model = attacked_site.known(of).initial
    with contextlib.closing(AttackedSite(tmp_path / "ward", data, test_images=1)) as site:
        assert "declared" in site.join(of)
        seen = [len(looks)]
        for round in (1, 2):
            assert "error" not in site.train(model, round=round)[0]
            seen.append(len(looks))
            assert "metrics" in site.measure(model, round=round, accepted=round), (
                "and looks no more"
            )
            seen.append(len(looks))
    assert seen == [1, 2, 2, 3, 3]
    assert len({*looks}) == 1
