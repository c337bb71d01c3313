"""The privacy cost of one update, as the site's own ledger records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedsight.core.errors import DeployError
from fedsight.privacy import event
from fedsight.privacy.base import Mechanism, Plan, Protected
from fedsight.privacy.mechanisms.central import Central
from fedsight.privacy.mechanisms.distributed import Distributed
from fedsight.privacy.mechanisms.matrix import Matrix, coefficients

# Noisy steps of a round at most. 2^24 images, one at a time, would be seen 59,000 times.
MOST_TIMES = 10**12
# A privacy event in plain values, and how often it happens. None: the cost is not known here.
Charge = tuple[Mapping[str, Any] | None, int]


def charge(mechanism: Mechanism, plan: Plan, images: int) -> Charge:
    """The privacy event of one update from a site with `images` training images.

    The event is None if the noise cannot be determined at the site. There are three cases:

    Noise that the site adds itself (`local`, `example`) is known exactly.

    Under `distributed`, the site adds a share and the accounting is of the sum. `plan` must then be
    a plan of secure aggregation (`Secure.facing`) for the number of sites in this site's round.

    Of the coordinator's noise (`central`, `matrix`), the site knows the multiplier but not who else
    takes part. It is charged without amplification, as replace-one neighbours. A program that
    states only epsilon cannot be charged, because the noise it needs depends on the other sites.
    For noise that is correlated over rounds by a matrix C, n rounds cost what n releases with the
    multiplier divided by the column sum of C cost, whichever rounds they are: |C x| <= sum * |x|.

    Raises DeployError for a round of more than `MOST_TIMES` steps.
    """
    if not isinstance(mechanism, Protected):
        return None, 1
    if isinstance(mechanism, Central | Matrix):
        if mechanism.noise_multiplier is None:
            return None, 1
        column_sum = 1.0
        if isinstance(mechanism, Matrix):
            column_sum = float(coefficients(mechanism.bands).sum())
        noise = mechanism.noise_multiplier / column_sum
        return event.gaussian(noise, "replace_one").table(), 1
    if isinstance(mechanism, Distributed) and not plan.honest:
        return None, 1
    site_plan = replace(plan, sizes=(images,))
    ((found, times),) = mechanism.events(site_plan, 1, mechanism.noise(site_plan))
    if times > MOST_TIMES:
        raise DeployError(
            f"the program would take more than {MOST_TIMES:.0e} steps in a round",
            "lower train.epochs or train.steps",
        )
    return found.table(), times
