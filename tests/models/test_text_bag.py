"""The network for texts."""

from __future__ import annotations

import pytest
import torch

from fedsight.core.errors import ModelError
from fedsight.models.zoo.text_bag import TextBag


def test_far_words_count_by_themselves_and_near_ones_by_place() -> None:
    x = torch.tensor([[5.0, 6, 7, 1, 9, 10, 11]]).view(1, 1, 1, 7)
    far, near = x[..., [6, 1, 2, 3, 4, 5, 0]], x[..., [0, 2, 1, 3, 4, 5, 6]]
    network = TextBag(near=2).build(1, 1, 7, 3, seed=0).module
    torch.testing.assert_close(network(x), network(far))
    assert not torch.allclose(network(x), network(near))
    plain = TextBag().build(1, 1, 7, 3, seed=0).module
    torch.testing.assert_close(plain(x), plain(near))


def test_padding_says_nothing_and_is_not_trained() -> None:
    model = TextBag(width=4)
    short = model.build(1, 1, 3, 2, seed=0).module
    long = model.build(1, 1, 6, 2, seed=0).module
    x = torch.tensor([3.0, 4, 5]).view(1, 1, 1, 3)
    padded = torch.nn.functional.pad(x, (0, 3))
    torch.testing.assert_close(short(x), long(padded))
    long(padded).sum().backward()
    assert not long.get_parameter("bag.vectors.weight").grad[0].any()
    assert torch.isfinite(long(torch.zeros(1, 1, 1, 6))).all()


def test_words_share_vectors_and_special_numbers_do_not() -> None:
    network = TextBag(buckets=10).build(1, 1, 1, 2, seed=0).module
    answers = network(torch.tensor([2.0, 10, 18, 1, 9]).view(5, 1, 1, 1))
    torch.testing.assert_close(answers[0], answers[1])
    torch.testing.assert_close(answers[0], answers[2])
    assert not torch.allclose(answers[0], answers[3])


def test_the_head_is_known() -> None:
    assert TextBag().build(1, 1, 8, 2, seed=0).head == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("model", "shape", "cause"),
    [
        (TextBag(), (3, 32, 32), "reads texts"),
        (TextBag(near=2), (1, 1, 4), "no 2 words on each side"),
    ],
)
def test_what_does_not_fit_is_refused(
    model: TextBag, shape: tuple[int, int, int], cause: str
) -> None:
    with pytest.raises(ModelError, match=cause):
        model.build(*shape, 2, seed=0)
