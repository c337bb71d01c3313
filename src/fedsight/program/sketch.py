"""A network in outline, to find out what an algorithm does with each part of one."""

from __future__ import annotations

from torch import nn

from fedsight.models.base import Network


class Sketch(nn.Module):
    """A network with a tensor of each role, to find out what an algorithm does with it."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2) if batch_norm else nn.GroupNorm(1, 2)
        self.head = nn.Linear(2, 2)

    def network(self) -> Network:
        """With its roles."""
        names = dict.fromkeys([*dict(self.named_parameters()), *dict(self.named_buffers())])
        head, norms = (
            frozenset(name for name in names if name.startswith(f"{part}."))
            for part in ("head", "norm")
        )
        statistics: tuple[tuple[str, str], ...] = ()
        if isinstance(self.norm, nn.BatchNorm1d):
            statistics = (("norm.running_mean", "norm.running_var"),)
        return Network(self, head, norms - {"norm.num_batches_tracked"}, statistics)
