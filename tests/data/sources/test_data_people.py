"""Sources of people: whole people are held out, names are forgotten, nameless images are named."""

from __future__ import annotations

import json
from pathlib import Path

import face_images
import numpy as np
import pytest
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.fetch.cache import RECEIPT
from fedsight.data.fetch.packages import find
from fedsight.data.sources.orl_faces import OrlFaces
from fedsight.data.sources.people import People


def test_people_are_held_out_whole_and_lose_their_names(tmp_path: Path) -> None:
    face_images.draw(tmp_path)
    found = People(path=tmp_path, size=16, sites_in_path=True, unseen=0.5).open()
    assert not set(found.train.labels) & set(found.test.labels)
    assert len(found.classes) == 8  # the same name at two sites is two people
    assert found.classes[0] == "person 0001"
    assert np.bincount(found.train.labels).tolist() == [4] * 4
    assert set(found.test.sites or ()) == {"clinic-0", "clinic-1"}


def test_parts_as_marked(tmp_path: Path) -> None:
    for part in ("train", "test"):
        face_images.draw(tmp_path / part, sites=1)
    with pytest.raises(DataError, match="shows a person of another part"):
        People(path=tmp_path, size=16, sites_in_path=True).open()
    (tmp_path / "test" / "clinic-0").rename(tmp_path / "test" / "clinic-9")
    with pytest.raises(DataError, match="held out but have a copy in an earlier part: 16"):
        People(path=tmp_path, size=16, sites_in_path=True).open()
    found = People(path=tmp_path, size=16, sites_in_path=True, duplicates="report").open()
    assert (len(found.train), len(found.test)) == (16, 16)


def test_a_csv_and_its_nameless_line(tmp_path: Path) -> None:
    face_images.draw(tmp_path, sites=1)
    lines = ["path,person,site,split"]
    for name in face_images.NAMES[:4]:
        part = "train" if name in face_images.NAMES[:2] else "test"
        lines += [f"clinic-0/{name}/{k}.png,{name},a,{part}" for k in range(4)]
    lines[3] = lines[3].replace(f",{face_images.NAMES[0]},", ",,")
    table = tmp_path / "people.csv"
    table.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"people.csv, line 4.*names no person"):
        People(path=table, size=16).open()
    found = People(path=table, size=16, nameless="skip").open()
    assert (len(found.train), len(found.test), len(found.skipped)) == (7, 8, 1)
    assert found.skipped == ("line 4",)
    assert found.train.images.name(0) == "line 2"
    assert found.test.images.name(7) == "line 17"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,person\n", "line 1"),
        ("path,person\nx.png,Ada\n", "line 2"),
        ("path,person\nx.png\n", "fewer"),
        ("path,person,split\n{image},Ada,maybe\n", "split"),
        ("path,person,site\n{image},Ada,\n", "site"),
        ("path,person\n", "no images"),
    ],
)
def test_a_broken_csv_names_its_line(tmp_path: Path, text: str, said: str) -> None:
    face_images.picture(0, 0).save(tmp_path / "a.png")
    table = tmp_path / "people.csv"
    table.write_text(text.format(image="a.png"))
    with pytest.raises(DataError, match=said):
        People(path=table, size=16).open()


