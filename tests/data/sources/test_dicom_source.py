"""DICOM files as a data source: labels, sites, patients, frames, and what is left out."""

from __future__ import annotations

import io
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import opened_sources
import pydicom
import pytest
import torch
from dicom_files import sample, write

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, sources
from fedsight.data.images.dicom import read_dicom
from fedsight.data.images.windowing import Reading
from fedsight.data.single_draws import drawn_singly
from fedsight.program.locate import find_source

RNG = np.random.default_rng(0)


def image(level: int = 0) -> np.ndarray:
    return (RNG.integers(0, 100, (9, 7)) + level).astype(np.uint16)


opened = partial(opened_sources.opened, "dicom", size=8)
refused = partial(opened_sources.refused, "dicom", size=8)


def folders(root: Path, patients: int = 6, each: int = 3) -> Path:
    """Two classes; a patient's images have one class, and as many numbers as there are."""
    for patient in range(patients):
        for number in range(each):
            path = root / ("ill" if patient % 2 else "well") / f"{patient}_{number}.dcm"
            write(path, image(), PatientID=f"P{patient}")
    return root


def of_patients(found: Dataset) -> tuple[set[str], set[str]]:
    """Whose images are in the training and in the test part, by the file names of `folders`."""
    whose = [
        {Path(part.images.name(i)).name.split("_")[0] for i in range(len(part))}
        for part in (found.train, found.test)
    ]
    return whose[0], whose[1]


def test_folders_are_classes_and_patients_stay_together(tmp_path: Path) -> None:
    found = opened(folders(tmp_path), names="path", test_fraction=0.34)
    assert found.classes == ("ill", "well")
    assert found.preprocess.dicom is not None
    train, test = of_patients(found)
    assert not train & test
    assert len(test) == 2
    pixels = found.train.images.read(torch.arange(len(found.train)))
    assert pixels.shape == (12, 1, 8, 8)
    apart = opened(tmp_path, names="path", test_fraction=0.34, held_out_by="image")
    train, test = of_patients(apart)
    assert train & test  # as one would not want it


def test_streaming_and_memory_read_the_same(tmp_path: Path) -> None:
    root = folders(tmp_path)
    one, two = (opened(root, in_memory=kept) for kept in (True, False))
    everything = torch.arange(len(one.train))
    assert torch.equal(one.train.images.read(everything), two.train.images.read(everything))
    assert [one.train.images.name(i) for i in range(3)] == [
        two.train.images.name(i) for i in range(3)
    ]


def test_files_without_suffix_and_sites(tmp_path: Path) -> None:
    for site in ("north", "south"):
        for label in ("a", "b"):
            for number in range(3):
                write(tmp_path / site / label / f"1.2.840.{number}", image())
        (tmp_path / site / "a" / "readme.txt").write_text("not an image")
        write(tmp_path / site / "a" / "DICOMDIR", None)
    found = opened(tmp_path, sites_in_path=True)
    assert len(found.train) + len(found.test) == 12
    assert set(found.train.sites or ()) == {"north", "south"}


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big"])
@pytest.mark.parametrize("header", ["none", "meta"])
@pytest.mark.parametrize("name", ["IM0001", "x.dcm"])
def test_files_without_preamble_are_found_by_content_and_read_alike(
    tmp_path: Path, syntax: str, header: str, name: str
) -> None:
    plain = pydicom.dcmread(write(tmp_path / "whole.dcm", image()))
    little, implicit = syntax != "big", syntax == "implicit"
    if syntax == "big":
        plain.PixelData = plain.pixel_array.astype(plain.pixel_array.dtype.newbyteorder()).tobytes()
    stream = io.BytesIO()
    if header == "meta" and little and not implicit:
        whole = (tmp_path / "whole.dcm").read_bytes()
        stream.write(whole[132:])
    else:
        plain.preamble, plain.file_meta = None, pydicom.dataset.FileMetaDataset()
        pydicom.dcmwrite(stream, plain, implicit_vr=implicit, little_endian=little)
    for label in ("a", "b"):
        for number in range(3):
            path = tmp_path / "set" / label / f"{number}{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stream.getvalue())
    found = opened(tmp_path / "set", duplicates="keep", near_duplicates="keep")
    assert len(found.train) + len(found.test) == 6
    assert found.passed_over == {}
    expected = read_dicom((tmp_path / "whole.dcm").read_bytes(), "whole", Reading())
    bare = read_dicom(stream.getvalue(), "bare", Reading())
    assert np.array_equal(bare, expected)


@pytest.mark.parametrize(
    ("elements", "settings", "said"),
    [
        ({"WindowCenter": 40, "WindowWidth": 0}, {}, "a window of width 0"),
        ({"WindowCenter": 40, "WindowWidth": -9}, {}, "a window of width -9"),
        ({"WindowCenter": [40, 1], "WindowWidth": [0, 9]}, {}, "a window of width 0"),
        ({"WindowCenter": 4, "WindowWidth": 0.5}, {}, "a window of width 0.5"),
        ({}, {"window": (4.0, 0.5)}, "a window of width 0.5"),
        ({"RescaleSlope": ""}, {"window": (4.0, 9.0)}, "an empty RescaleSlope"),
        ({"RescaleIntercept": "", "RescaleSlope": 2}, {"window": (4.0, 9.0)}, "RescaleIntercept"),
    ],
)
def test_unclear_windows_name_the_setting_and_are_not_called_corrupt(
    tmp_path: Path, elements: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "a.dcm", image(), **elements)
    with pytest.raises(DataError) as caught:
        read_dicom(path.read_bytes(), "a.dcm", Reading(**settings))
    assert said in caught.value.cause
    assert "corrupt" not in caught.value.cause
    assert "data.window" in caught.value.cure
    for window in ("image", "bits"):
        read_dicom(path.read_bytes(), "a.dcm", Reading(window=window))
    if "WindowWidth" in elements:
        later = Reading(view=1) if isinstance(elements["WindowWidth"], list) else None
        exact = Reading(function="linear_exact") if elements["WindowWidth"] == 0.5 else None
        for reading in (later, exact):
            if reading is not None:
                read_dicom(path.read_bytes(), "a.dcm", reading)


