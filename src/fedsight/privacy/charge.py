"""What one update of a site costs, as the site's own ledger must see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedsight.privacy import event
from fedsight.privacy.base import Mechanism, Plan, Protected
from fedsight.privacy.mechanisms.central import Central

Charge = tuple[Mapping[str, Any] | None, int]  # an event in plain values, and how often it happens


def charge(mechanism: Mechanism, plan: Plan, images: int) -> Charge:
    """The noise in one update of a site with so many images; None if nobody can tell here.

    What a mechanism at the site adds is known there. Of the coordinator's noise only the multiplier
    is, and not who else takes part: it counts without any amplification, for a client in the place
    of another. Noise that is correlated over rounds is no cost of a single round.
    """
    if not isinstance(mechanism, Protected):
        return None, 1
    if isinstance(mechanism, Central):
        if mechanism.noise_multiplier is None:
            return None, 1
        return event.gaussian(mechanism.noise_multiplier, "replace_one").table(), 1
    if mechanism.registered not in ("local", "example"):
        return None, 1
    own = replace(plan, sizes=(images,))
    ((found, times),) = mechanism.events(own, 1, mechanism.noise(own))
    return found.table(), times
