"""Array sources: the built-in samples, IDX, MedMNIST, Hugging Face, and what each refuses."""

from __future__ import annotations

import gzip
import struct
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opened_sources import opened, refused

from fedsight.core.errors import FedSightError
from fedsight.data.base import sources
from fedsight.data.sources.idx import read_idx

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)


def test_fashion_sample_is_balanced_and_quick() -> None:
    opened("fashion-mnist-12k")
    start = time.perf_counter()
    found = opened("fashion-mnist-12k")
    assert time.perf_counter() - start < 1.0  # 0.05 s on a quiet machine
    assert np.bincount(found.train.labels).tolist() == [1000] * 10
    assert np.bincount(found.test.labels).tolist() == [200] * 10
    assert found.preprocess.mean == (0.286,)
    pixels = found.train.images.read(torch.arange(10_000))
    assert pixels.shape == (10_000, 1, 28, 28)
    assert abs(float(pixels.mean()) - 0.286) < 0.002
    assert abs(float(pixels.std()) - 0.353) < 0.002
    normal = found.preprocess.normalise(pixels[:100])
    assert abs(float(normal.mean())) < 0.2
    assert found.facts["licence"] == "MIT"


def test_sources_refuse_duplicates() -> None:
    with pytest.raises(FedSightError, match="two data sources are called 'folder'"):
        sources.add("folder")(sources.get("idx"))


def idx(array: np.ndarray) -> bytes:
    kinds = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    big = array.astype(array.dtype.newbyteorder(">"))
    head = bytes([0, 0, kinds[array.dtype.str[1:]], array.ndim])
    return head + struct.pack(f">{array.ndim}I", *array.shape) + big.tobytes()


def family(root: Path, packed: bool = False, **changes: bytes) -> Path:
    files = {
        "train-images-idx3-ubyte": idx(IMAGES),
        "train-labels-idx1-ubyte": idx(LABELS),
        "t10k-images-idx3-ubyte": idx(IMAGES[:3]),
        "t10k-labels-idx1-ubyte": idx(LABELS[:3]),
        **{name.replace("_", "-"): data for name, data in changes.items()},
    }
    for name, data in files.items():
        path = root / (name + ".gz" if packed else name)
        path.write_bytes(gzip.compress(data) if packed else data)
    return root


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 3, 4), (2, 2, 2, 2), (0,)])
def test_idx_round_trip(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 100, shape).astype(dtype)
    (tmp_path / "a").write_bytes(idx(array))
    found = read_idx(tmp_path / "a")
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_family(tmp_path: Path, packed: bool) -> None:
    found = opened("idx", path=family(tmp_path, packed), classes=["a", "b", "c"])
    assert found.classes == ("a", "b", "c")
    assert np.allclose(found.train.images.read(torch.arange(6))[:, 0] * 255, IMAGES, atol=1e-3)
    assert (found.preprocess.height, found.preprocess.width) == (5, 4)
    turned = opened("idx", path=tmp_path, transpose=True)
    assert turned.classes == ("0", "1", "2")
    assert turned.preprocess.height == 4
    assert "-train" not in turned.test.images.name(0)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "not an IDX file"),
        (b"\x89PNG1234", "not an IDX file"),
        (b"\0\0\x08\x03\0\0", "broken IDX header"),
        (b"\0\0\x08\x09\0\0", "broken IDX header"),
        (idx(IMAGES)[:-1], "truncated"),
        (idx(IMAGES) + b"\0", "longer than"),
        (gzip.compress(idx(IMAGES))[:-9], "cannot be read"),
        (b"\x1f\x8bgarbage", "cannot be read"),
        (idx(LABELS), "not images"),
        (idx(IMAGES.astype(np.float32)), "not images"),
        (idx(IMAGES[:5]), "5 images but 6 labels"),
        (idx(IMAGES[:0]), "not images"),
        (idx(IMAGES[:, :3]), "training images are"),
    ],
)
def test_idx_errors_name_the_file(tmp_path: Path, data: bytes, cause: str) -> None:
    error = refused("idx", path=family(tmp_path, train_images_idx3_ubyte=data))
    assert cause in error.cause
    assert str(tmp_path) in error.cause


