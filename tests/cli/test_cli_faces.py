"""`fedsight faces` from the first image to the last template, on a run that was trained here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import face_images
import pytest
from command_line import cli, done, refused

from fedsight.cli.faces import NOT_THE_PERSON
from fedsight.core.errors import FedSightError

CONFIG = """
name = "faces"
[data]
name = "people"
path = "{people}"
sites_in_path = true
size = 16
unseen = 0.5
[split]
name = "natural"
[model]
name = "face_net"
wavelengths = [4]
orientations = 4
cell = 4
dimension = {dimension}
[task]
name = "faces"
fars = [0.2]
[train]
epochs = 2
batch = 4
lr = 0.05
[rounds]
rounds = 2
[speed]
workers = 1
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("faces")
    face_images.draw(home / "people")
    for name, dimension in (("one", 16), ("other", 8)):
        config = home / f"{name}.toml"
        config.write_text(CONFIG.format(people=home / "people", dimension=dimension))
        done("run", config, "--out", home / name)
    for person in range(20, 24):
        for number in range(3):
            folder = home / "staff" / str(person)
            folder.mkdir(parents=True, exist_ok=True)
            face_images.picture(person, number).save(folder / f"{number}.png")
    return home


def test_from_the_first_image_to_the_last_template(home: Path, tmp_path: Path) -> None:
    run, gallery, staff = home / "one", tmp_path / "g", home / "staff"
    for person in ("20", "21"):
        said = done("faces", "enrol", run, gallery, person, staff / person / "0.png").out
        assert "1 template added, 1 in total" in said
    assert (tmp_path / "g.key").stat().st_mode & 0o077 == 0
    assert (
        "threshold"
        in done("faces", "calibrate", run, gallery, staff, "--far", "0.1", "--estimate").out
    )
    asked = ("faces", "verify", run, gallery, "20", staff / "20" / "0.png")
    said = refused(7, *asked, "--far", "0.2")  # which the run has a threshold for
    assert "is for a false accept rate of 0.1, not 0.2" in said
    assert "calibrate --far 0.2" in said
    refused(7, "faces", "identify", run, gallery, staff / "21", "--far", "0.2")
    assert done(*asked, "--far", "0.1").out == done(*asked).out
    found = json.loads(done(*asked, "--json").out)
    assert found["accepted"]
    assert found["score"] == pytest.approx(1.0, abs=1e-4)
    assert done("faces", "verify", run, gallery, "20", staff / "20" / "0.png").out[:3] == "yes"
    codes = set()
    for file in sorted(staff.glob("*/*.png")):
        answered = cli("faces", "verify", run, gallery, "20", file, "--json")
        accepted = json.loads(answered.out)["accepted"]
        assert (answered.code, answered.err) == (0 if accepted else NOT_THE_PERSON, "")
        codes.add(answered.code)
    assert codes == {0, NOT_THE_PERSON}
    assert NOT_THE_PERSON not in {family.exit_code for family in FedSightError.__subclasses__()}
    (answer,) = json.loads(
        done("faces", "identify", run, gallery, staff / "21" / "0.png", "--json").out
    )
    assert answer["name"] == "21"
    assert "21, score" in done("faces", "identify", run, gallery, staff / "21" / "0.png").out
    assert done("faces", "list", gallery).out == "20: 1\n21: 1\n"
    assert "1 template deleted" in done("faces", "delete", gallery, "20").out
    assert done("faces", "list", gallery).out == "21: 1\n"
    more = [staff / "21" / f"{number}.png" for number in (1, 2)]
    said = done("faces", "enrol", run, gallery, "21", *more).out
    assert "another number of templates per person (1); choose it again" in said
    done("faces", "calibrate", run, gallery, staff, "--far", "0.1", "--estimate")
    assert "again" not in done("faces", "enrol", run, gallery, "22", *more, more[0]).out
    refused(7, "faces", "verify", run, gallery, "20", staff / "20" / "0.png")
    refused(7, "faces", "delete", gallery, "20")


def test_templates_of_another_model_are_not_compared(home: Path, tmp_path: Path) -> None:
    gallery, image = tmp_path / "g", home / "staff" / "20" / "0.png"
    done("faces", "enrol", home / "one", gallery, "20", image)
    said = refused(7, "faces", "identify", home / "other", gallery, image)
    assert "another model" in said
    refused(7, "faces", "enrol", home / "other", gallery, "21", image)


