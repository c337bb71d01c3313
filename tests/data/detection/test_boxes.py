"""Boxes as one padded tensor: nothing is lost on the way, and what moves comes back."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.data.detection import boxes
from fedsight.data.detection.boxes import (
    Row,
    crowd,
    crowded,
    difficult,
    joined,
    labelled,
    majority,
    mirrored,
    pack,
    present,
    regions,
    trained,
)

CLASSES, SIDE = 4, 64.0


@st.composite
def packed(draw: st.DrawFn) -> tuple[list[list[Row]], list[list[int]]]:
    side = st.integers(1, 20)
    row = st.tuples(st.integers(0, CLASSES - 1), side, side, side, side).map(
        lambda r: (float(r[0]), float(r[1]), float(r[2]), float(r[1] + r[3]), float(r[2] + r[4]))
    )
    images = draw(st.integers(1, 4))
    rows = [draw(st.lists(row, max_size=4)) for _ in range(images)]
    hidden = [draw(st.lists(st.integers(0, CLASSES - 1), unique=True)) for _ in range(images)]
    return rows, hidden


@given(packed())
def test_rows_and_unlabelled_classes_come_out_as_they_went_in(
    case: tuple[list[list[Row]], list[list[int]]],
) -> None:
    rows, hidden = case
    targets = pack(rows, hidden)
    for image, found in enumerate(rows):
        own = targets[image][present(targets)[image]]
        assert [tuple(row) for row in own.tolist()] == found
        known = labelled(targets, CLASSES)[image].tolist()
        assert known == [label not in hidden[image] for label in range(CLASSES)]


@given(packed())
def test_moving_twice_is_not_moving(case: tuple[list[list[Row]], list[list[int]]]) -> None:
    targets = pack(*case)
    for move in (lambda t: mirrored(t, SIDE), lambda t: boxes.flipped(t, SIDE), boxes.transposed):
        assert torch.equal(move(move(targets)), targets)
        assert torch.equal(labelled(move(targets), CLASSES), labelled(targets, CLASSES))
        moved: Tensor = move(targets)[present(targets)]
        assert bool((moved[:, 3:] > moved[:, 1:3]).all())


@given(
    packed(),
    st.floats(0.25, 4),
    st.tuples(st.floats(-60, 60), st.floats(-60, 60)),
    st.floats(0.05, 0.95),
)
def test_placed_boxes_lie_in_the_frame_with_the_least_of_their_area(
    case: tuple[list[list[Row]], list[list[int]]],
    scale: float,
    offset: tuple[float, float],
    least: float,
) -> None:
    targets = pack(*case)
    count = len(targets)
    moved = boxes.placed(
        targets, torch.full((count, 1), scale), torch.tensor([offset] * count), SIDE, SIDE, least
    )
    assert torch.equal(labelled(moved, CLASSES), labelled(targets, CLASSES))
    assert not bool((present(moved) & ~present(targets)).any())
    for before, after in zip(targets.view(-1, 5), moved.view(-1, 5), strict=True):
        if before[0] < 0:
            continue
        whole = before[1:] * scale + torch.tensor(offset * 2)
        inside = whole.clamp(0, SIDE)
        area, left = ((box[2:] - box[:2]).prod() for box in (whole, inside))
        if after[0] >= 0:
            assert after[0] == before[0]
            assert torch.allclose(after[1:], inside, atol=1e-3)
            assert left >= least * area * 0.999
        else:
            assert left <= least * area * 1.001


def test_the_majority_counts_boxes_only() -> None:
    rows: list[list[Row]] = [[(2, 0, 0, 1, 1), (1, 0, 0, 1, 1), (2, 1, 1, 2, 2)], []]
    assert majority(pack(rows, [[3], [0, 1]])).tolist() == [2, 0]


def test_joined_parts_have_rows_for_the_fullest_image() -> None:
    one, two = joined([pack([[(0, 0, 0, 1, 1)]], [[]]), pack([[]], [[0, 1, 2]])])
    assert one.shape == two.shape == (1, 3, 5)
    assert present(one).sum() == 1
    assert not labelled(two, 3).any()


@given(
    packed(), st.lists(st.sampled_from(["object", "crowd", "difficult"]), min_size=16, max_size=16)
)
def test_crowds_and_difficult_objects_move_with_the_image_and_keep_their_class(
    case: tuple[list[list[Row]], list[list[int]]], kinds: list[str]
) -> None:
    rows, hidden = case
    turns = {"object": lambda row: row, "crowd": crowd, "difficult": difficult}
    names = iter(kinds)
    marked = [[(next(names), row) for row in own] for own in rows]
    targets = pack([[turns[kind](row) for kind, row in own] for own in marked], hidden)
    shown, labels, crowds = regions(targets)
    for image, own in enumerate(marked):
        apart = [(row[0], kind == "crowd") for kind, row in own if kind != "object"]
        found = zip(labels[image].tolist(), crowds[image].tolist(), strict=True)
        kept = [one for one, seen in zip(found, shown[image].tolist(), strict=True) if seen]
        assert kept == apart
        known = labelled(targets, CLASSES)[image].tolist()
        assert known == [label not in hidden[image] for label in range(CLASSES)]
        groups = {int(row[0]) for kind, row in own if kind == "crowd"}
        assert crowded(targets, CLASSES)[image].nonzero().flatten().tolist() == sorted(groups)
        objects = [list(row) for kind, row in own if kind != "crowd"]
        learned = trained(targets)[image]
        assert learned[present(trained(targets))[image]].tolist() == objects
    plain = pack(rows, hidden)
    for move in (lambda t: mirrored(t, SIDE), lambda t: boxes.flipped(t, SIDE), boxes.transposed):
        assert torch.equal(move(move(targets)), targets)
        assert torch.equal(move(targets)[:, :, 1:], move(plain)[:, :, 1:])