def test_idx_labels_are_checked(tmp_path: Path) -> None:
    path = family(tmp_path)
    assert (
        "label 2 is outside the vocabulary" in refused("idx", path=path, classes=["a", "b"]).cause
    )
    assert "class 3 ('d') has no" in refused("idx", path=path, classes=["a", "b", "c", "d"]).cause
    assert "label -1" in refused("idx", path=path, first_label=1).cause
    swapped = refused("idx", path=path, train_labels="train-images-idx3-ubyte")
    assert "not labels" in swapped.cause
    family(tmp_path, train_labels_idx1_ubyte=idx(np.full(6, 10**6, np.int32)))
    assert "is not a class number" in refused("idx", path=path).cause
    (path / "t10k-labels-idx1-ubyte").unlink()
    assert "t10k-labels-idx1-ubyte' does not exist" in refused("idx", path=path).cause
    assert sources.get("idx")(path=path / "none").check()[0].where == "data.path"


def med(path: Path, colour: bool = False, **changes: Any) -> Path:
    images = np.repeat(IMAGES[..., None], 3, axis=3) if colour else IMAGES
    arrays = {
        f"{part}_{what}": {"images": images, "labels": LABELS[:, None]}[what]
        for part in ("train", "val", "test")
        for what in ("images", "labels")
    }
    arrays |= changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize("colour", [False, True])
def test_medmnist(tmp_path: Path, colour: bool) -> None:
    path = med(tmp_path / "a.npz", colour)
    found = opened("medmnist", path=path)
    assert len(found.train) == 6
    assert found.preprocess.channels == (3 if colour else 1)
    assert found.train.images.read(torch.tensor([0])).shape == (1, 3 if colour else 1, 5, 4)
    assert len(opened("medmnist", path=path, validation="train").train) == 12


