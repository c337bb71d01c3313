"""A network from outside the package, as a plain module."""

from __future__ import annotations

from torch import Tensor, nn

import fedsight as fs


@fs.register("one-layer")
class OneLayer(nn.Module):
    """Logistic regression on pixels."""

    def __init__(self, channels: int, height: int, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels * height * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))
