"""Where the frozen layers of a network end: found by trying, and never where an answer changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.models.base import models
from fedsight.models.features import TOGETHER
from fedsight.models.prefix import ELSEWHERE, NONE, Prefix, find_prefix, laid_out

IMAGE = (3, 16, 16)


def answers(module: nn.Module, x: Tensor) -> Sequence[Tensor]:
    return [module(x)]


def found(module: nn.Module, *learns: str, at: str = "") -> Prefix | None:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    names = (name for name, value in tensors.items() if value.is_floating_point())
    chosen = frozenset(name for name in names if name.startswith(learns))
    assert chosen
    return find_prefix(module, IMAGE, chosen, answers, at)


class Net(nn.Module):
    """Layers with functions between them, one ReLU for all, and two ways past the middle one."""

    def __init__(self, past: bool = False, noisy: float = 0.0, tied: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU()
        self.third, self.head = nn.Conv2d(4, 8, 3), nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.ones(1))
        self.past, self.noisy, self.tied = past, noisy, tied

    def forward(self, x: Tensor) -> Tensor:
        """[b, 3, 16, 16] -> [b, 5]."""
        x = self.relu(self.first(x))
        x = F.dropout(x, self.noisy, self.training) * self.scale
        if self.tied:
            x = x * self.head.bias.sum()
        y = F.max_pool2d(self.relu(self.norm(self.second(x))), 2)
        if self.past:
            y = y + F.max_pool2d(x, 2)
        return self.head(self.relu(self.third(y)).mean((2, 3)))


def test_functions_between_layers_and_a_shared_relu_are_no_hindrance() -> None:
    module = Net()
    last, middle = found(module, "head"), found(module, "third", "head")
    assert last is not None
    assert (last.at, last.shape) == ("head", (8,))
    assert middle is not None
    assert (middle.at, middle.shape) == ("third", (4, 7, 7))
    assert found(module, "first", "head") is None, "nothing is before the first layer"


def test_activations_are_those_of_the_whole_network_whatever_is_beside_them() -> None:
    module, images = Net(), torch.rand(TOGETHER + 3, *IMAGE)
    prefix = found(module, "third", "head")
    assert prefix is not None
    each = [prefix.activations(module, images[at : at + 1])[0] for at in (0, 5, TOGETHER + 2)]
    whole = prefix.activations(module, images[:TOGETHER])
    assert torch.equal(each[0], whole[0])
    assert torch.equal(each[1], whole[5])
    rest = prefix.activations(module, images[TOGETHER:])
    assert torch.equal(each[2], rest[2])
    x = images[:TOGETHER].contiguous(memory_format=torch.channels_last)
    module.eval()
    due = module(x)
    with prefix.resumed(module):
        assert torch.equal(module(laid_out(whole.flatten(1), prefix.shape)), due)
    assert torch.equal(module(x), due), "afterwards it takes images again"


@pytest.mark.parametrize(
    ("options", "learns"),
    [
        ({"past": True}, "norm"),  # what the layer before it gets goes past it, too
        ({"noisy": 0.5}, "head"),  # draws that differ in every step
        ({"tied": True}, "head"),  # a tensor that learns, used before its own layer
    ],
)
def test_a_place_where_an_answer_would_change_is_not_taken(
    options: dict[str, Any], learns: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert found(Net(), learns, "third", "head") is not None
    assert not caplog.text
    assert found(Net(**options), learns, "third", "head") is None
    assert NONE in caplog.text


def test_layers_after_which_all_ways_meet_can_be_frozen() -> None:
    prefix = found(Net(past=True), "third", "head")
    assert prefix is not None
    assert prefix.at == "third"


def test_statistics_that_move_are_not_frozen() -> None:
    prefix = found(Net(), "norm.running", "third", "head")
    assert prefix is not None
    assert prefix.at == "norm"


def test_an_earlier_place_can_be_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    module = Net()
    early = found(module, "head", at="third")
    assert early is not None
    assert early == found(module, "third", "head")
    other = found(module, "head", at="fourth")
    assert other is not None
    assert other.at == "head"
    assert ELSEWHERE % "fourth" in caplog.text


def test_the_search_leaves_values_alone() -> None:
    module = Net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    found(module, "third", "head")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    hooks = [len(part._forward_pre_hooks) + len(part._forward_hooks) for part in module.modules()]
    assert sum(hooks) == 0
    assert all("forward" not in vars(part) for part in module.modules())


@pytest.mark.parametrize(
    ("name", "architecture", "learns", "at"),
    [
        ("torchvision", "resnet18", ("layer4.1.", "fc."), "layer4.1"),
        ("torchvision", "mobilenet_v2", ("classifier.",), "classifier"),
        ("timm", "tf_efficientnet_lite0", ("blocks.6.", "bn2.", "classifier."), "blocks.6"),
    ],
)
def test_common_networks_are_cut_where_their_last_layers_begin(
    name: str, architecture: str, learns: tuple[str, ...], at: str
) -> None:
    kind: Any = models.get(name)
    module = kind(architecture=architecture).build(3, 64, 64, 5, 0).module
    names = [n for n, _ in (*module.named_parameters(), *module.named_buffers())]
    chosen = frozenset(n for n in names if n.startswith(learns))
    prefix = find_prefix(module, (3, 64, 64), chosen, answers)
    assert prefix is not None
    assert prefix.at == at


def test_a_tensor_that_learns_may_not_hide_from_the_images_that_are_tried() -> None:
    module = Net(tied=True)
    with torch.no_grad():
        module.first.bias.fill_(-100.0)  # random images are dark to it
    assert found(module, "third.", "norm.") is not None
    assert found(module, "head") is None
