"""No adapter: the network's own parameters learn."""

from __future__ import annotations

from typing import ClassVar

from fedsight.models.adapters.base import Adapter, adapters
from fedsight.models.base import Network


@adapters.add("none")
class NoAdapter(Adapter):
    """All parameters of the network learn, or those that `train.only` names."""

    adapts: ClassVar[bool] = False

    def adapt(self, network: Network, seed: int) -> Network:
        """As it is."""
        return network
