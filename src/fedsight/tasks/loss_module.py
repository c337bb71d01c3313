"""A task's loss as a module, for `torch.func`."""

from __future__ import annotations

from torch import Tensor, nn

from fedsight.core.types import Batch
from fedsight.tasks.base import Task


class LossModule(nn.Module):
    """The loss of a batch as a function of a network's parameters and buffers."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task, self.model = task, model

    def forward(self, x: Tensor, y: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Scalar; `hidden` are the batch's unlabelled classes."""
        return self.task.loss(self.model, Batch(x, y, hidden))

    def copied_buffers(self) -> dict[str, Tensor]:
        """Copies of the network's buffers by name, which a call may change in their place."""
        return {name: value.clone() for name, value in self.named_buffers()}
