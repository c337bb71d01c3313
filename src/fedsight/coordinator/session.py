"""The session: a program opened in this process, with everything that its rounds need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from fedsight.coordinator.protection import Protection
from fedsight.core.layout import Layout
from fedsight.models.base import Network
from fedsight.privacy.base import Plan
from fedsight.program.federation import Federation
from fedsight.program.program import Program


@dataclass(frozen=True)
class Session:
    """What the coordinator works with: federation, network, layout, plan, protection.

    The coordinator's noise and the cohorts of protected runs are drawn from `secret`, or from the
    program's seed if it is None, as in a simulation. `continues`: the sites have taken part under
    another program of the run before, and have what does not travel.
    """

    federation: Federation
    secret: int | None = None
    continues: bool = False

    @property
    def program(self) -> Program:
        """The program that is run."""
        return self.federation.program

    @property
    def network(self) -> Network:
        """The network, built once in this process."""
        return self.federation.network

    @property
    def layout(self) -> Layout:
        """The position of each tensor in the vector."""
        return self.federation.layout

    @property
    def initial(self) -> Tensor:
        """The vector [size] before the first round."""
        return self.federation.initial

    @property
    def plan(self) -> Plan:
        """The plan that the accountant needs."""
        return self.federation.accounted

    @cached_property
    def protection(self) -> Protection:
        """What the privacy mechanism does between rounds.

        Raises ConfigError when not even one round fits into the target epsilon.
        """
        return Protection(self.federation, self.secret)
