"""What one update of a site costs, as the site's own ledger must see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedsight.privacy import event
from fedsight.privacy.base import Mechanism, Plan, Protected
from fedsight.privacy.mechanisms.central import Central
from fedsight.privacy.mechanisms.distributed import Distributed
from fedsight.privacy.mechanisms.matrix import Matrix, coefficients

Charge = tuple[Mapping[str, Any] | None, int]  # an event in plain values, and how often it happens


def charge(mechanism: Mechanism, plan: Plan, images: int) -> Charge:
    """The noise in one update of a site with so many images; None if nobody can tell here.

    What a mechanism at the site adds is known there. Under `distributed` it is a share, and the sum
    carries what is accounted; `plan` must be of secure aggregation (`Secure.facing`), for rounds of
    as many sites as this one is in.

    Of the coordinator's noise (`central`, `matrix`) only the multiplier is known here, and not who
    else takes part: it counts without any amplification, for a client in the place of another. An
    epsilon alone says nothing, as the noise that it takes depends on the others. Of noise that is
    correlated over rounds by C, n rounds cost what n releases with the multiplier over the sum of
    C's column do, whichever rounds they are: |C x| is at most that sum times |x|.
    """
    if not isinstance(mechanism, Protected):
        return None, 1
    if isinstance(mechanism, Central | Matrix):
        if mechanism.noise_multiplier is None:
            return None, 1
        less = 1.0
        if isinstance(mechanism, Matrix):
            less = float(coefficients(mechanism.bands).sum())
        return event.gaussian(mechanism.noise_multiplier / less, "replace_one").table(), 1
    if isinstance(mechanism, Distributed) and not plan.honest:
        return None, 1
    own = replace(plan, sizes=(images,))
    ((found, times),) = mechanism.events(own, 1, mechanism.noise(own))
    return found.table(), times
