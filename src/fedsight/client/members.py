"""A client for each network of a federation: sites of one group share one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

from fedsight.client.bound_model import BoundModel
from fedsight.core.types import Memory
from fedsight.program.federation import Federation

Bound = TypeVar("Bound", bound=BoundModel)


class Members(Generic[Bound]):
    """The clients of a federation, each made when a site with its network is first met."""

    def __init__(self, federation: Federation, make: Callable[[Federation], Bound]) -> None:
        """`make` gives a client of a federation, which may be a member of this one."""
        self._federation, self._make = federation, make
        self._made: dict[int | None, Bound] = {}
        self.of(None)  # what fails, fails here

    def of(self, site: int | None) -> Bound:
        """The client with the network of a site; None: with the one that travels."""
        member = self._federation.member(site)
        if member.group not in self._made:
            self._made[member.group] = self._make(member)
        return self._made[member.group]

    def loaded(self, vector: Tensor, site: int | None, memory: Memory) -> Bound | None:
        """The client with the model that `vector`, which travels, is at a site that remembers
        `memory`; None if the site has a part of its own and never trained it: that is untrained."""
        client = self.of(site)
        if site is not None and client.federation.keeps and "personal" not in memory:
            return None
        client.load(vector, memory)
        return client
