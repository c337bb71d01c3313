"""What is said of a network that learns in part: how much learns, and what travels in a round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsight.language.message import Message, message
from fedsight.runs.progress import size

if TYPE_CHECKING:
    from fedsight.program.federation import Federation


def learning(federation: Federation) -> Message | None:
    """Parameters that learn and travel, and a site's bytes in a round; None if all of them do."""
    from fedsight.core.layout import Kind
    from fedsight.engines.protected import planned_reply
    from fedsight.program.coding import order_bytes, other_bytes

    layout, program = federation.layout, federation.program
    every = sum(value.numel() for value in federation.network.module.parameters())
    if layout.length(Kind.SHARED) == layout.learning == every:
        return None
    return message(
        "{learning:,} of {all:,} parameters learn and {travelling:,} travel: in a round a site "
        "receives {received} and sends {sent}",
        learning=layout.learning,
        all=every,
        travelling=layout.length(Kind.SHARED) + layout.length(Kind.MOVED),
        received=size(order_bytes(program, layout) + other_bytes(federation)),
        sent=size(planned_reply(federation)),
    )