def test_medmnist_errors_name_the_array(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    assert "does not exist" in refused("medmnist", path=path).cause
    cases: list[tuple[dict[str, Any], str]] = [
        ({"test_labels": None}, "no array 'test_labels'"),
        ({"train_images": IMAGES.astype(np.float32)}, "train_images is float32"),
        ({"train_images": IMAGES[:, None].repeat(5, 1)}, "train_images is uint8 of shape"),
        ({"train_images": IMAGES[:, :4]}, "train_images are (4, 4)"),
        ({"train_labels": LABELS[:, None].repeat(2, 1)}, "train_labels[2, 0] is 2, not"),
        ({"train_labels": LABELS[:, None, None]}, "train_labels is uint8 of shape (6, 1, 1)"),
        ({"train_labels": np.eye(6, dtype=np.uint8)}, "train_labels has 6 columns, test_labels 1"),
        ({"train_labels": LABELS[:, None] * 1.0}, "train_labels is float64"),
        ({"test_labels": LABELS[:3, None]}, "6 images but 3 labels"),
        ({"train_labels": np.zeros((6, 1), np.int64)}, "class 1 ('1') has no training images"),
        ({"train_images": np.array([{}] * 6, dtype=object)}, "not an .npz of plain arrays"),
    ]
    for changes, cause in cases:
        error = refused("medmnist", path=med(path, **changes))
        assert cause in error.cause
        assert "a.npz" in error.cause
    whole = med(path).read_bytes()
    for data in (b"", b"junk", whole[: len(whole) // 2], whole[:100] + b"\xff" * 50 + whole[150:]):
        path.write_bytes(data)
        assert "a.npz" in refused("medmnist", path=path).cause
    np.save(tmp_path / "b.npy", IMAGES)
    assert "b.npy" in refused("medmnist", path=tmp_path / "b.npy").cause


def test_huggingface_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    error = refused("huggingface", path=tmp_path)
    assert "pip install 'fedsight[huggingface]'" in error.cure


class Feature:
    """Stands for `datasets.Image`."""

    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class Table(list[dict[str, Any]]):
    """Stands for `datasets.Dataset`, as far as the source uses it."""

    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
        super().__init__(rows)
        self.features = features
        self.column_names = list(features)

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    def select_columns(self, names: list[str]) -> Table:
        return Table([{name: row[name] for name in names} for row in self], {})

    def cast_column(self, name: str, feature: Feature) -> Table:
        assert not feature.decode
        return self


def test_huggingface_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"P5\n4 5\n255\n" + IMAGES[0].tobytes()
    names = types.SimpleNamespace(names=["cat", "dog"])
    features = {"image": Feature(), "label": names, "clinic": None}
    rows = [
        {"image": {"bytes": data, "path": None}, "label": n % 2, "clinic": n // 5}
        for n in range(10)
    ]
    saved: dict[str, Any] = {}
    module: Any = types.ModuleType("datasets")
    module.Image = Feature
    module.load_from_disk = lambda path: saved["found"]
    monkeypatch.setitem(sys.modules, "datasets", module)
    options: dict[str, Any] = {"path": tmp_path, "size": [5, 4], "channels": 1}
    options["duplicates"] = "report"  # all show the same

    saved["found"] = Table(rows, features)
    found = opened("huggingface", **options, site_column="clinic")
    assert found.classes == ("cat", "dog")
    assert (len(found.train), len(found.test)) == (8, 2)
    assert set(found.train.sites or ()) == {"0", "1"}
    assert np.allclose(found.train.images.read(torch.tensor([0]))[0, 0] * 255, IMAGES[0], atol=1e-3)
    assert found.train.images.name(0).startswith("row[")

    saved["found"] = {"train": Table(rows, features), "test": Table(rows[:2], features)}
    assert len(opened("huggingface", **options, in_memory=False).test) == 2
    found = opened("huggingface", **options)
    assert found.validation is None
    many = {"Train": rows, "dev": rows[:3], "test": rows[:2]}
    saved["found"] = {name: Table(some, features) for name, some in many.items()}
    found = opened("huggingface", **options)
    assert found.validation is not None
    assert (len(found.train), len(found.validation), len(found.test)) == (10, 3, 2)
    assert "'dev' (validation)" in found.notes[0]
    saved["found"] = {name: Table(rows, features) for name in ("train", "vlaidation", "test")}
    error = refused("huggingface", **options)
    assert "'vlaidation'" in error.cause
    assert "did you mean 'validation'?" in error.cure
    found = opened("huggingface", **options, train_part="vlaidation")
    assert found.train.images.name(0) == "vlaidation[0]"
    assert "'train' (not read)" in found.notes[0]
    words = [{**row, "split": ("train", "Test")[n > 7]} for n, row in enumerate(rows)]
    text = types.SimpleNamespace(dtype="string")
    saved["found"] = Table(words, {**features, "split": text})
    assert len(opened("huggingface", **options).test) == 2
    saved["found"] = {"train": Table(rows, features), "test": Table(rows[:2], features)}
    assert "no part 'learn'" in refused("huggingface", **options, train_part="learn").cause
    assert "no column 'x'" in refused("huggingface", **options, label_column="x").cause
    assert "not images" in refused("huggingface", **options, image_column="clinic").cause

    broken = [*rows, {"image": None, "label": 0, "clinic": 0}]
    saved["found"] = Table(broken, features)
    assert "[10]' has no image" in refused("huggingface", **options).cause
    saved["found"] = Table([*rows, {**rows[0], "label": -1}], features)
    assert "row[10]: label -1" in refused("huggingface", **options).cause

    def fail(path: str) -> None:
        raise FileNotFoundError("nothing here")

    module.load_from_disk = fail
    assert "is not a saved data set" in refused("huggingface", **options).cause
