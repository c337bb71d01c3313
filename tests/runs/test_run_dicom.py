"""A federation on DICOM files: nothing of who the patients are gets into anything that is kept."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import cli, done, read, write_config
from dicom_files import item, write

# One mark per way in which a file says whose it is; a person's name is in each file's name too.
MARKS: dict[str, Any] = {
    "PatientName": "ZIBULSKAYA^OTTOKAR",
    "PatientID": "PID7741963",
    "OtherPatientIDs": "OTHERID5512",
    "PatientBirthDate": "19470823",
    "PatientAddress": "QUITTENGASSE 12",
    "AccessionNumber": "ACC99321748",
    "InstitutionName": "KLINIKUM XANTENBRUCK",
    "InstitutionalDepartmentName": "DEPT WRZ",
    "StationName": "STATION77Q",
    "ReferringPhysicianName": "DRVOGELSANG",
    "OperatorsName": "OPKRAXNER",
    "StudyDate": "20190317",
    "StudyTime": "093157.661",
    "StudyID": "STUDY4471",
    "StudyDescription": "KNEE OF ZIBULSKAYA",
    "PatientComments": "COMMENT QUAXI",
    "DeviceSerialNumber": "SERIAL8841X",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.771177117711",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.882288228822",
    "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.993399339933",
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.664466446644",
}
NESTED = "NESTEDQWERTZ"
PRIVATE = "PRIVATEYXCVB"
NEEDLES = [*(str(mark) for mark in MARKS.values()), NESTED, PRIVATE, "OTTOKAR", "zibulskaya"]
CLASSES = ("bright", "dark")


def patient(path: Path, pixels: np.ndarray | None, number: int) -> None:
    """A file of somebody: every mark in it, each patient's ID another."""
    own = {**MARKS, "PatientID": f"{MARKS['PatientID']}{number // 2}"}
    path = path.with_name(f"zibulskaya_{number}.dcm")
    nested = item(ScheduledProcedureStepDescription=NESTED, PatientName=MARKS["PatientName"])
    write(path, pixels, **own, RequestAttributesSequence=nested)
    import pydicom

    found = pydicom.dcmread(path)
    found.private_block(0x0011, "MAKER", create=True).add_new(0x01, "LO", PRIVATE)
    found.save_as(path)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites, two classes, a dozen files in each; two files more are none that can be used."""
    home = tmp_path_factory.mktemp("dicom")
    rng = np.random.default_rng(3)
    for site in ("north", "south"):
        for label, level in zip(CLASSES, (600, 0), strict=True):
            for number in range(12):
                pixels = (rng.integers(0, 700, (10, 8)) + level).astype(np.uint16)
                patient(home / "scans" / site / label / "x", pixels, number)
    patient(home / "scans" / "north" / "dark" / "x", None, 98)
    torn = home / "scans" / "south" / "dark" / "x"
    patient(torn, np.zeros((10, 8), np.uint16), 99)
    whole = torn.with_name("zibulskaya_99.dcm")
    whole.write_bytes(whole.read_bytes()[:-40])
    return home


def write_program(home: Path, **data: Any) -> Path:
    options = {"corrupt": "skip", "pixelless": "skip", "sites_in_path": True, "size": 8, **data}
    options |= {"window": [650.0, 1300.0]}
    return write_config(
        home,
        data={"name": "dicom", "path": "scans", **options},
        split={"name": "natural"},
        rounds={"rounds": 1},
    )


def found_in(folder: Path) -> set[str]:
    """The marks anywhere in a folder's files or their names: as bytes, or within base64."""
    found: set[str] = set()
    for path in folder.rglob("*"):
        data = str(path.relative_to(folder)).encode()
        if path.is_file():
            data += path.read_bytes()
        for text in re.findall(rb"[A-Za-z0-9+/]{40,}={0,2}", data):
            data += base64.b64decode(text[: len(text) // 4 * 4])
        found |= {mark for mark in NEEDLES if mark.encode().lower() in data.lower()}
    return found


def test_the_search_finds_what_is_there(home: Path) -> None:
    assert found_in(home / "scans") == set(NEEDLES)


def test_nothing_of_whose_images_they_are_is_kept(home: Path) -> None:
    run = home / "run"
    answer = done("compare", write_program(home), "--workers", "1", "--out", run)
    assert (run / "report.html").stat().st_size > 10_000
    assert (run / "model.safetensors").exists()
    assert found_in(run) == set()
    assert not {mark for mark in NEEDLES if mark.lower() in answer.said.lower()}
    assert sorted(read(run, "run.json")["data"]["skipped"]) == ["file 25: no pixels", "file 50"]
    report = (run / "report.html").read_text()
    assert "file 25: no pixels" in report
    # The model reads a new file in the way that it was trained on.
    path = home / "scans" / "north" / "bright" / "zibulskaya_0.dcm"
    told = json.loads(done("predict", run, path, "--json").out)
    assert told[0]["label"] in CLASSES


def test_a_source_that_names_paths_would_have_been_caught(home: Path) -> None:
    run = home / "named"
    done("run", write_program(home, names="path"), "--workers", "1", "--out", run)
    assert "zibulskaya" in found_in(run)


def test_a_list_of_dicom_files_names_none_of_them(home: Path) -> None:
    rows = ["path,label,site"]
    for path in sorted((home / "scans").rglob("*.dcm")):
        label, site = path.parent.name, path.parent.parent.name
        rows.append(f"{path.relative_to(home)},{label},{site}")
    (home / "scans.csv").write_text("\n".join(rows) + "\n")
    config = write_config(
        home,
        data={"name": "manifest", "path": "scans.csv", "size": 8, "corrupt": "skip"},
        split={"name": "natural"},
        rounds={"rounds": 1},
    )
    run = home / "listed"
    done("run", config, "--workers", "1", "--out", run)
    assert found_in(run) == set()
    assert len(read(run, "run.json")["data"]["skipped"]) == 2
    assert read(run, "evaluation.json")["samples"][0]["name"].startswith("DICOM image ")


def test_the_owners_own_screen_names_the_file(home: Path) -> None:
    answer = cli("run", write_program(home, pixelless="error"), "--out", home / "refused")
    assert answer.code == 3
    assert "zibulskaya_98.dcm' is a DICOM file without pixels" in answer.err
    assert not (home / "refused" / "history.jsonl").exists()
