"""Another device on a machine that has none: shapes alone, or real values that carry a mark.

`fake` makes tensors without values that torch takes to be on a GPU, and torch itself refuses to
mix them with tensors on the CPU. It cannot run code whose shapes depend on values (boxes that were
found, pixels that are labelled). For that there is `Marked`: real computation on the CPU, in which
a tensor counts as on the device when it came from one that does, and mixing is refused alike.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

FAKE = "cuda"
_DEVICE = torch.device(FAKE, 0)
_CPU = torch.device("cpu")


class Fake:
    """Tensors without values on a GPU that is not there."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode()

    def tensor(self, value: Tensor, device: str = FAKE) -> Tensor:
        """A tensor like `value` on `device`."""
        shape, strides, dtype = value.shape, value.stride(), value.dtype
        with self.mode:
            return torch.empty_strided(shape, strides, dtype=dtype, device=device)

    def module(self, module: nn.Module) -> nn.Module:
        """A copy of `module` whose tensors are all on the GPU."""
        made = copy.deepcopy(module)
        for part in made.modules():
            for table in (part._parameters, part._buffers, vars(part)):
                for name, value in table.items():
                    if isinstance(value, nn.Parameter):
                        table[name] = nn.Parameter(self.tensor(value.data), value.requires_grad)
                    elif isinstance(value, Tensor):
                        table[name] = self.tensor(value)
        return made


_DEVICE_OF = Tensor.device.__get__  # type: ignore[attr-defined]
_LOOKS = tuple(
    getattr(Tensor, name).__get__ for name in ("shape", "dtype", "layout", "requires_grad")
)
_VALUES = (Tensor.numpy, Tensor.__array__)
_INDEXED = (Tensor.__getitem__, Tensor.__setitem__)  # an index may be on the CPU


class MixedError(AssertionError):
    """Tensors of two devices met."""


class Marked(TorchFunctionMode):
    """While active, tensors given to `mark` count as being on a GPU, and so does what is made of
    them, what is made with `device=x.device`, and what `.to(x.device)` brings there."""

    def __init__(self) -> None:
        super().__init__()
        self._there: dict[int, weakref.ref[Tensor]] = {}

    def mark(self, value: Any) -> Any:
        """`value` with each tensor in it (or in a module) counted as on the GPU."""
        if isinstance(value, nn.Module):
            tensors = [*value.parameters(), *value.buffers()]
            tensors += [one for part in value.modules() for one in vars(part).values()]
        else:
            tensors = tree_leaves(value)
        for tensor in tensors:
            self._add(tensor)
        return value

    def marked(self, value: Any) -> bool:
        """Whether a tensor counts as on the GPU."""
        found = self._there.get(id(value))
        return found is not None and found() is value

    def _add(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._there[id(value)] = weakref.ref(value)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        sent = _DEVICE in [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        args, kwargs = tree_map(lambda leaf: _CPU if _is_gpu(leaf) else leaf, (args, kwargs or {}))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if self.marked(tensor)]
        if func == _DEVICE_OF:
            return _DEVICE if there else _CPU
        if func in _LOOKS:
            return func(*args, **kwargs)
        if func is Tensor.cpu or (func is Tensor.to and sent):
            made = func(*args, **kwargs).view_as(args[0])  # a tensor of its own
            if sent:
                self._add(made)
            return made
        if func in _VALUES and there:
            raise MixedError(f"{func} of a tensor on the GPU")
        away = [tensor for tensor in tensors if not self.marked(tensor) and tensor.dim()]
        if func in _INDEXED:
            away = [tensor for tensor in away if tensor is args[0]]
        if there and away and func is not Tensor.copy_:
            raise MixedError(f"{func} of tensors on the GPU and on the CPU: {args}")
        made = func(*args, **kwargs)
        if there or sent:
            self.mark(made)
        return made


def _is_gpu(leaf: Any) -> bool:
    return isinstance(leaf, torch.device) and leaf == _DEVICE
