"""DICOM values become grey by the standard's formulae, upright, whatever way a file stores them."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import item, sample, write

from fedsight.core.errors import DataError
from fedsight.data.base import Preprocess
from fedsight.data.images.decode import decode
from fedsight.data.images.dicom import NoPixels, NoPlugin, inspect, read_dicom
from fedsight.data.images.windowing import Reading

RAMP = np.arange(-100, 156, dtype=np.int16).reshape(16, 16)


def read(path: Path, at: int | None = None, **reading: Any) -> np.ndarray:
    """As numbers from 0 to 1."""
    values = read_dicom(path.read_bytes(), str(path), Reading(**reading), at)
    return values / np.iinfo(values.dtype).max


def refused(path: Path, **reading: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path, **reading)
    assert path.name in caught.value.cause
    assert caught.value.cure
    return caught.value


def test_a_window_is_the_standards_formula_after_rescaling(tmp_path: Path) -> None:
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -10}
    window = {"WindowCenter": [40, -500], "WindowWidth": [80, 100]}
    path = write(tmp_path / "a.dcm", RAMP, **rescaled, **window)
    values = RAMP * 2.0 - 10
    for centre, width, options in [
        (40, 80, {}),
        (-500, 100, {"view": 1}),
        (-500, 100, {"view": 7}),  # the last there is
        (0, 300, {"window": (0.0, 300.0)}),
    ]:  # PS3.3 C.11.2.1.2.1
        expected = ((values - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)
        assert np.abs(read(path, **options)[..., 0] - expected).max() < 1e-5
    exact = ((values - 40) / 80 + 0.5).clip(0, 1)  # C.11.2.1.3.2
    assert np.abs(read(path, function="linear_exact")[..., 0] - exact).max() < 1e-5
    sigmoid = 1 / (1 + np.exp(-4 * (values - 40) / 80))  # C.11.2.1.3.1
    assert np.abs(read(path, function="sigmoid")[..., 0] - sigmoid).max() < 1e-5
    stored = write(tmp_path / "s.dcm", RAMP, VOILUTFunction="SIGMOID", **rescaled, **window)
    assert np.array_equal(read(stored), read(path, function="sigmoid"))


def test_a_negative_slope_turns_no_window_upside_down(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP, RescaleSlope=-1, RescaleIntercept=0)
    expected = ((-RAMP - (0 - 0.5)) / 99 + 0.5).clip(0, 1)
    assert np.abs(read(path, window=(0.0, 100.0))[..., 0] - expected).max() < 1e-5
    assert read(path, window="bits")[0, 0, 0] > read(path, window="bits")[-1, -1, 0]


def test_without_a_window_the_image_or_its_bits_are_spread(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP)
    spread = (RAMP - RAMP.min()) / np.ptp(RAMP)
    assert np.abs(read(path)[..., 0] - spread).max() < 1e-5
    assert np.array_equal(read(path), read(path, window="image"))
    assert np.abs(read(path, window="bits")[..., 0] - (RAMP + 32768.0) / 65535).max() < 1e-5
    flat = write(tmp_path / "flat.dcm", np.full((4, 4), 7, np.uint16))
    assert not read(flat).any()
    twelve = write(tmp_path / "b.dcm", RAMP.view(np.uint16) % 4096, BitsStored=12, HighBit=11)
    assert np.abs(read(twelve, window="bits")[..., 0] - RAMP % 4096 / 4095).max() < 1e-5


def test_a_stored_table_is_looked_up(tmp_path: Path) -> None:
    table = [1023 - 2 * i for i in range(256)]
    voi = item(LUTDescriptor=[256, 0, 10], LUTData=np.array(table, "<u2").tobytes())
    path = write(tmp_path / "a.dcm", (RAMP + 100).astype(np.uint16), VOILUTSequence=voi)
    expected = np.array(table).reshape(16, 16) / 1023
    assert np.abs(read(path)[..., 0] - expected).max() < 1e-5
    modality = item(
        LUTDescriptor=[256, 0, 16], LUTData=(100 * np.arange(256)).astype("<u2").tobytes()
    )
    modality.ModalityLUTType = "US"
    path = write(tmp_path / "b.dcm", (RAMP + 100).astype(np.uint16), ModalityLUTSequence=modality)
    expected = (RAMP + 100.0) * 100 / 65535
    assert np.abs(read(path, window="bits")[..., 0] - expected).max() < 1e-5


def test_monochrome1_is_the_negative_and_padding_is_black(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.dcm", RAMP)
    other = write(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")
    assert np.allclose(read(plain) + read(other), 1)
    padded = RAMP.copy()
    padded[0] = -2000
    for kind in ("MONOCHROME1", "MONOCHROME2"):
        path = write(
            tmp_path / "c.dcm", padded, PhotometricInterpretation=kind, PixelPaddingValue=-2000
        )
        found = read(path)
        assert not found[0].any()
        assert {found[1:].min(), found[1:].max()} == {0, 1}  # the rest uses the whole range
    ranged = write(tmp_path / "d.dcm", RAMP, PixelPaddingValue=-100, PixelPaddingRangeLimit=0)
    assert (read(ranged)[..., 0][RAMP <= 0] == 0).all()


LETTERS = {(0, 1): "L", (0, -1): "R", (1, 1): "P", (1, -1): "A", (2, 1): "H", (2, -1): "F"}
UPRIGHT = {frozenset({0, 1}): "LP", frozenset({0, 2}): "LF", frozenset({1, 2}): "PF"}
WAYS = [
    ((a, s), (b, t)) for a, b in permutations(range(3), 2) for s, t in product((1, -1), repeat=2)
]


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("letters", [False, True])
@pytest.mark.parametrize("ways", WAYS)
def test_however_it_lies_it_is_read_upright(
    tmp_path: Path, ways: tuple[tuple[int, int], tuple[int, int]], letters: bool, oblique: bool
) -> None:
    """The picture is given by where in the body a value comes from, not by how it is stored."""
    row, column = ways
    # A value for each place in the body, by the two axes of the plane; stored as the file says.
    place = np.zeros((3, 5, 3), int)  # axis, row of the file, column of the file
    place[column[0]] = column[1] * np.arange(5)[:, None]
    place[row[0]] = row[1] * np.arange(3)[None, :]
    stored = (place * np.array([100, 10, 1])[:, None, None]).sum(0) + 500
    if letters:
        words = [LETTERS[row], LETTERS[column]]
        if oblique:
            words = [word + LETTERS[3 - row[0] - column[0], 1] for word in words]
        elements: dict[str, Any] = {"PatientOrientation": words}
    else:
        cosines = np.zeros((2, 3))
        cosines[0, row[0]], cosines[1, column[0]] = row[1], column[1]
        if oblique:
            cosines[1, 3 - row[0] - column[0]] = 0.4
        elements = {"ImageOrientationPatient": cosines.flatten().tolist()}
    path = write(tmp_path / "a.dcm", stored.astype(np.uint16), **elements)
    found = read(path, window="bits")[..., 0] * 65535 - 500
    weights = {"L": 100, "P": 10, "F": -1}
    right, down = UPRIGHT[frozenset({row[0], column[0]})]
    assert np.allclose(np.diff(found, axis=1), weights[right], atol=1e-6)
    assert np.allclose(np.diff(found, axis=0), weights[down], atol=1e-6)
    as_stored = read(path, window="bits", orientation="stored")[..., 0] * 65535
    assert np.allclose(as_stored, stored)


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"PatientOrientation": ["A", "R"], "Modality": "MG"},
        {"PatientOrientation": ["D", "LE"]},
        {"PatientOrientation": ["R", "H"], "AnatomicalOrientationType": "QUADRUPED"},
        {"PatientOrientation": ["R", "L"]},
        {"PatientOrientation": "R"},
    ],
)
def test_what_does_not_say_how_it_lies_stays_as_it_is(
    tmp_path: Path, elements: dict[str, Any]
) -> None:
    path = write(tmp_path / "a.dcm", RAMP, **elements)
    assert np.array_equal(read(path), read(path, orientation="stored"))


def test_frames_are_chosen_and_keep_their_own_window(tmp_path: Path) -> None:
    frames = np.stack([RAMP, RAMP + 50, RAMP + 100])
    own = [item(FrameVOILUTSequence=item(WindowCenter=c, WindowWidth=100)) for c in (-50, 0, 50)]
    shared = item(
        PixelValueTransformationSequence=item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US"),
        PlaneOrientationSequence=item(ImageOrientationPatient=[-1, 0, 0, 0, 1, 0]),
    )
    path = write(
        tmp_path / "a.dcm",
        frames,
        SharedFunctionalGroupsSequence=shared,
        PerFrameFunctionalGroupsSequence=own,
    )
    assert inspect(path, "a")[0] == 3
    for number, centre in enumerate((-50, 0, 50)):
        expected = ((frames[number] - (centre - 0.5)) / 99 + 0.5).clip(0, 1)[:, ::-1]
        assert np.abs(read(path, number)[..., 0] - expected).max() < 1e-5
    assert np.array_equal(read(path), read(path, 1))
    assert np.array_equal(read(path, frame="first"), read(path, 0))
    assert "has 3 frames" in refused(path, frame="refuse").cause


def test_colour_is_colour_however_it_is_coded() -> None:
    plain = read(sample("SC_ybr_full_422_uncompressed.dcm"))
    assert plain.shape == (100, 100, 3)
    for name, distance in [
        ("SC_rgb_rle.dcm", 0.02),  # the same bars, never compressed with loss
        ("SC_rgb_rle_16bit.dcm", 0.02),
        ("SC_rgb_gdcm_KY.dcm", 0.02),
        ("SC_rgb_jpeg_dcmtk.dcm", 0.02),
    ]:
        assert np.abs(read(sample(name)) - plain).mean() < distance, name
    assert read(sample("examples_palette.dcm")).shape == (350, 800, 3)
    assert read(sample("SC_rgb_rle_2frame.dcm"), 1).shape == (100, 100, 3)
    deep = sample("SC_rgb_rle_32bit.dcm")
    assert "colours of 32 bits" in refused(deep).cause


def test_grey_colour_tells_no_lie(tmp_path: Path) -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 8, 7]]], np.uint8)
    assert np.allclose(read(write(tmp_path / "a.dcm", colours)) * 255, colours)
    red, green, blue = (np.array([0, 10, 200], "<u2") * k for k in (1, 100, 300))
    palette = {
        f"{name}PaletteColorLookupTable{what}": value
        for name, data in (("Red", red), ("Green", green), ("Blue", blue))
        for what, value in (("Descriptor", [3, 0, 16]), ("Data", data.tobytes()))
    }
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    path = write(tmp_path / "b.dcm", indices, PhotometricInterpretation="PALETTE COLOR", **palette)
    assert np.allclose(read(path)[1, 0] * 65535, [200, 20000, 60000])


@pytest.mark.parametrize("kind", ["RLE", "implicit", "bigendian", "expb", "jp2klossless", "padded"])
def test_lossless_codings_of_one_image_are_one_image(kind: str) -> None:
    assert np.array_equal(read(sample(f"MR_small_{kind}.dcm")), read(sample("MR_small.dcm")))


def test_a_real_scan_is_windowed_in_hounsfield_units() -> None:
    path = sample("CT_small.dcm")
    soft, bone = read(path, window=(40.0, 400.0)), read(path, window=(500.0, 2000.0))
    assert soft.std() > bone.std()
    assert ((soft == 0) <= (bone <= 0.25)).all()  # below -160 HU in one, so below in the other


NO_PIXELS = ["rtplan.dcm", "test-SR.dcm", "waveform_ecg.dcm", "reportsi.dcm", "UN_sequence.dcm"]
NO_PLUGIN = ["JPEGLSNearLossless_16.dcm", "SC_rgb_jpeg_gdcm.dcm", "MR_small_jpeg_ls_lossless.dcm"]


@pytest.mark.parametrize("name", NO_PIXELS)
def test_a_file_without_pixels_is_called_so(name: str) -> None:
    error = refused(sample(name))
    assert isinstance(error, NoPixels)
    assert "without pixels" in error.cause
    with pytest.raises(NoPixels, match=name):
        inspect(sample(name), name)


@pytest.mark.parametrize("name", NO_PLUGIN)
def test_a_missing_plugin_is_named(name: str) -> None:
    error = refused(sample(name))
    assert isinstance(error, NoPlugin)
    assert "pylibjpeg-libjpeg" in error.cause
    assert "gdcm" in error.cause
    with pytest.raises(NoPlugin, match="no plugin"):
        inspect(sample(name), name)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("MR_truncated.dcm", "less than expected"),
        ("JPEG-lossy.dcm", "not installed: gdcm"),  # 12 bits, which Pillow cannot
        ("badVR.dcm", "corrupt"),
        ("JPEG2000-embedded-sequence-delimiter.dcm", "3722445056 x 1024 pixels"),
    ],
)
def test_broken_files_are_named(name: str, cause: str) -> None:
    assert cause in refused(sample(name)).cause


@pytest.mark.parametrize(
    ("elements", "cause"),
    [
        ({"PhotometricInterpretation": "HSV"}, "'HSV'"),
        ({"PixelData": None}, "without pixels"),
        ({"Rows": 0}, "without pixels"),
        ({"Rows": 60000, "Columns": 60000}, "too large"),
        ({"Rows": 17}, "less than expected"),
        ({"BitsAllocated": 13}, "corrupt"),
        ({"WindowCenter": 1, "WindowWidth": 0}, "window of width 0"),
        ({"WindowCenter": 1, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "CUBIC"),
    ],
)
def test_unsound_elements_are_refused(tmp_path: Path, elements: dict[str, Any], cause: str) -> None:
    assert cause in refused(write(tmp_path / "a.dcm", RAMP, **elements)).cause


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP, PixelData=None, FloatPixelData=b"\0" * 1024)
    assert "floating-point" in refused(path).cause


def test_prediction_reads_as_training_did(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP, WindowCenter=0, WindowWidth=50)
    for reading in (Reading(), Reading((0.0, 100.0), 2, "sigmoid", "stored", "first")):
        made = Preprocess(1, 16, 16, "stretch", (0.5,), (0.25,), reading)
        kept = Preprocess.of(json.loads(json.dumps(asdict(made))))
        assert kept == made
        expected = read_dicom(path.read_bytes(), "a", reading)[..., 0] / 65535
        assert np.allclose(decode(path, kept)[0].numpy(), expected)
    plain = Preprocess(1, 16, 16)
    assert np.allclose(decode(path, plain)[0].numpy(), read(path)[..., 0])
    assert Preprocess.of(json.loads(json.dumps(asdict(plain)))) == plain


@pytest.mark.parametrize(
    "change",
    [{"window": "x"}, {"window": [1, 0]}, {"window": [1]}, {"view": "1"}, {"frame": 3}, {"a": 1}],
)
def test_a_reading_from_elsewhere_is_checked(change: dict[str, Any]) -> None:
    table = {**json.loads(json.dumps(asdict(Preprocess(1, 2, 2)))), "dicom": change}
    with pytest.raises((TypeError, ValueError)):
        Preprocess.of(table)
