"""MedMNIST files of every 2-D kind; the files are written here, in the form of the real ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import opened_sources
import pytest
import torch

from fedsight.core.errors import DataError
from fedsight.data.sources.medmnist import NAMES

RNG = np.random.default_rng(0)


def write(path: Path, labels: np.ndarray, side: int = 28, colour: bool = False) -> Path:
    """The same `labels` [n, 1] or [n, labels] for all three parts."""
    shape = (len(labels), side, side, 3) if colour else (len(labels), side, side)
    arrays = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = RNG.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{part}_labels"] = labels
    np.savez_compressed(path, **arrays)
    return path


opened = partial(opened_sources.opened, "medmnist")


def several(count: int = 14) -> np.ndarray:
    labels = (RNG.random((40, count)) < 0.2).astype(np.uint8)
    labels[0] = 0  # an image may have none
    labels[1] = 1
    return labels


@pytest.mark.parametrize("side", [28, 64, 128, 224])
@pytest.mark.parametrize("colour", [False, True])
def test_every_size_in_grey_and_colour(tmp_path: Path, side: int, colour: bool) -> None:
    labels = np.arange(6, dtype=np.uint8)[:, None] % 5
    found = opened(write(tmp_path / f"retinamnist_{side}.npz", labels, side, colour))
    assert found.classes == ("0", "1", "2", "3", "4")  # grades, in their order
    assert found.train.labels.tolist() == [0, 1, 2, 3, 4, 0]
    assert found.train.targets is None
    assert found.train.images.read(torch.tensor([0, 1])).shape == (
        2,
        3 if colour else 1,
        side,
        side,
    )


def test_several_labels_per_image(tmp_path: Path) -> None:
    labels = several()
    path = write(tmp_path / "chestmnist.npz", labels)
    for validation, times in (("keep", 1), ("leave_out", 1), ("train", 2)):
        found = opened(path, validation=validation)
        assert found.classes == NAMES["chestmnist"]
        assert found.train.targets is not None
        assert found.test.targets is not None
        assert found.train.targets.dtype == torch.float32
        assert np.array_equal(found.train.targets.numpy(), np.concatenate([labels] * times))
        assert found.train.labels.tolist() == labels.argmax(1).tolist() * times
        assert (found.validation is not None) == (validation == "keep")
        if found.validation is not None and found.validation.targets is not None:
            assert np.array_equal(found.validation.targets.numpy(), labels)
    assert opened(write(tmp_path / "other.npz", several(3))).classes == ("0", "1", "2")
    assert opened(tmp_path / "other.npz", classes=["a", "b", "c"]).classes == ("a", "b", "c")


@pytest.mark.parametrize("name", sorted(NAMES.keys() - {"chestmnist"}))
def test_the_sets_have_names_for_their_numbers(tmp_path: Path, name: str) -> None:
    labels = np.arange(len(NAMES[name]), dtype=np.uint8)[:, None]
    path = write(tmp_path / f"{name}_64.npz", labels, 8)
    assert opened(path).classes == NAMES[name]
    own = [f"class {number}" for number in range(len(labels))]
    assert opened(path, classes=own).classes == tuple(own)
    fewer = opened(write(tmp_path / f"{name}.npz", labels[:1], 8))
    assert fewer.classes == ("0",)  # another vocabulary than the set's


def test_what_is_wrong_with_several_labels_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "chestmnist.npz", several())
    with pytest.raises(DataError, match="has 14 labels per image"):
        opened(path, classes=["a", "b"])
    labels = several()
    labels[:, 3] = 0
    with pytest.raises(DataError, match=r"chestmnist.npz': label 3 \('infiltration'\) has no"):
        opened(write(path, labels))


def method(data: bytes) -> bytes:
    """The archive says that its arrays are packed by a method that nobody knows."""
    for mark, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        place = data.index(mark) + at
        data = data[:place] + b"\x63\0" + data[place + 2 :]
    return data


def shape(data: bytes) -> bytes:
    """The shape of an array is a bracket that is never closed."""
    return data.replace(b"'shape': (", b"'shape': ((", 1).replace(b"), }  ", b"), } ", 1)


def side(data: bytes) -> bytes:
    """The shape of an array is that of more than any machine holds."""
    return data.replace(b"(40, 28, 28), }          ", b"(4000000000, 2800, 2800),}", 1)


@pytest.mark.parametrize("change", [method, shape, side])
def test_a_broken_archive_is_refused_by_name(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "broken.npz"
    labels = np.arange(40)[:, None] % 2
    arrays = {
        f"{part}_{what}": value
        for part in ("train", "val", "test")
        for what, value in (("images", np.zeros((40, 28, 28), np.uint8)), ("labels", labels))
    }
    np.savez(path, **arrays)
    whole = path.read_bytes()
    broken = change(whole)
    assert broken != whole
    path.write_bytes(broken)
    with pytest.raises(DataError, match=r"broken\.npz' is corrupt, truncated, or not an \.npz"):
        opened(path)
