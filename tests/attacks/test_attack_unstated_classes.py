"""A coordinator leaves one setting out, and a site lists the names that its labels have.

`data.classes` states which classes there are. Without it a site reads them from its labels, and its
declaration lists them: in the owner's words, for free, though the contract counts epsilon and the
site announces nothing. A single image whose label no other has shows there. Nor does the noise of
an update hide it: the classes after it get other numbers, for all other images, and the network one
output more. Likewise how many people there are, where nothing says for how many there is room.

A heartbeat had the same names whatever the program stated, at a site that hides single images and
whose owner had said nothing of what is announced.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from attacked_site import SIDE, AttackedSite, draw, noise_images
from PIL import Image

from fedsight.deploy.site import opening, vocabulary
from fedsight.governance.contract import Contract
from fedsight.governance.ledger import Ledger
from fedsight.program.config import parse
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
LONE = "aardvark"  # before all others in the alphabet
EXAMPLE = {"name": "example", "noise_multiplier": 2.0}
SAID: dict[str, Any] = {"epsilon": 3.0, "counts": True, "announce": True}
# What an owner may have asked for, and the clause that the program is refused for.
CONTRACTS: list[tuple[dict[str, Any], str]] = [
    ({"epsilon": 3.0}, "epsilon"),
    (SAID, "epsilon"),
    ({"require": ["example_dp"], "min_noise_multiplier": 1.0}, "require"),
    ({"figures": "noised"}, "figures"),
    ({"counts": False}, "counts"),
    ({"announce": False}, "announce"),
]


def program(images: Path, **data: Any) -> Program:
    """A program for these images that names no classes, unless `data` does."""
    told = {"name": "folder", "path": str(images), "size": SIDE, "channels": 1}
    sections: dict[str, Any] = {
        "data": {**told, "mean": [0.0], "std": [0.25], **data},
        "split": {"name": "iid", "sites": 2},
        "model": {"name": "mlp"},
        "rounds": {"rounds": 3, "weighting": "uniform"},
        "privacy": EXAMPLE,
    }
    return parse(sections, base=images)[0]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """The same images twice; the second time with one more, whose label no other has."""
    made = [draw(tmp_path / name, noise_images(24), noise_images(12, 1)) for name in ("one", "two")]
    place = made[1] / "train" / LONE
    place.mkdir()
    Image.fromarray(noise_images(1, 2)[0]).save(place / "0.png")
    return made


def answers(attack: Attack, folders: list[Path], **contract: Any) -> list[dict[str, Any]]:
    of = program(folders[0])
    return [attack(f"at-{one.name}", one, **contract).join(of) for one in folders]


def test_one_image_shows_in_what_a_site_declares(
    attack: Attack, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "_clause", lambda contract: "")
    sites = [attack(f"at-{one.name}", one, epsilon=3.0) for one in folders]
    without, beside = (site.join(program(folders[0]))["declared"] for site in sites)
    assert without["classes"] == ["ant", "bee"]
    assert beside["classes"] == [LONE, "ant", "bee"]  # of which all have other numbers now
    assert Ledger(sites[1].home).spent("images", 1e-5) == 0


@pytest.mark.parametrize(("contract", "clause"), CONTRACTS)
def test_ours_take_no_part_until_somebody_has_stated_the_classes(
    attack: Attack, folders: list[Path], contract: dict[str, Any], clause: str
) -> None:
    without, beside = answers(attack, folders, **contract)
    assert without == beside
    assert beside["error"].startswith(f"contract.{clause}: the program does not set data.classes")
    assert LONE not in str(beside)


def announced(images: Path, **contract: Any) -> Any:
    """What a heartbeat tells of the site's data."""
    home = images.with_name(f"home-{images.name}")
    home.mkdir()
    data = {"name": "folder", "path": str(images), "size": SIDE}
    (home / "site.toml").write_text(tomli_w.dumps({"data": data, "contract": contract}))
    assert opening.opened(home, "lyon", home / "site.toml", None, {}).error is None
    return json.loads((home / "declared.json").read_text())


