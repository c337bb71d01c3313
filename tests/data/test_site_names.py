"""Sites whose names people take for the same are refused, merged or kept, as classes are."""

from __future__ import annotations

import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import opened_sources
import pytest
from PIL import Image

opened = partial(opened_sources.opened, size=8, channels=1)
refused = partial(opened_sources.refused, size=8, channels=1)
SAME = [
    ("Lyon", "lyon", "differ only in case"),
    ("Hôtel-Dieu", unicodedata.normalize("NFD", "Hôtel-Dieu"), "accents are encoded"),
    ("site 1", "site_1", "how they are written"),
    ("site 01", "site 1", "how they are written"),
    ("Oslo", "Oslo\u200b", "cannot be seen"),
    ("A", "\u0410", "different scripts"),
]


def table(root: Path, sites: tuple[str, ...]) -> Path:
    rows = ["path,label,site"]
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        rows.append(f"{number}.png,{'ab'[number % 2]},{sites[number // 2 % len(sites)]}")
    (root / "list.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root / "list.csv"


@pytest.mark.parametrize(("one", "other", "why"), SAME)
def test_nearly_equal_sites_are_refused_with_their_lines(
    tmp_path: Path, one: str, other: str, why: str
) -> None:
    error = refused("manifest", table(tmp_path, (one, other, "Rome")))
    assert why in error.cause
    assert "12 images" not in error.cause
    assert "8 images, first" in error.cause
    assert "line 2" in error.cause
    assert "line 4" in error.cause
    assert "data.similar_sites = 'merge' if they are one site, 'keep' if two" in error.cure


def test_they_are_merged_or_kept_if_that_is_set(tmp_path: Path) -> None:
    path = table(tmp_path, ("Lyon", "lyon", "Lyon"))
    merged = opened("manifest", path, similar_sites="merge")
    assert set(merged.train.sites or ()) == {"Lyon"}
    assert "site 'lyon' (8 images) is read as 'Lyon'" in merged.notes
    kept = opened("manifest", path, similar_sites="keep")
    assert set(kept.train.sites or ()) == {"Lyon", "lyon"}


@pytest.mark.parametrize("word", ["nan", "NULL", "n/a", "None"])
def test_a_missing_value_is_not_a_site(tmp_path: Path, word: str) -> None:
    path = table(tmp_path, ("Lyon", word))
    error = refused("manifest", path)
    assert f"line 4: the site '{word}' stands for a missing value (12 images)" in error.cause
    assert "data.similar_sites = 'keep'" in error.cure
    assert set(opened("manifest", path, similar_sites="keep").train.sites or ()) == {"Lyon", word}


def test_folders_of_sites(tmp_path: Path) -> None:
    for site in ("Lyon", "lyon"):
        for number in range(8):
            place = tmp_path / site / "ab"[number % 2] / f"{site}{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(number + 9 * (site == "lyon"))
            Image.fromarray(rng.integers(0, 256, (8, 8)).astype(np.uint8)).save(place)
    error = refused("folder", tmp_path, sites_in_path=True)
    assert "'Lyon' (8 images" in error.cause
    merged = opened("folder", tmp_path, sites_in_path=True, similar_sites="merge")
    assert set(merged.train.sites or ()) == {"Lyon"}


@pytest.mark.parametrize("source", ["texts", "people"])
def test_other_sources_judge_sites_too(tmp_path: Path, source: str) -> None:
    if source == "texts":
        rows = [f"word {n} of text,{'ab'[n % 2]},{('Lyon', 'LYON')[n // 2 % 2]}" for n in range(16)]
        (tmp_path / "t.csv").write_text("text,label,site\n" + "\n".join(rows) + "\n")
        error = opened_sources.refused("texts", tmp_path / "t.csv", length=8)
    else:
        path = table(tmp_path, ("Lyon", "LYON"))
        path.write_text(path.read_text().replace("path,label", "path,person"))
        error = refused("people", path)
    assert "differ only in case" in error.cause
    assert "data.similar_sites" in error.cure
