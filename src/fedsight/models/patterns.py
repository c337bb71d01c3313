"""Names parts of a network in a config: tensors, layers, the head, the last blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from torch import nn

from fedsight.core.registry import nearest

if TYPE_CHECKING:
    from fedsight.models.base import Network

Patterns = Annotated[tuple[str, ...], Field(strict=False)]

_LAST = re.compile(r"last:(\d+)")
_Part = tuple[str, nn.Module | None]  # a name, and its module; None: a parameter of its own


def matches(name: str, pattern: str, network: Network) -> bool:
    """Whether `pattern` matches the tensor `name`.

    A pattern is a tensor's name, the name of a module that contains it, a wildcard (`blocks.6.*`),
    "head", which matches the last layer whatever its name, or "last:3", which matches the last
    three blocks (`Network.blocks`) and the head.
    """
    if (last := _LAST.fullmatch(pattern)) is not None:
        count, known = int(last[1]), network.blocks
        if not 0 < count <= len(known):
            return False
        return name in network.head or any(name in block for block in known[-count:])
    if pattern == "head" and name in network.head:
        return True
    return name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def instead_of(pattern: str, network: Network, names: Iterable[str], head: bool = True) -> str:
    """What to write instead of a pattern that matches nothing.

    `names` are those of the tensors that can be named; `head`: "head" can be, too.
    """
    if pattern.startswith("last:"):
        count = len(network.blocks)
        if not count:
            return "the network has no blocks before its head"
        return f"the network has {count} blocks: write last:1 to last:{count}"
    stems = {name.rpartition(".")[0] or name for name in names}
    return nearest(pattern, stems | {"head"} if head else stems)


def blocks(module: nn.Module, head: frozenset[str]) -> tuple[frozenset[str], ...]:
    """The names of the tensors of each block of a network before its head, in order.

    Blocks are the parts that the network is built of: the stages of a ResNet or an EfficientNet,
    the blocks of a transformer. A wrapper, the only part at its level that is itself made of
    composed parts, is opened. Single layers belong to the block before them: the ones at the
    beginning are a block too, the stem, and those at the end (a last convolution and norm) belong
    to the last block. Of a network without composed parts, each layer with weights is a block.
    """
    parts = list(_opened("", module, head))
    while (wrapper := _wrapper(parts)) is not None:
        at = parts.index(wrapper)
        assert wrapper[1] is not None
        parts[at : at + 1] = _opened(wrapper[0], wrapper[1], head)
    composed = any(_depth(part) for _, part in parts)
    found: list[set[str]] = []
    for name, part in parts:
        weighs = _weighs(part, name, head)
        if not found or (weighs and (not composed or _depth(part) > 0)):
            found.append(set())
        found[-1].update(_names(name, part) - head)
    return tuple(frozenset(block) for block in found)


def _opened(name: str, module: nn.Module, head: frozenset[str]) -> Iterator[_Part]:
    """The parameters and modules directly in `module` that hold more than the head."""
    prefix = f"{name}." if name else ""
    for own, _ in module.named_parameters(recurse=False):
        if prefix + own not in head:
            yield prefix + own, None
    for own, child in module.named_children():
        if own == "parametrizations":  # of the weights of a layer that has an adapter
            continue
        if _names(prefix + own, child) - head:
            yield prefix + own, child


def _wrapper(parts: list[_Part]) -> _Part | None:
    for level in (2, 1):
        deep = [one for one in parts if _depth(one[1]) >= level]
        if deep:
            return deep[0] if len(deep) == 1 else None
    return None


def _depth(part: nn.Module | None) -> int:
    """0 for a layer, 1 for a module of layers, and so on."""
    if part is None:
        return 0
    inside = [child for _, child in _opened("", part, frozenset()) if child is not None]
    return 1 + max(_depth(child) for child in inside) if inside else 0


def _weighs(part: nn.Module | None, name: str, head: frozenset[str]) -> bool:
    """Whether it has a weight matrix of its own, and not only norms."""
    if part is None:
        return False
    return any(
        value.dim() > 1 and f"{name}.{own}" not in head for own, value in part.named_parameters()
    )


def _names(name: str, part: nn.Module | None) -> set[str]:
    if part is None:
        return {name}
    inside = [*dict(part.named_parameters()), *dict(part.named_buffers())]
    return {f"{name}.{own}" for own in inside}
