"""The images of one client, as it sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsight.data.base import Part


@dataclass(frozen=True)
class SiteData:
    """The images of one client: indices into a part, each as its site of origin sees it."""

    part: Part
    indices: Tensor  # [n]
    origins: Tensor  # [n] number of the site that an image comes from
    view: Callable[[Tensor, int, Tensor], Tensor]  # (pixels, origin, indices) -> pixels
    # [sites + 1, classes] which classes each site does not label, no site last; None: all label all
    hidden: Tensor | None = None
    # (pixels, origin) -> pixels with the look of their site, as the network takes them; None: as
    # they are
    look: Callable[[Tensor, int], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def pixels(self, positions: Tensor) -> Tensor:
        """Images at `positions` [b] within this site: [b, c, h, w] in [0, 1]."""
        indices = self.indices[positions]
        pixels = self.part.images.read(indices)
        origins = self.origins[positions]
        for origin in origins.unique().tolist():
            mine = origins == origin
            if bool(mine.all()):
                return self.view(pixels, origin, indices)
            pixels[mine] = self.view(pixels[mine], origin, indices[mine])
        return pixels

    def harmonised(self, pixels: Tensor, positions: Tensor) -> Tensor:
        """Pixels [b, c, h, w] of the images at `positions` [b], seen and augmented, with the look
        of their sites: no longer in [0, 1]."""
        if self.look is None:
            return pixels
        found, origins = torch.empty_like(pixels), self.origins[positions]
        for origin in origins.unique().tolist():
            mine = origins == origin
            found[mine] = self.look(pixels[mine], origin)
        return found

    def labels(self) -> Tensor:
        """Class numbers of all images [n] int64."""
        return torch.from_numpy(self.part.labels)[self.indices]

    def targets(self, positions: Tensor) -> Tensor:
        """The targets at `positions` [b]: [b, ...], or class numbers [b]."""
        known = self.part.targets
        whole = torch.from_numpy(self.part.labels) if known is None else known
        return whole[self.indices[positions]]

    def unlabelled(self, positions: Tensor) -> Tensor | None:
        """Which classes the sites of the images at `positions` [b] do not label [b, classes]."""
        return None if self.hidden is None else self.hidden[self.origins[positions]]