HIDING = [one for one, _ in CONTRACTS if Contract(**one).hides_images and one != SAID]


@pytest.mark.parametrize("contract", [*HIDING, {"announce": False}])
def test_nor_does_a_heartbeat_tell_their_names(
    folders: list[Path], contract: dict[str, Any]
) -> None:
    assert [announced(one, **contract) for one in folders] == [None, None]


@pytest.mark.parametrize("contract", HIDING)
def test_nor_does_a_declaration_count_them(
    attack: Attack, folders: list[Path], contract: dict[str, Any]
) -> None:
    of = program(folders[1], classes=[LONE, "ant", "bee"])
    assert attack("told", folders[1], **contract).join(of)["declared"]["labels"] == []


def test_an_owner_may_have_them_announced_beside_noise(folders: list[Path]) -> None:
    assert announced(folders[1], **SAID)["classes"] == [LONE, "ant", "bee"]


def test_an_empty_list_states_nothing_even_where_the_owner_has_stated_them(
    attack: Attack, folders: list[Path]
) -> None:
    owner = {"name": "folder", "path": str(folders[1]), "classes": [LONE, "ant", "bee"]}
    answer = attack("own", owner, epsilon=3.0).join(program(folders[1], classes=[]))
    assert "does not set data.classes" in answer["error"]


def test_a_program_or_an_owner_may_state_them(attack: Attack, folders: list[Path]) -> None:
    names = [LONE, "ant", "bee"]
    told = attack("told", folders[1], epsilon=3.0).join(program(folders[1], classes=names))
    owner = {"name": "folder", "path": str(folders[1]), "classes": names}
    own = attack("own", owner, epsilon=3.0).join(program(folders[1]))
    assert told["declared"]["classes"] == own["declared"]["classes"] == names


def test_a_site_that_keeps_nothing_back_reads_its_labels(
    attack: Attack, folders: list[Path]
) -> None:
    without, beside = answers(attack, folders)
    assert without["declared"]["classes"] == ["ant", "bee"]
    assert beside["declared"]["classes"] == [LONE, "ant", "bee"]


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Five people, one of whom is in a single image."""
    for number, pixels in enumerate(noise_images(17)):
        place = tmp_path / "people" / f"person-{number // 4}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "people"


def of_faces(folder: Path, **data: Any) -> Program:
    faces = {"name": "face_net", "wavelengths": [4], "orientations": 2, "cell": 4, "whiten": False}
    sections: dict[str, Any] = {
        "data": {"name": "people", "path": str(folder), "size": 16, **data},
        "split": {"name": "iid", "sites": 2},
        "task": {"name": "faces"},
        "model": faces,
        "rounds": {"rounds": 3, "weighting": "uniform"},
        "privacy": {"name": "local", "noise_multiplier": 2.0},
    }
    return parse(sections, base=folder)[0]


def test_people_are_not_counted_either(
    attack: Attack, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = {"name": "people", "path": str(people)}
    refused = attack("ours", owner, epsilon=3.0).join(of_faces(people))
    assert "does not set data.room" in refused["error"]
    told = attack("roomy", owner, epsilon=3.0).join(of_faces(people, room=9))["declared"]
    assert len(told["classes"]) == 9
    monkeypatch.setattr(vocabulary, "_clause", lambda contract: "")
    weak = attack("weak", owner, epsilon=3.0).join(of_faces(people))["declared"]
    assert len(weak["classes"]) == 5


def test_all_clauses_that_hide_images_or_names_are_among_these() -> None:
    assert {clause for _, clause in CONTRACTS} == {
        *("epsilon", "require", "figures", "counts", "announce")
    }
    for contract, clause in CONTRACTS:
        made = Contract(**contract)
        assert made.hides_images or not (made.announces and made.tells_counts)
        assert vocabulary._clause(made) == clause
