"""Normalisation layers: replaces BatchNorm by GroupNorm, and pools BatchNorm statistics exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedsight.core.errors import ModelError
from fedsight.core.layout import Layout

MOST_GROUPS = 32  # Wu and He, Group Normalization, 2018: 32 groups by default
MIN_CHANNELS = 4  # per group: in a 1 x 1 map, one channel normalises to 0, two to -1 and 1

Statistics = tuple[tuple[str, str], ...]  # names of (running mean, running variance)


class GroupNormAct(nn.GroupNorm):
    """GroupNorm [b, c, ...] followed by the dropout and activation of the layer it replaces."""

    def __init__(self, groups: int, channels: int, eps: float, drop: nn.Module, act: nn.Module):
        super().__init__(groups, channels, eps=eps)
        self.drop = drop
        self.act = act

    def forward(self, input: Tensor) -> Tensor:
        """[b, c, ...] -> [b, c, ...]."""
        out: Tensor = self.act(self.drop(super().forward(input)))
        return out


def groups_for(channels: int) -> int:
    """The largest divisor of `channels` up to 32 that leaves each group at least four channels."""
    most = min(MOST_GROUPS, channels // MIN_CHANNELS)
    return next((groups for groups in range(most, 0, -1) if channels % groups == 0), 1)


def is_batch_norm(module: nn.Module) -> bool:
    """Whether `module` normalises with running statistics: torch's, timm's and torchvision's."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    # Frozen variants of timm and torchvision are not subclasses; neither package is imported here.
    return "BatchNorm" in type(module).__name__ and hasattr(module, "running_mean")


def to_group_norm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm in `module` by GroupNorm, in place; returns it (or its replacement).

    Scale and shift are kept, and so are the names, an activation and dropout that timm fuses
    into the layer, eps and the training flag. A frozen BatchNorm becomes a trainable GroupNorm.
    """
    if is_batch_norm(module):
        return _as_group_norm(module)
    for name, child in module.named_children():
        replacement = to_group_norm(child)
        if replacement is not child:
            setattr(module, name, replacement)
    return module


def guard_group_norms(module: nn.Module) -> None:
    """Let every GroupNorm in `module` learn where nothing before it does.

    PyTorch 2.11 crashes there if images are channels-last: that kernel also writes the gradient of
    an input that needs none. Such an input is handed to the other kernel.
    """
    for part in module.modules():
        if isinstance(part, nn.GroupNorm) and _rows_first not in part._forward_pre_hooks.values():
            part.register_forward_pre_hook(_rows_first)


def _rows_first(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    if inputs and torch.is_grad_enabled() and not inputs[0].requires_grad:
        return (inputs[0].contiguous(), *inputs[1:])
    return None


def _as_group_norm(old: Any) -> nn.GroupNorm:
    channels = int(old.running_mean.numel() if old.running_mean is not None else old.num_features)
    groups, eps = groups_for(channels), float(old.eps)
    act, drop = getattr(old, "act", None), getattr(old, "drop", None)
    new: nn.GroupNorm
    if act is None and drop is None:
        new = nn.GroupNorm(groups, channels, eps=eps)
    else:
        new = GroupNormAct(groups, channels, eps, drop or nn.Identity(), act or nn.Identity())
    with torch.no_grad():
        if old.weight is not None:
            new.weight.copy_(old.weight)
        if old.bias is not None:
            new.bias.copy_(old.bias)
    return new.train(old.training)


class FrozenNorm(nn.Module):
    """A norm [b, c, ...] with a fixed scale and shift for each channel, without parameters.

    `drop` and `act` are those that timm fuses into the layer it replaces, `eps` is that layer's.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        scale: Tensor,
        shift: Tensor,
        eps: float = 1e-5,
        drop: nn.Module | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        # Buffers, so that they are saved with the rest.
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.eps = eps
        self.drop = drop
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, ...] -> [b, c, ...]."""
        shape = (1, -1, *(1,) * (x.dim() - 2))
        out = x * self.scale.view(shape) + self.shift.view(shape)
        out = out if self.drop is None else self.drop(out)
        return out if self.act is None else self.act(out)

    def let_shift_learn(self) -> None:
        """Make the shift a parameter, under the same name."""
        shift = self.shift
        del self.shift
        self.register_parameter("shift", nn.Parameter(shift))


def freeze_norms(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm in `module` by its scale and shift in evaluation mode.

    In place; returns it (or its replacement). Raises ModelError for one without statistics.
    """
    if is_batch_norm(module):
        return _frozen(module)
    for name, child in module.named_children():
        replacement = freeze_norms(child)
        if replacement is not child:
            setattr(module, name, replacement)
    return module


