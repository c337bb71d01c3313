"""Where a smaller network lies in the vector of a larger one: the leading block of each tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsight.core.layout import Kind, Layout

TRAVELS = (Kind.SHARED, Kind.BUFFER, Kind.MOVED)


@dataclass(frozen=True, eq=False)
class Selection:
    """The places of a part's travelling values in the travelling vector of the whole."""

    index: Tensor  # [d of the part] int64, each place once
    size: int  # d of the whole

    @classmethod
    def of(cls, whole: Layout, part: Layout) -> Selection:
        """For each tensor of `part` that travels, the leading block of the one of that name.

        Raises ValueError naming the tensor that `whole` lacks, or has smaller, or keeps elsewhere.
        """
        places = torch.arange(whole.size)
        index = torch.empty(part.size, dtype=torch.int64)
        known = {entry.name: entry for entry in whole.entries}
        for entry in part.entries:
            if entry.kind not in TRAVELS:
                continue
            found = known.get(entry.name)
            if found is None:
                raise ValueError(f"it has '{entry.name}', which the full network lacks")
            if found.kind != entry.kind or not _holds(found.shape, entry.shape):
                raise ValueError(
                    f"'{entry.name}' is {list(entry.shape)} here and {list(found.shape)} there"
                )
            block = tuple(slice(0, side) for side in entry.shape)
            entry.view(index).copy_(found.view(places)[block])
        return cls(index[part.travelling], whole.travelling.stop)

    def taken(self, vector: Tensor) -> Tensor:
        """The part's values [d of the part] of the whole's `vector` [d]."""
        return vector[self.index.to(vector.device)]

    def placed(self, vector: Tensor) -> Tensor:
        """The part's `vector` [d of the part] at its places, and zeros elsewhere [d]."""
        made = vector.new_zeros(self.size)
        made[self.index.to(vector.device)] = vector
        return made

    @property
    def everything(self) -> bool:
        """Whether the part is the whole, in the same order."""
        return torch.equal(self.index, torch.arange(self.size))


def _holds(whole: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return len(whole) == len(part) and all(a >= b for a, b in zip(whole, part, strict=True))
