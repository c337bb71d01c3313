"""A model as one flat vector: `Layout` maps each tensor to a slice, and says who may see it.

The vector is ordered [shared | buffer | moved | personal | frozen], so that what a site sends is a
prefix, and what it receives a longer one. Four-dimensional weights are stored channels-last (O, H,
W, I): bound to a model, they are the channels-last views that convolutions on the CPU prefer, and
loading a vector is one copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import torch
from torch import Tensor, nn

from fedsight.core.errors import ModelError


class Kind(StrEnum):
    """Who may see a slice."""

    SHARED = "shared"  # a parameter that travels and is averaged
    BUFFER = "buffer"  # a running statistic that travels and is pooled by a separate rule
    MOVED = "moved"  # no site trains it: the coordinator moves it, and it travels to the sites only
    PERSONAL = "personal"  # stays at the site
    FROZEN = "frozen"  # neither trained nor exchanged: a site receives it once


KindOf = Callable[[str, Kind], Kind]  # (tensor name, its kind so far) -> kind


@dataclass(frozen=True)
class Entry:
    """One tensor of the model: `vector[start:stop]`."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    start: int

    @property
    def stop(self) -> int:
        """One past the last element."""
        return self.start + self.size

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for side in self.shape:
            size *= side
        return size

    def view(self, vector: Tensor) -> Tensor:
        """The tensor of this entry as a view of `vector` [d]."""
        flat = vector[self.start : self.stop]
        if len(self.shape) != 4:
            return flat.view(self.shape)
        out, inp, height, width = self.shape
        return flat.view(out, height, width, inp).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Layout:
    """The position of each parameter and floating-point buffer of a model in one flat vector."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """The layout of `model`: parameters are shared, floating-point state buffers are buffers.

        Integer buffers (BatchNorm's batch counter) are not learnt and are not in the vector.
        Raises ModelError for parameters that are not float32.
        """
        found: list[tuple[str, tuple[int, ...], Kind]] = []
        for name, value in _tensors(model).items():
            if value.dtype != torch.float32:
                raise ModelError(
                    f"parameter '{name}' is {value.dtype}, not float32",
                    "build the model in float32; precision is a speed setting ([speed])",
                )
            kind = Kind.SHARED if isinstance(value, nn.Parameter) else Kind.BUFFER
            found.append((name, tuple(value.shape), kind))
        return cls._ordered(found)

    @classmethod
    def _ordered(cls, found: list[tuple[str, tuple[int, ...], Kind]]) -> Layout:
        entries: list[Entry] = []
        start = 0
        for kind in Kind:
            for name, shape, its_kind in found:
                if its_kind == kind:
                    entries.append(Entry(name, shape, kind, start))
                    start = entries[-1].stop
        return cls(tuple(entries))

    def rekind(self, kind_of: KindOf) -> Layout:
        """The same tensors with new kinds, reordered so that the travelling part is a prefix."""
        return self._ordered([(e.name, e.shape, kind_of(e.name, e.kind)) for e in self.entries])

    @cached_property
    def size(self) -> int:
        """Length of the whole vector."""
        return self.entries[-1].stop if self.entries else 0

    def length(self, kind: Kind) -> int:
        """Number of elements of `kind`."""
        return sum(entry.size for entry in self.entries if entry.kind == kind)

    def _behind(self, before: slice, kind: Kind) -> slice:
        """The part of `kind`, which begins where `before` ends."""
        return slice(before.stop, before.stop + self.length(kind))

    @cached_property
    def shared(self) -> slice:
        """The parameters that travel."""
        return slice(0, self.length(Kind.SHARED))

    @cached_property
    def buffer(self) -> slice:
        """The statistics that travel."""
        return self._behind(self.shared, Kind.BUFFER)

    @cached_property
    def sent(self) -> slice:
        """What a site's update is of: parameters, then statistics."""
        return slice(0, self.buffer.stop)

    @cached_property
    def moved(self) -> slice:
        """The part that the coordinator moves, and no site."""
        return self._behind(self.buffer, Kind.MOVED)

    @cached_property
    def travelling(self) -> slice:
        """Everything that travels to the sites."""
        return slice(0, self.moved.stop)

    @cached_property
    def personal(self) -> slice:
        """The part that stays at the site."""
        return self._behind(self.moved, Kind.PERSONAL)

    @cached_property
    def frozen(self) -> slice:
        """The part that never changes."""
        return slice(self.personal.stop, self.size)

    @cached_property
    def learning(self) -> int:
        """Number of trainable values: parameters, shared or personal."""
        return self.length(Kind.SHARED) + self.length(Kind.PERSONAL)

    @cached_property
    def kept(self) -> slice:
        """Everything that does not travel: the personal slice, then the frozen one."""
        return slice(self.moved.stop, self.size)

    def bind(self, model: nn.Module, vector: Tensor) -> None:
        """Make the tensors of `model` views of `vector` [size], sharing its memory."""
        tensors = _tensors(model)
        for entry in self.entries:
            tensors[entry.name].data = entry.view(vector)

    def read(self, model: nn.Module) -> Tensor:
        """A new vector [size] with the values of `model`."""
        vector = torch.empty(self.size)
        tensors = _tensors(model)
        for entry in self.entries:
            entry.view(vector).copy_(tensors[entry.name].detach())
        return vector

    def state_dict(self, vector: Tensor) -> dict[str, Tensor]:
        """Contiguous copies by name, as `model.load_state_dict(..., strict=False)` takes them."""
        return {
            e.name: e.view(vector).clone(memory_format=torch.contiguous_format)
            for e in self.entries
        }

    def vector(self, state: dict[str, Tensor]) -> Tensor:
        """The vector [size] of a `state_dict`; ModelError names a missing or misshapen tensor."""
        vector = torch.empty(self.size)
        for entry in self.entries:
            value = state.get(entry.name)
            if value is None or tuple(value.shape) != entry.shape:
                found = "is missing" if value is None else f"has shape {tuple(value.shape)}"
                raise ModelError(
                    f"'{entry.name}' {found}; the model needs {entry.shape}",
                    "use weights that were made for this model and these classes",
                )
            entry.view(vector).copy_(value)
        return vector

    def digest(self) -> str:
        """SHA-256 over names, shapes and kinds: equal if and only if two layouts are equal."""
        text = "\n".join(f"{e.name} {e.shape} {e.kind}" for e in self.entries)
        return hashlib.sha256(text.encode()).hexdigest()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters (tied ones once) and persistent floating-point buffers, in the model's order."""
    persistent = model.state_dict(keep_vars=True)
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    for name, value in model.named_buffers():
        if name in persistent and value.is_floating_point():
            tensors[name] = value
    return tensors