def test_a_passphrase_instead_of_a_key(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery, image = tmp_path / "g", home / "staff" / "20" / "0.png"
    monkeypatch.setenv("FEDSIGHT_PASSPHRASE", "correct horse")
    done("faces", "enrol", home / "one", gallery, "20", image, "--passphrase")
    assert done("faces", "list", gallery, "--passphrase").out == "20: 1\n"
    monkeypatch.setenv("FEDSIGHT_PASSPHRASE", "wrong")
    assert "cannot be opened" in refused(7, "faces", "list", gallery, "--passphrase")
    refused(3, "faces", "list", gallery, "--passphrase", "--key", tmp_path / "k")
    refused(3, "faces", "list", gallery, "--key", gallery)


def test_a_guarantee_is_for_those_who_are_enrolled(home: Path, tmp_path: Path) -> None:
    run, gallery, staff = home / "one", tmp_path / "g", home / "staff"
    image = staff / "20" / "0.png"
    done("faces", "enrol", run, gallery, "20", image)
    asked = ("faces", "verify", run, gallery, "20", image, "--json")
    assert json.loads(done(*asked, "--far", "0.2").out)["guaranteed"] is False  # two are tested
    calibrate = ("faces", "calibrate", run, gallery, staff, "--far", "0.2")
    assert "estimated, and not guaranteed)" in done(*asked[:-1], "--far", "0.2").out
    assert "of at most 0.2, from 12 comparisons" in done(*calibrate).out
    assert json.loads(cli(*asked).out)["guaranteed"] is True
    assert "its false accept rate is guaranteed)" in cli(*asked[:-1]).out
    assert "guaranteed for those" in done("faces", "enrol", run, gallery, "21", image).out
    assert json.loads(cli(*asked).out)["guaranteed"] is False
    done(*calibrate)
    assert "guaranteed for those" in done("faces", "delete", gallery, "21").out
    done(*calibrate, "--estimate")
    assert json.loads(cli(*asked).out)["guaranteed"] is False


def test_a_threshold_that_nobody_reaches_is_said(home: Path, tmp_path: Path) -> None:
    """The volunteers are as like the enrolled person as can be: nobody may be accepted."""
    run, gallery, image = home / "one", tmp_path / "g", home / "staff" / "20" / "0.png"
    done("faces", "enrol", run, gallery, "20", image)
    for number in range(9):
        (tmp_path / "same" / str(number)).mkdir(parents=True)
        face_images.picture(20, 0).save(tmp_path / "same" / str(number) / "0.png")
    reach = "the threshold is out of reach, so nobody is accepted"
    said = done("faces", "calibrate", run, gallery, tmp_path / "same", "--far", "0.1").out
    assert reach in said
    assert reach in done("faces", "identify", run, gallery, image).out
    asked = ("faces", "verify", run, gallery, "20", image)
    assert reach in cli(*asked).out
    assert json.loads(cli(*asked, "--json").out)["reachable"] is False


def test_rates_are_told_of_sites_too(tmp_path: Path) -> None:
    """Of six people of a site four are in the test part, which are a pair to choose by and one to
    test on."""
    face_images.draw(tmp_path / "people", each=6)
    config = tmp_path / "site.toml"
    text = CONFIG.format(people=tmp_path / "people", dimension=16)
    text = text.replace("unseen = 0.5", "unseen = 0.67").replace("[0.2]", "[0.2, 0.6]")
    config.write_text(f'{text}\n[trust]\nguarantee = "site"\ncoverage = 0.4\n')
    done("run", config, "--out", tmp_path / "run")
    sets = json.loads((tmp_path / "run" / "summary.json").read_text())["sets"]
    assert (sets["images"], sets["tested"]) == (2, 2)
    assert set(sets["at"]) == {"0.2", "0.6"}
    assert sets["at"]["0.6"]["coverage"] == sets["coverage"] is not None
    assert "8 people" in sets["at"]["0.2"]["cure"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "of comparisons at each site, on average over pairs of people" in page
    assert "of the truth" not in page
    assert "Held-out pairs of people" in page
    assert "Comparisons of two people that pass" in page
    assert "drawn like its own" in page


def test_what_cannot_be_told_is_refused(home: Path, tmp_path: Path) -> None:
    run, gallery, image = home / "one", tmp_path / "g", home / "staff" / "20" / "0.png"
    refused(7, "faces", "list", gallery)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    refused(3, "faces", "enrol", run, gallery, "20", broken)
    assert not gallery.exists()
    done("faces", "enrol", run, gallery, "20", image)
    assert "--far" in refused(7, "faces", "verify", run, gallery, "20", image, "--far", "0.5")
    few = ("faces", "calibrate", run, gallery, home / "staff", "--far", "0.001")
    assert "too few to estimate" in refused(3, *few, "--estimate")
    said = refused(3, *few)
    assert "4 people are too few to guarantee" in said
    assert "at least 999, one folder each" in said
    refused(3, "predict", run, tmp_path / "nothing.png")
    assert "faces enrol" in refused(4, "predict", run, image)


def test_no_persons_name_is_in_any_file_of_a_run(tmp_path: Path) -> None:
    people = face_images.draw(tmp_path / "people")
    broken, loose = (
        people / "clinic-0" / face_images.NAMES[0] / "0.png",
        people / "clinic-1" / f"{face_images.NAMES[4]}.png",
    )
    broken.write_bytes(b"no image")
    face_images.picture(9, 0).save(loose)
    config, run = tmp_path / "faces.toml", tmp_path / "run"
    text = CONFIG.format(people=people, dimension=8)
    options = 'unseen = 0.5\ncorrupt = "skip"\nnameless = "skip"\n'
    config.write_text(text.replace("unseen = 0.5\n", options))
    done("run", config, "--out", run)
    assert json.loads((run / "run.json").read_text())["data"]["skipped"] == ["file 17", "file 1"]
    shown = json.loads((run / "evaluation.json").read_text())["samples"]
    assert all(re.fullmatch(r"file \d+, file \d+", one["name"]) for one in shown)
    done("report", run)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"run.json", "evaluation.json", "report.html"} <= {path.name for path in files}
    for path in files:
        held = path.read_bytes()
        assert not any(name.encode() in held for name in face_images.NAMES), path.name