def _frozen(old: Any) -> FrozenNorm:
    if old.running_var is None:
        raise ModelError(
            f"a {type(old).__name__} without running statistics cannot be frozen",
            "use model.norm = 'group' or 'batch'",
        )
    with torch.no_grad():
        mean, var = old.running_mean, old.running_var
        weight = torch.ones_like(var) if old.weight is None else old.weight
        bias = torch.zeros_like(var) if old.bias is None else old.bias
        scale = weight / (var + old.eps).sqrt()
        shift = bias - mean * scale
        drop, act = getattr(old, "drop", None), getattr(old, "act", None)
        new = FrozenNorm(scale.clone(), shift.clone(), float(old.eps), drop, act)
        return new.train(old.training)


def thawed_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of `module` under the names of the network that it was made from.

    A frozen norm becomes a BatchNorm with that scale and shift, mean 0 and variance 1 - eps, which
    gives the same outputs: other programs know BatchNorm.
    """
    state = dict(module.state_dict())
    for prefix, part in module.named_modules():
        if isinstance(part, FrozenNorm):
            scale = state.pop(_join(prefix, "scale"))
            shift = state.pop(_join(prefix, "shift"))
            layer = {"weight": scale, "bias": shift, "running_mean": torch.zeros_like(scale)}
            layer["running_var"] = torch.full_like(scale, 1 - part.eps)
            layer["num_batches_tracked"] = torch.tensor(0)
            state |= {_join(prefix, name): value for name, value in layer.items()}
    return state


def frozen_names(module: nn.Module) -> frozenset[str]:
    """Names of the scale and shift buffers of frozen norms."""
    return frozenset(
        _join(prefix, name)
        for prefix, part in module.named_modules()
        if isinstance(part, FrozenNorm)
        for name, _ in part.named_buffers(recurse=False)
    )


def still(module: nn.Module, frozen: Callable[[str], bool]) -> list[nn.Module]:
    """The layers of `module` with a statistic whose name is `frozen`: in training they stay in
    evaluation mode, so that it does not move."""
    return [
        part
        for prefix, part in module.named_modules()
        if is_batch_norm(part) or not any(part.children())
        if any(frozen(_join(prefix, name)) for name, _ in part.named_buffers(recurse=False))
    ]


def norm_names(module: nn.Module) -> frozenset[str]:
    """Names of all parameters and floating-point buffers of normalisation layers.

    A layer counts if its class name contains "Norm": BatchNorm, GroupNorm, LayerNorm, RMSNorm, and
    timm's variants of them.
    """
    names = set()
    for prefix, part in module.named_modules():
        if "Norm" not in type(part).__name__:
            continue
        own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        names |= {_join(prefix, n) for n, value in own if value.is_floating_point()}
    return frozenset(names)


def statistic_names(module: nn.Module) -> Statistics:
    """The pairs (running mean, running variance) by name, in the module's order."""
    return tuple(
        (_join(prefix, "running_mean"), _join(prefix, "running_var"))
        for prefix, part in module.named_modules()
        if is_batch_norm(part) and getattr(part, "running_mean", None) is not None
    )


def to_moments(vector: Tensor, layout: Layout, statistics: Statistics) -> Tensor:
    """A copy of `vector` [travelling] in which each variance v is replaced by v + mean^2.

    Means and second moments add over samples, but variances do not: averaged in this form, weighted
    by samples, statistics pool exactly (the law of total variance), and `from_moments` restores
    the pooled variance. Pairs that do not travel (personal ones) are left out.
    """
    return _with_variances(vector, layout, statistics, lambda var, mean: var + mean * mean)


def from_moments(vector: Tensor, layout: Layout, statistics: Statistics) -> Tensor:
    """The inverse of `to_moments`; a variance that rounding made negative becomes zero."""
    return _with_variances(
        vector, layout, statistics, lambda moment, mean: (moment - mean * mean).clamp_(min=0)
    )


def _with_variances(
    vector: Tensor,
    layout: Layout,
    statistics: Statistics,
    change: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    out = vector.clone()
    entries = {entry.name: entry for entry in layout.entries}
    for mean_name, var_name in statistics:
        mean, var = entries[mean_name], entries[var_name]
        if var.stop <= layout.travelling.stop and mean.stop <= layout.travelling.stop:
            # In double: the difference of two large squares would lose float32's precision.
            new = change(var.view(vector).double(), mean.view(vector).double())
            var.view(out).copy_(new)
    return out


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
