"""What goes from the coordinator to the sites in a round: whole vectors, or encoded differences."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsight.coordinator.session import Session
from fedsight.core.errors import FedSightError
from fedsight.core.rng import derive
from fedsight.core.types import Order
from fedsight.engines.base import Outcome
from fedsight.engines.protected import adopted_bytes, is_rebuilt
from fedsight.program.coding import difference_of

if TYPE_CHECKING:
    from fedsight.coordinator.store import Checkpoint
    from fedsight.coordinator.turns import Turn


@dataclass(frozen=True)
class Held:
    """What sites train from next, where they are sent differences.

    `message` [uint8] makes `vector` [travelling] of the last order's vector, which the sites named
    in `sites` have; others need it whole.
    """

    vector: Tensor
    message: Tensor
    sites: Collection[str]


class Downlink:
    """Makes the orders of a session, and counts their bytes.

    The coordinator keeps its own model, and steps on from that. The sites have a decoded one, and
    that is the run's model: it is measured and delivered.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._difference = difference_of(session.program, session.layout)

    def order(self, now: Checkpoint, round: int) -> Order:
        """The order of `round`, the one after `now`."""
        shared = self._session.program.shared(now.state)
        if now.held is None:
            return Order(round, now.vector, shared)
        return Order(round, now.held.vector, shared, now.held.message)

    def after(self, now: Checkpoint, vector: Tensor, outcome: Outcome, round: int) -> Held | None:
        """What sites train from after `round`, in which they trained from what `now` says and the
        coordinator's model became `vector`. Raises FedSightError if it cannot be encoded."""
        if self._difference is None:
            return None
        held = now.held
        base, last = (now.vector, None) if held is None else (held.vector, held.message)
        try:
            # The sites need the random bits too; nothing that they hide is in the model.
            key = derive(self._session.program.train_seed, "round", round, "codec.down")
            message = self._difference.encode(base, vector, key, last)
            reached = self._difference.decode(base, message)
            if not bool(torch.isfinite(reached).all()):
                raise ValueError("what the sites would make of it is not finite")
        except ValueError as error:
            raise FedSightError(
                f"the model after round {round} cannot be encoded: {error}",
                "choose other codec.down.steps, or lower the learning rates",
            ) from None
        return Held(reached, message, tuple(sorted(one.site for one in outcome.accepted)))

    def bytes(self, now: Checkpoint, order: Order, turn: Turn, outcome: Outcome) -> int:
        """Bytes of all orders of a round: the message for sites whose last reply counted, nothing
        for what sites build themselves, a whole vector for all others and those that lacked what
        they were expected to have; and the algorithm's other vectors, as they are. Before the first
        round sites are sent what does not travel: all of them if only the coordinator has the
        weights, else those that have not fetched them."""
        federation = self._session.federation
        others = turn.orders * 4 * sum(value.numel() for value in order.shared.values())
        asked = {*map(federation.name, turn.clients), *turn.lost}
        lacking = len(outcome.whole & asked)
        begins = now.round == 0 and not self._session.continues
        if begins and self._session.program.opening() is None:
            known = federation.program.model.rebuildable
            others += (lacking if known else federation.population) * adopted_bytes(federation)
        whole = 4 * len(order.vector)
        if is_rebuilt(federation, now.round, order.vector):
            return others + lacking * whole
        if now.held is None:
            return others + turn.orders * whole
        have = len((asked & set(now.held.sites)) - outcome.whole)
        return others + have * len(now.held.message) + (turn.orders - have) * whole