def listing(root: Path, *lines: str, head: str = "path,label") -> Path:
    (root / "list.csv").write_text("\n".join([head, *lines]) + "\n")
    return root / "list.csv"


def test_a_csv_gives_several_labels(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.dcm", image())
    path = listing(
        tmp_path,
        *("0.dcm,Effusion|Edema,train", "1.dcm,,train", "2.dcm,Edema,train", "3.dcm,Edema,test"),
        head="path,label,split",
    )
    found = opened(path, label_separator="|")
    assert found.classes == ("Edema", "Effusion")
    assert found.train.targets is not None
    assert found.train.targets.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert found.train.labels.tolist() == [0, 0, 0]
    assert found.test.targets is not None
    assert found.test.targets.tolist() == [[1, 0]]
    assert found.train.images.name(1) == "line 3"
    ordered = opened(path, label_separator="|", classes=["Effusion", "Edema"])
    assert ordered.train.targets is not None
    assert ordered.train.targets.tolist() == [[1, 1], [0, 0], [0, 1]]
    error = refused(path, label_separator="|", classes=["Edema"])
    assert "line 2" in error.cause
    assert "'Effusion'" in error.cause
    nobody = refused(path, label_separator="|", classes=["Effusion", "Edema", "Mass"])
    assert "class 'Mass' has no training images" in nobody.cause
    assert "'label' is empty" in refused(path).cause


def test_files_without_pixels_are_refused_or_counted(tmp_path: Path) -> None:
    root = folders(tmp_path)
    shutil.copy(sample("rtplan.dcm"), root / "ill" / "plan.dcm")
    assert "ill/plan.dcm' is a DICOM file without pixels" in refused(root).cause
    assert "without pixels" in refused(root, corrupt="skip").cause
    found = opened(root, pixelless="skip")
    assert found.skipped == ("file 10: no pixels",)
    assert len(found.train) + len(found.test) == 18
    assert "plan.dcm" in opened(root, pixelless="skip", names="path").skipped[0]
    only = tmp_path / "only"
    (only / "a").mkdir(parents=True)
    shutil.copy(sample("rtplan.dcm"), only / "a")
    assert "1 files left out" in refused(only, pixelless="skip").cause


def test_broken_files_are_refused_or_counted(tmp_path: Path) -> None:
    root = folders(tmp_path)
    shutil.copy(sample("MR_truncated.dcm"), root / "ill" / "torn.dcm")  # whole in its header
    (root / "well" / "zzz.dcm").write_bytes(b"no DICOM at all")
    assert "zzz.dcm' is not a DICOM file" in refused(root).cause
    assert opened(root, corrupt="skip").skipped == ("file 20", "file 10")
    (root / "well" / "zzz.dcm").unlink()
    assert "ill/torn.dcm' is corrupt" in refused(root).cause


def test_a_missing_plugin_leaves_nothing_out_in_silence(tmp_path: Path) -> None:
    root = folders(tmp_path)
    shutil.copy(sample("SC_rgb_jpeg_gdcm.dcm"), root / "ill")
    error = refused(root, corrupt="skip", pixelless="skip")
    assert "SC_rgb_jpeg_gdcm.dcm' is compressed as 'JPEG Lossless" in error.cause


def test_frames(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for number in range(2):
            frames = np.stack([np.full((4, 4), level, np.uint16) for level in (0, 100, 200)])
            write(tmp_path / label / f"{number}.dcm", frames)
    assert "has 3 frames" in refused(tmp_path).cause
    first, middle, each = (
        opened(tmp_path, frames=policy, window=(100.0, 201.0))
        for policy in ("first", "middle", "each")
    )
    level = [float(part.train.images.read(torch.tensor([0])).mean()) for part in (first, middle)]
    assert level == pytest.approx([0, 0.5], abs=0.01)
    assert len(each.train) == len(each.test) == 6  # one file of three frames for each class
    assert each.train.images.name(1).endswith(", frame 2")
    names = [
        {part.images.name(i).split(",")[0] for i in range(6)} for part in (each.train, each.test)
    ]
    assert not names[0] & names[1]
    assert each.preprocess.dicom is not None
    assert each.preprocess.dicom.frame == "middle"


def test_a_folder_of_dicom_files_is_known_by_its_files(tmp_path: Path) -> None:
    assert find_source(str(folders(tmp_path)), []).registered == "dicom"


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert "no images" in refused(tmp_path).cause
    path = listing(tmp_path, "none.dcm,a")
    assert "line 2: there is no image" in refused(path).cause
    assert sources.get("dicom")(path=tmp_path / "none").check()[0].where == "data.path"


def test_drawn_by_themselves_numbered_patients_do_not_move_one_another(tmp_path: Path) -> None:
    folders(tmp_path, patients=40, each=2)

    def trained() -> set[str]:
        with drawn_singly():  # the pattern names the groups of half of the files
            part = opened(tmp_path, names="path", group="{group}_0.dcm", test_fraction=0.4).train
        return {Path(part.images.name(at)).name for at in range(len(part))}

    whole, gone = trained(), {"0_0.dcm", "0_1.dcm"}
    for name in gone:
        (tmp_path / "well" / name).unlink()
    assert trained() == whole - gone