def test_an_image_in_no_persons_folder_is_nameless(tmp_path: Path) -> None:
    face_images.draw(tmp_path)
    loose = tmp_path / "clinic-0" / "loose.png"
    face_images.picture(0, 0).save(loose)
    with pytest.raises(DataError, match=r"loose\.png"):
        People(path=tmp_path, size=16, sites_in_path=True).open()
    found = People(path=tmp_path, size=16, sites_in_path=True, nameless="skip").open()
    assert found.skipped == ("file 1",)
    (tmp_path / "clinic-1" / face_images.NAMES[0] / "0.png").write_bytes(b"no image")
    skip = {"size": 16, "sites_in_path": True, "nameless": "skip", "corrupt": "skip"}
    assert People(path=tmp_path, **skip).open().skipped == ("file 1", "file 18")
    named = People(path=tmp_path, names="path", **skip).open()
    assert named.skipped == (
        str(loose),
        str(tmp_path / "clinic-1" / face_images.NAMES[0] / "0.png"),
    )


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_are_called_by_number_and_named_on_the_owners_screen(
    tmp_path: Path, in_memory: bool
) -> None:
    face_images.draw(tmp_path)
    source = People(path=tmp_path, size=16, sites_in_path=True, in_memory=in_memory)
    found = source.open()
    names = [part.images.name(k) for part in (found.train, found.test) for k in range(len(part))]
    assert sorted(names) == sorted(f"file {number}" for number in range(1, 33))
    broken = tmp_path / "clinic-0" / face_images.NAMES[2] / "0.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=str(broken)):
        source.open()


@pytest.mark.parametrize(
    ("people", "unseen", "held"),
    [
        *((1, 0.2, 0), (2, 0.2, 0), (3, 0.2, 0), (4, 0.2, 2), (6, 0.2, 2)),
        *((6, 0.05, 0), (6, 0.5, 3), (2, 0.5, 0), (3, 0.5, 2)),
    ],
)
def test_nobody_is_held_out_alone(tmp_path: Path, people: int, unseen: float, held: int) -> None:
    face_images.draw(tmp_path, sites=3, each=people, pictures=1)
    found = People(path=tmp_path, size=16, sites_in_path=True, unseen=unseen).open()
    assert len(found.test) == 3 * held
    assert len(found.train) == 3 * (people - held)


def test_sites_agree_on_the_room(tmp_path: Path) -> None:
    face_images.draw(tmp_path)
    rooms = [
        People(path=tmp_path / site, size=16, room=50).open().classes
        for site in ("clinic-0", "clinic-1")
    ]
    assert rooms[0] == rooms[1]
    with pytest.raises(DataError, match=r"data\.room"):
        People(path=tmp_path, size=16, sites_in_path=True, room=3).open()


@pytest.fixture
def orl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files where the ORL faces lie, with grey values that say who is on them."""
    monkeypatch.setenv("FEDSIGHT_CACHE", str(tmp_path))
    folder, files = tmp_path / "orl-faces", {}
    for person in range(1, 41):
        (folder / f"s{person}").mkdir(parents=True)
        for number in range(1, 11):
            path = folder / f"s{person}" / f"{number}.pgm"
            Image.new("L", (4, 4), person * 5).save(path)
            files[f"s{person}/{number}.pgm"] = path.stat().st_size
    receipt = {"sha256": find("orl-faces").sha256, "files": files}
    (folder / RECEIPT).write_text(json.dumps(receipt))
    return folder


def test_orl_deals_thirty_people_to_ten_sites_and_hides_ten(orl: Path) -> None:
    found = OrlFaces(size=4).open()
    assert (len(found.train), len(found.test), len(found.classes)) == (300, 100, 40)
    assert found.test.sites is None
    for site in set(found.train.sites or ()):
        own = found.train.labels[np.array(found.train.sites) == site]
        assert len(set(own)) == 3
    assert not set(found.train.labels) & set(found.test.labels)


def test_another_seed_hides_other_people_and_the_same_seed_the_same(orl: Path) -> None:
    def hidden(seed: int) -> set[float]:
        test = OrlFaces(size=4, people_seed=seed).open().test
        return {float(test.images.read(np.array([k]))[0, 0, 0, 0]) for k in range(0, 100, 10)}  # type: ignore[arg-type]

    assert hidden(1) == hidden(1)
    assert hidden(1) != hidden(2)


def test_one_person_a_site_and_too_many_sites(orl: Path) -> None:
    found = OrlFaces(size=4, sites=30).open()
    assert len(set(found.train.sites or ())) == 30
    crowded = OrlFaces(size=4, sites=31)
    assert [problem.where for problem in crowded.check()] == ["data.sites"]
    with pytest.raises(DataError, match="31 sites"):
        crowded.open()
