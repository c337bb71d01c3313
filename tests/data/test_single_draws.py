"""Where each image is drawn by itself, no image decides where another one goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.data.assembly import Record, divided
from fedsight.data.single_draws import are_wanted, drawn_singly, held_out_singly
from fedsight.data.sources.folder import Folder

ROOT = Path("/data")
NAMES = st.lists(st.integers(0, 500), min_size=3, max_size=40, unique=True)


def records(names: list[int], groups: int = 0) -> list[Record]:
    """Images, of which those whose numbers leave the same rest are a group."""
    group = [str(name % groups) if groups else None for name in names]
    return [
        Record(f"/data/{name}.png", "x", group=one) for name, one in zip(names, group, strict=True)
    ]


def part(
    names: list[int], fraction: float = 0.5, seed: int = 0, groups: int = 0
) -> dict[int, bool]:
    """Whether each image is held out."""
    mask = held_out_singly(records(names, groups), ROOT, True, fraction, seed)
    return dict(zip(names, mask.tolist(), strict=True))


@given(names=NAMES, fraction=st.floats(0.05, 0.95), seed=st.integers(0, 9))
def test_an_image_more_moves_none_but_where_a_part_was_empty(
    names: list[int], fraction: float, seed: int
) -> None:
    whole, fewer = (part(some, fraction, seed) for some in (names, names[1:]))
    assert len(set(whole.values())) == len(set(fewer.values())) == 2
    changed = [name for name in fewer if whole[name] != fewer[name]]
    assert len(changed) <= 1
    if changed:  # it was alone in its part
        kept = [held for name, held in fewer.items() if name != changed[0]]
        assert fewer[changed[0]] not in kept


@given(names=NAMES, seed=st.integers(0, 9))
def test_a_group_stays_together_and_its_name_decides(names: list[int], seed: int) -> None:
    found = part(names, 0.4, seed, groups=3)
    for rest in range(3):
        assert len({held for name, held in found.items() if name % 3 == rest}) <= 1


def test_numbered_groups_are_drawn_by_the_first_of_their_paths() -> None:
    names = list(range(60))
    numbered = [Record(f"/data/{n:02d}.png", "x", group=f"patient {n // 2:07d}") for n in names]
    later = [Record(f"/data/{n:02d}.png", "x", group=f"patient {n // 2 + 1:07d}") for n in names]
    masks = [held_out_singly(some, ROOT, False, 0.5, 0) for some in (numbered, later)]
    assert (masks[0] == masks[1]).all()
    assert (masks[0][::2] == masks[0][1::2]).all()


def test_a_key_decides_in_place_of_a_path_or_a_group_that_others_number() -> None:
    some = [Record(f"rows, line {n}", "x", group=f"row {n}", key=f"key {n}") for n in range(60)]
    later = [replace(one, path=f"{one.path}0", group=f"{one.group}0") for one in some]
    for named in (True, False):
        masks = [held_out_singly(each, ROOT, named, 0.5, 0) for each in (some, later)]
        assert (masks[0] == masks[1]).all()
        assert 0 < masks[0].sum() < len(some)


def test_the_share_and_the_folder() -> None:
    names = list(range(4000))
    found = part(names, 0.2)
    assert sum(found.values()) / len(names) == pytest.approx(0.2, abs=0.02)
    elsewhere = [Record(f"/elsewhere/{name}.png", "x") for name in names]
    mask = held_out_singly(elsewhere, Path("/elsewhere"), False, 0.2, 0)
    assert mask.tolist() == list(found.values()), "wherever the folder is"
    assert part(names, 0.2, seed=1) != found


def test_labels_and_copies_decide_only_where_parts_are_spread_evenly() -> None:
    some, labels = records(list(range(50))), np.arange(50) % 2
    source = Folder(path=ROOT)
    other = labels.copy()
    other[7] ^= 1
    with drawn_singly():
        assert are_wanted()
        ours = [divided(some, each, None, source)[0].tolist() for each in (labels, other)]
    assert not are_wanted()
    with drawn_singly(False):
        theirs = [divided(some, each, None, source)[0].tolist() for each in (labels, other)]
    assert ours[0] == ours[1]
    assert theirs[0] != theirs[1]
