"""A site's own recognisers, and the models that it has not made one of yet."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsight.deploy.site.delivery.received import Outcome, Received, ReceivedOrder


def as_list(home: Path) -> list[dict[str, Any]]:
    """What became of the final model of each run, as values for JSON, the oldest first."""
    return [
        {
            "program": order.program.get("name"),
            "run": order.run,
            "rounds": order.round,
            "wanted": order.wanted,
            **asdict(outcome or Outcome("waiting")),
        }
        for order, outcome in all_of(home)
    ]


def all_of(home: Path) -> list[tuple[ReceivedOrder, Outcome | None]]:
    """The final models that came, and what became of each, the oldest first."""
    received = Received(home)
    orders = ((received.read(key), received.outcome(key)) for key in received.orders())
    return [(order, outcome) for order, outcome in orders if order is not None]
