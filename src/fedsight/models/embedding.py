"""A network that returns vectors: a body for images and a head with one vector per person."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PersonHead(nn.Module):
    """One unit vector per person: a fixed start direction plus a learnt offset, normalised.

    Only the offset is a parameter, and it starts at zero. Each site draws the start directions of
    its own people (`start_at`), so that people of different sites start far apart although no
    vector is ever sent. `own` [k] holds the numbers of the site's people, ascending.
    """

    start: Tensor

    def __init__(self, people: int, dimension: int) -> None:
        super().__init__()
        self.move = nn.Parameter(torch.zeros(people, dimension))
        start = F.normalize(torch.randn(people, dimension), dim=1)
        self.register_buffer("start", start, persistent=False)  # drawn by each site, never sent
        self.own = torch.arange(people)

    def vectors(self) -> Tensor:
        """Unit vectors [people, d]."""
        return F.normalize(self.start + self.move, dim=1)

    def start_at(self, people: Tensor, draws: np.random.Generator) -> None:
        """Restrict the head to the site's `people` (numbers), and draw their start directions.

        Training moves a person's vector little, so whoever can repeat these draws knows about
        where it is.
        """
        self.own = people.unique().to(self.start.device)
        start = draws.standard_normal(tuple(self.start.shape), dtype=np.float32)
        self.start.copy_(F.normalize(torch.from_numpy(start), dim=1))

    def forward(self, embedded: Tensor) -> Tensor:
        """Cosines [b, people] of unit vectors [b, d]."""
        return embedded @ self.vectors().T


class Embedding(nn.Module):
    """`body` returns vectors [b, d]; `head` compares them with people and returns cosines.

    `last` names the body's layers that return the vectors, if it was made to return classes.
    """

    def __init__(
        self, body: nn.Module, people: int, dimension: int, last: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.body = body
        self.last = last
        self.head = PersonHead(people, dimension)

    def embed(self, x: Tensor) -> Tensor:
        """Unit vectors [b, d] of images [b, c, h, w].

        In evaluation, the embeddings of an image and its mirror image are added, as is customary: a
        face is nearly symmetric, and the mean of the two is more stable.
        """
        looks = self.body(x) if self.training else self.body(x) + self.body(x.flip(3))
        return F.normalize(looks.float(), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Cosines [b, people]."""
        cosines: Tensor = self.head(self.embed(x))
        return cosines
