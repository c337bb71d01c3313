"""The bytes that a run's protections cost, because shorter codecs do not go with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedsight.engines.protected import planned_reply
from fedsight.privacy.mechanisms.none import Unprotected
from fedsight.privacy.secure import Secure
from fedsight.program.auto_codec import others
from fedsight.program.coding import order_bytes, other_bytes
from fedsight.program.federation import Federation


def shorter_codec(federation: Federation) -> dict[str, Any] | None:
    """The shortest `codec` that `[secure]` and `[privacy]` refuse, and the bytes of a `reply` and
    an `order` as they are and with it (`shortest_reply`, `shortest_order`); None if the protections
    refuse none, or the program has none.

    An order is that to a site which has the last model.
    """
    program = federation.program
    bare = replace(program, secure=Secure(), privacy=Unprotected())
    if not program.secure.masks and program.privacy == bare.privacy:
        return None
    allowed = {name for name, *_ in others(program)}
    refused = [(name, other) for name, _, other in others(bare) if name not in allowed]
    if not refused:
        return None
    reply, order = _bytes(federation)
    sizes = {name: _bytes(federation.under(other)) for name, other in refused}
    name = min(sizes, key=lambda one: sum(sizes[one]))
    if sum(sizes[name]) >= reply + order:
        return None
    shortest = dict(zip(("shortest_reply", "shortest_order"), sizes[name], strict=True))
    return {"codec": name, "reply": reply, "order": order, **shortest}


def _bytes(federation: Federation) -> tuple[int, int]:
    """Of a reply, and of an order to a site that has the last model."""
    order = order_bytes(federation.program, federation.layout) + other_bytes(federation)
    return planned_reply(federation), order
