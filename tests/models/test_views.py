"""What a detector finds in the mean of several views turns with the image, up to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.core.errors import ModelError
from fedsight.models.base import models
from fedsight.models.detector import HeatmapDetector
from fedsight.models.views import Views, averaged

SIDE, STRIDE, CLASSES = 32, 4, 2


def box(image: Tensor) -> Tensor:
    """The box around what is bright in [h, w]."""
    rows, columns = ((image > 0.5).any(axis).nonzero().flatten() for axis in (1, 0))
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


def seer(x: Tensor) -> Tensor:
    """A body without any error: one class's heat is that of the cell's pixels, the other's 0, and
    the distances to the sides are those of the bright block in each image [b, 1, h, w]."""
    heat = torch.nn.functional.avg_pool2d(x, STRIDE)
    middles = [(torch.arange(side) + 0.5) * STRIDE for side in heat.shape[2:]]
    down, across = torch.meshgrid(*middles, indexing="ij")
    grids = []
    for image in x[:, 0]:
        left, top, right, bottom = box(image)
        sides = torch.stack([across - left, down - top, right - across, bottom - down])
        grids.append((sides / STRIDE).clamp(min=1e-3).log())
    return torch.cat([heat, torch.zeros_like(heat), torch.stack(grids)], 1)


@given(
    st.sampled_from([2, 4, 8]),
    st.lists(st.tuples(*[st.integers(0, SIDE - 10)] * 2, *[st.integers(4, 10)] * 2), min_size=1),
)
def test_what_is_seen_without_error_stays(
    views: Views, blocks: list[tuple[int, int, int, int]]
) -> None:
    x = torch.zeros(len(blocks), 1, SIDE, SIDE)
    for image, (left, top, width, height) in enumerate(blocks):
        x[image, 0, top : top + height, left : left + width] = 1.0
    torch.testing.assert_close(averaged(seer, x, views), seer(x))


def network(views: Views = 1, size: tuple[int, int] = (SIDE, SIDE), **settings: Any) -> Any:
    """An untrained detector, which sees each view in another way."""
    kind = models.get("small_detector")(width=4, views=views, **settings)
    module = kind.build(1, *size, CLASSES, 0).module.eval()
    assert isinstance(module, HeatmapDetector)
    module.body.heat.weight.data.mul_(8.0)  # scores so far apart that rounding swaps none
    return module


def test_one_view_is_the_network_itself() -> None:
    x, one = torch.rand(3, 1, SIDE, SIDE), network()
    assert torch.equal(averaged(one, x, 1), one(x))


def test_a_mean_of_two_views_is_that_of_the_image_and_its_mirror_image() -> None:
    x, one = torch.rand(2, 1, SIDE, SIDE), network()
    other = one(x.flip(3)).flip(3)
    left, top, right, bottom = other[:, CLASSES:].unbind(1)
    wanted = one(x) + torch.cat([other[:, :CLASSES], torch.stack([right, top, left, bottom], 1)], 1)
    torch.testing.assert_close(averaged(one, x, 2), wanted / 2)


def test_a_mean_of_halves_is_rounded_once() -> None:
    """Grids of an accelerator's short numbers are added up in float32."""
    x = torch.rand(2, 1, SIDE, SIDE)

    def short(seen: Tensor) -> Tensor:
        return network_of_sums(seen).bfloat16()

    found = averaged(short, x, 8)
    assert torch.equal(found, averaged(lambda seen: short(seen).float(), x, 8))


def network_of_sums(x: Tensor) -> Tensor:
    """A grid [b, CLASSES + 4, h, w] of values that differ in each view."""
    weights = torch.linspace(0.1, 1.0, SIDE)
    return (x * weights + x.cumsum(2)).expand(-1, CLASSES + 4, -1, -1)


def turned(found: Tensor, move: str) -> Tensor:
    """The rows [b, m, 6] after the image was moved."""
    label, score, left, top, right, bottom = found.unbind(2)
    if move == "mirror":
        left, right = SIDE - right, SIDE - left
    elif move == "flip":
        top, bottom = SIDE - bottom, SIDE - top
    else:
        left, top, right, bottom = top, left, bottom, right
    return torch.stack([label, score, left, top, right, bottom], 2)


MOVES = {
    "mirror": lambda x: x.flip(3),
    "flip": lambda x: x.flip(2),
    "transpose": lambda x: x.transpose(2, 3),
}


@pytest.mark.parametrize(("views", "moves"), [(2, ["mirror"]), (4, ["flip"]), (8, list(MOVES))])
def test_boxes_turn_with_the_image(views: Views, moves: list[str]) -> None:
    x = torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    one = network(views)
    with torch.inference_mode():
        found = one.find(x)
        for move in moves:
            seen = found[:, :, 1] > 0
            moved = one.find(MOVES[move](x))
            assert torch.equal(moved[:, :, 1] > 0, seen)
            assert seen.sum() > 4
            torch.testing.assert_close(moved[seen], turned(found, move)[seen], atol=1e-4, rtol=1e-4)
            # and those of a single view do not, or this would show nothing
            alone = network()
            apart = alone.find(MOVES[move](x)) - turned(alone.find(x), move)
            assert apart[:, :4].abs().max() > 0.1


def test_views_change_neither_the_loss_nor_the_weights() -> None:
    x = torch.rand(2, 1, SIDE, SIDE)
    targets = torch.tensor([[[0.0, 4, 4, 20, 16]]] * 2)
    known = torch.ones(2, CLASSES, dtype=torch.bool)
    losses = [network(views).loss(x, targets, known) for views in (1, 8)]
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("views", "size", "cause"),
    [(2, (32, 30), "elsewhere"), (8, (32, 48), "across the diagonal")],
)
def test_views_that_do_not_fit_upon_one_another_are_refused(
    views: Views, size: tuple[int, int], cause: str
) -> None:
    with pytest.raises(ModelError, match=cause) as caught:
        network(views, size)
    assert "model.views" in caught.value.cure
