"""Groups of images (patients, products, videos) are held out whole, whatever names them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsight.core.errors import DataError
from fedsight.data.assembly import Record, divided
from fedsight.data.base import PROGRAM_KEYS, ArrayImages, Dataset, Part
from fedsight.data.csv_file import CsvSource
from fedsight.data.groups import group_counts, reader
from fedsight.data.partition import splits
from fedsight.data.sources.manifest import Manifest
from fedsight.data.sources.texts import TextFile
from tests.data.duplicates.test_duplicates import opened, refused, save


def patients(root: Path, head: str = "path,label,patient", more: str = "") -> Path:
    """Ten patients with four images each, listed in a CSV."""
    lines = [head]
    for patient in range(10):
        for number in range(4):
            name = f"p{patient}_{number}.png"
            save(root / name, 10 * patient + number)
            lines.append(f"{name},{'ab'[patient % 2]},P{patient}{more}")
    path = root / "m.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def of_patients(part: Part) -> set[str]:
    return {Path(part.images.name(i)).name.split("_")[0] for i in range(len(part))}


def apart(found: Dataset) -> bool:
    train, test = of_patients(found.train), of_patients(found.test)
    assert train
    assert test
    return not train & test


def test_a_column_holds_patients_out_whole(tmp_path: Path) -> None:
    path = patients(tmp_path)
    without = opened(path, "manifest")
    assert not apart(without)
    assert "column 'patient' is not read; data.group = 'patient'" in without.notes[0]
    found = opened(path, "manifest", group="patient")
    assert apart(found)
    assert "data.group = 'patient' makes 10 groups" in found.notes
    counts = group_counts(found)
    assert counts is not None
    assert (counts.groups, counts.across_parts, counts.largest) == (10, 0, 4)
    assert apart(opened(path, "manifest", group="{group}_*"))


def test_an_unknown_column_or_pattern_names_what_was_found(tmp_path: Path) -> None:
    path = patients(tmp_path)
    error = refused(path, name="manifest", group="subject")
    assert "no column 'subject' (found: path, label, patient)" in error.cause
    assert "data.group" in error.cure
    error = refused(path, name="manifest", group="{group}-*")
    assert "matches none of the 40 images, such as 'p0_0.png'" in error.cause
    error = refused(path, name="manifest", group="{group}/{group}")
    assert "more than once" in error.cause


def test_images_without_a_group_are_counted(tmp_path: Path) -> None:
    path = patients(tmp_path)
    path.write_text(path.read_text().replace(",P3\n", ",\n"))
    found = opened(path, "manifest", group="patient")
    said = [note for note in found.notes if note.startswith("data.group")]
    assert "makes 9 groups; 4 images belong to none and count alone, such as" in said[0]
    assert "m.csv, line 14'" in said[0]
    path.write_text(patients(tmp_path).read_text())
    found = opened(path, "manifest", group="{group}.png")
    assert any("each of one image: it keeps nothing together" in note for note in found.notes)


def test_groups_that_are_nearly_equal_or_nothing_are_said(tmp_path: Path) -> None:
    path = patients(tmp_path)
    text = path.read_text().replace(",P2\n", ",p1\n").replace(",P3\n", ",nan\n")
    path.write_text(text)
    notes = opened(path, "manifest", group="patient").notes
    assert (
        "groups 'P1' and 'p1' differ only in case: each is held out apart from the other" in notes
    )
    assert "group 'nan' (4 images) stands for a missing value: its images stay together" in notes


def test_groups_in_two_given_parts_are_refused(tmp_path: Path) -> None:
    path = patients(tmp_path, "path,label,patient,split", ",train")
    rows = path.read_text().splitlines()
    rows[1:] = [row.replace("train", "test") if "_3" in row else row for row in rows[1:]]
    path.write_text("\n".join(rows))
    error = refused(path, name="manifest", group="patient")
    assert "group 'P0' is in the training part ('" in error.cause
    assert "m.csv, line 2') and the test part ('" in error.cause
    assert "10 of 10 groups are in two parts" in error.cause
    found = opened(path, "manifest", group="patient", group_overlap="report")
    assert any("10 of 10 groups are in two parts" in note for note in found.notes)
    counts = group_counts(found)
    assert counts is not None
    assert counts.across_parts == 10


def test_patterns_over_folders(tmp_path: Path) -> None:
    for label, place in (("a", 0), ("b", 1)):
        for patient in range(6):
            for number in range(3):
                name = f"{patient + 10 * place:03d}-left-{number}.png"
                save(tmp_path / label / name, 100 * place + 10 * patient + number)
    found = opened(tmp_path, group="{group}-*")
    assert found.train.groups is not None
    assert not set(found.train.groups) & set(found.test.groups or ())
    error = refused(tmp_path, group="patient")
    assert "'patient' names a column, but folders have none" in error.cause


@pytest.mark.parametrize(
    ("pattern", "path", "group"),
    [
        ("{group}_*", "train/a/p1_2_3.png", "p1"),
        ("P{group}-?.png", "P07-1.png", "07"),
        ("**/{group}/*", "site/a/p1/2.png", "p1"),
        ("*/{group}/*.png", "a/p1/2.png", "p1"),
        ("*/{group}/*.png", "b/a/p1/2.png", None),
        ("{group}/**", "p1/a/b/2.png", "p1"),
        ("x(1)+{group}.png", "x(1)+7.png", "7"),
        ("{group}_*", "none.png", None),
    ],
)
def test_patterns(pattern: str, path: str, group: str | None) -> None:
    assert reader(pattern)(PurePath(path)) == group


def test_keys_of_coco_and_paths_of_yolo(tmp_path: Path) -> None:
    images, boxes = [], []
    for number in range(24):
        save(tmp_path / "coco" / f"{number}.png", number)
        entry = {"id": number, "file_name": f"{number}.png", "patient": number // 3}
        images.append(entry)
        box = {"image_id": number, "category_id": 1, "bbox": [3, 3, 20, 20]}
        boxes.append(box)
        save(tmp_path / "yolo" / "images" / f"v{number // 4}-{number}.png", 50 + number)
        labels = tmp_path / "yolo" / "labels"
        labels.mkdir(exist_ok=True)
        (labels / f"v{number // 4}-{number}.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "yolo/classes.txt").write_text("cat\n")
    table = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    path = tmp_path / "coco" / "all.json"
    path.write_text(json.dumps(table))
    for name, where, group in (
        ("boxes", path, "patient"),
        ("coco", path, "patient"),
        ("boxes", tmp_path / "yolo", "{group}-*"),
    ):
        found = opened(where, name, group=group)
        assert found.train.groups is not None
        assert found.test.groups
        assert not set(found.train.groups) & set(found.test.groups)
    error = refused(path, name="boxes", group="person")
    assert "has the key 'person' (found: file_name, id, patient)" in error.cause
    assert "have none" in refused(tmp_path / "yolo", name="boxes", group="patient").cause


def test_texts_have_groups_too(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"text": f"word{n} x", "label": "ab"[n % 2], "author": n // 4} for n in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    texts = TextFile(path=path, length=4, group="author").open()
    assert not set(texts.train.groups or ()) & set(texts.test.groups or ())
    with pytest.raises(DataError, match="no key 'writer'"):
        TextFile(path=path, length=4, group="writer").open()
    with pytest.raises(DataError, match="texts have none"):
        TextFile(path=path, length=4, group="{group}_x").open()


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.one_of(st.none(), st.integers(0, 8)), min_size=2, max_size=60),
    labels=st.integers(1, 4),
    seed=st.integers(0, 1000),
    fraction=st.floats(0.05, 0.9),
    copies=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=6),
)
def test_groups_and_copies_never_straddle(
    groups: list[int | None],
    labels: int,
    seed: int,
    fraction: float,
    copies: list[tuple[int, int]],
) -> None:
    count = len(groups)
    records = [
        Record(f"{n}.png", "x", group=None if g is None else str(g)) for n, g in enumerate(groups)
    ]
    numbers = np.random.default_rng(seed).integers(0, labels, count)
    sets = np.arange(count)
    for one, other in copies:
        if max(one, other) < count:
            sets[sets == sets[max(one, other)]] = sets[min(one, other)]
    source = Manifest(path=Path("x.csv"), test_fraction=fraction, test_seed=seed)
    parts, _ = divided(records, numbers, None, source, sets)
    for names in (groups, sets.tolist()):
        for name in {one for one in names if one is not None}:
            assert len({part for part, one in zip(parts, names, strict=True) if one == name}) == 1


@pytest.mark.parametrize("name", ["iid", "dirichlet", "labels", "quantity"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(12, 40))
def test_simulated_sites_share_no_group(name: str, seed: int, count: int) -> None:
    draws = np.random.default_rng(seed)
    groups = [None if g == 0 else f"p{g}" for g in draws.integers(0, count, 4 * count)]
    part = Part(ArrayImages(torch.zeros(4 * count, 1, 2, 2), "x"), draws.integers(0, 2, 4 * count))
    options: dict[str, Any] = {"sites": 3, **({"alpha": 10.0} if name == "dirichlet" else {})}
    partition = splits.get(name)(**options).divide(replace(part, groups=groups), 2, seed)
    homes: dict[str, set[int]] = {}
    indices = [partition.indices(site) for site in range(3)]
    assert sorted(np.concatenate(indices).tolist()) == list(range(4 * count))
    for site, own in enumerate(indices):
        for index in own.tolist():
            if (group := groups[index]) is not None:
                homes.setdefault(group, set()).add(site)
    assert all(len(found) == 1 for found in homes.values())


def test_fewer_groups_than_sites_are_refused() -> None:
    part = Part(ArrayImages(torch.zeros(9, 1, 2, 2), "x"), np.zeros(9, np.int64), None, None)
    part = replace(part, groups=["a", "b", "c"] * 3)
    with pytest.raises(DataError, match="5 sites cannot share 3 groups"):
        splits.get("iid")(sites=5).divide(part, 1, 0)


def test_the_owner_decides_about_copies_and_groups() -> None:
    for key in ("duplicates", "near_duplicates", "group", "group_overlap"):
        assert key in CsvSource.model_fields
        assert key not in PROGRAM_KEYS
