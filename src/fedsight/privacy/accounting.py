"""Privacy accounting: epsilon of a sequence of noisy releases at a delta, with dp-accounting.

An `Event` is one noisy release. Samplers (`privacy/sampling.py`) and mechanisms create it, so that
its neighbouring relation and its amplification are those of what was actually done. `spent`
composes events; `calibrate` and `rounds_within` solve for the noise and for the number of rounds.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedsight.core.errors import FedSightError
from fedsight.privacy.event import Event, Neighbours

Method = Literal["pld", "rdp"]
Events = Iterable[tuple[Event, int]]  # each with its number of occurrences

FINE = 1e-4  # width of the privacy loss grid; any width gives an upper bound, a wider one is faster
WIDE = 400.0  # sum of (sensitivity / noise)^2 at which epsilon is above 200
COARSE = 1e-3  # within about 1e-4 of the fine grid, ten times as fast: for every round


def need_accounting() -> None:
    """Raise FedSightError unless dp-accounting is installed."""
    if find_spec("dp_accounting") is None:
        raise FedSightError(
            "differential privacy needs dp-accounting, which is not installed",
            "install it with: pip install 'fedsight[privacy]'",
        )


def spent(events: Events, delta: float, method: Method = "pld", grid: float = FINE) -> float:
    """Epsilon of all `events` together at `delta`; infinity if a release has no noise.

    `pld` composes privacy loss distributions (Koskela et al. 2020, Doroshenko et al. 2022), `rdp`
    Rényi divergences (Mironov 2017). Sampling without replacement and Skellam noise support only
    the latter, so all events are composed that way if one of them is among them. The same applies
    when there is so little noise that epsilon is in the hundreds: the loss distribution would take
    gigabytes. If the events have different neighbouring relations, all are treated as replace-one:
    a replacement is a removal and an addition, so the others count at half their noise. Raises
    FedSightError for a delta outside (0, 1).
    """
    if not 0 < delta < 1:
        raise FedSightError(
            f"delta is {delta:g}; it must be between 0 and 1",
            "choose a delta below 1 / number of clients, for example 1e-5",
        )
    counted: dict[Event, int] = {}
    for event, count in events:
        if count > 0:
            counted[event] = counted.get(event, 0) + count
    if not counted:
        return 0.0
    if any(event.noise == 0 for event in counted):
        return math.inf
    need_accounting()
    mixed = len({event.neighbours for event in counted}) > 1
    relation: Neighbours = "replace_one" if mixed else next(iter(counted)).neighbours
    composable = all(event.kind not in ("fixed_size", "skellam") for event in counted)
    if method == "pld" and composable and not _wide(counted, relation):
        return _pld(counted, relation, delta, grid)
    return _rdp(counted, relation, delta)


def _wide(counted: Mapping[Event, int], relation: Neighbours) -> bool:
    """Whether privacy losses reach the hundreds; they grow as (sensitivity / noise)^2."""
    losses = {event: event.under(relation) ** -2 for event in counted}
    plain = (event for event in counted if event.kind in ("gaussian", "matrix"))
    whole = sum(losses[event] * counted[event] for event in plain)
    return max(whole, *losses.values()) > WIDE


def calibrate(
    events: Callable[[float], Events],
    epsilon: float,
    delta: float,
    method: Method = "pld",
    grid: float = COARSE,
) -> float:
    """The smallest noise multiplier, to 4 digits, whose `events` stay within `epsilon`.

    Raises FedSightError if no multiplier below a million suffices.
    """
    if not epsilon > 0:
        raise FedSightError(f"epsilon is {epsilon:g}; it must be above 0", "choose, for example, 3")

    def enough(noise: float) -> bool:
        return spent(events(noise), delta, method, grid) <= epsilon

    low, high = 0.5, 1.0
    while not enough(high):
        low, high = high, high * 2
        if high > 1e6:
            raise FedSightError(
                f"no noise keeps these rounds within epsilon {epsilon:g} at delta {delta:g}",
                "raise epsilon, or plan fewer rounds",
            )
    while low > 0.01 and enough(low):
        low, high = low / 2, low
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def rounds_within(
    events: Callable[[int], Events],
    epsilon: float,
    delta: float,
    most: int,
    method: Method = "pld",
    grid: float = COARSE,
) -> int:
    """The largest number of rounds, at most `most`, whose `events` stay within `epsilon`."""

    def fits(rounds: int) -> bool:
        return spent(events(rounds), delta, method, grid) <= epsilon

    if fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def gaussian_sigma(epsilon: float, delta: float) -> float:
    """Smallest noise multiplier of one Gaussian release (Balle and Wang 2018, Algorithm 1)."""
    need_accounting()
    from dp_accounting import get_sigma_gaussian

    return float(get_sigma_gaussian(epsilon, delta))


def _pld(events: dict[Event, int], relation: Neighbours, delta: float, grid: float) -> float:
    whole: Any = None
    for event, count in events.items():
        if event.kind in (
            "gaussian",
            "matrix",
        ):  # composes exactly: no discretisation error adds up
            found = _loss("gaussian", event.under(relation) / math.sqrt(count), 1.0, relation, grid)
        else:
            noise = event.under(relation) if event.kind == "laplace" else event.noise
            found = _loss(event.kind, noise, event.rate, relation, grid)
            found = found.self_compose(count) if count > 1 else found
        whole = found if whole is None else whole.compose(found)
    return float(whole.get_epsilon_for_delta(delta))


@lru_cache(maxsize=32)
def _loss(kind: str, noise: float, rate: float, relation: Neighbours, grid: float) -> Any:
    """The privacy loss distribution of one event."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as pld

    if kind == "laplace":
        return pld.from_laplace_mechanism(noise, value_discretization_interval=grid)
    if kind == "gaussian":
        return pld.from_gaussian_mechanism(noise, value_discretization_interval=grid)
    add_remove = relation == "add_remove"
    return pld.from_gaussian_mechanism(
        noise,
        value_discretization_interval=grid,
        sampling_prob=rate,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE
        if add_remove
        else NeighboringRelation.REPLACE_ONE,
    )


def _rdp(events: dict[Event, int], relation: Neighbours, delta: float) -> float:
    from dp_accounting.rdp.rdp_privacy_accountant import (
        DEFAULT_RDP_ORDERS,
        RdpAccountant,
        compute_epsilon,
    )

    orders = np.array(DEFAULT_RDP_ORDERS, dtype=np.float64)
    if any(event.kind == "skellam" for event in events):
        orders = orders[orders == np.round(orders)]  # its bound holds for integer orders
    total = np.zeros_like(orders)
    with _quiet():
        for event, count in events.items():
            if event.kind == "skellam":
                total += count * _skellam(event, relation, orders)
                continue
            accountant = RdpAccountant(list(orders), _relation(event))
            accountant.compose(_dp_event(event, relation), count)
            total += accountant._rdp  # the public methods convert at once, so they cannot be added
    return float(compute_epsilon(orders, total, delta)[0])


def _relation(event: Event) -> Any:
    from dp_accounting import NeighboringRelation

    if event.kind == "fixed_size":
        return NeighboringRelation.REPLACE_ONE
    return NeighboringRelation.ADD_OR_REMOVE_ONE


def _dp_event(event: Event, relation: Neighbours) -> Any:
    import dp_accounting

    noise = event.under(relation)
    if event.kind == "laplace":
        return dp_accounting.LaplaceDpEvent(noise)
    gaussian = dp_accounting.GaussianDpEvent(noise)
    if event.kind == "fixed_size":
        return dp_accounting.SampledWithoutReplacementDpEvent(
            event.population, event.sample, gaussian
        )
    if event.kind == "poisson" and relation == "add_remove":
        return dp_accounting.PoissonSampledDpEvent(event.rate, gaussian)
    # No amplification bound is known for replace-one; leaving it out is sound.
    return gaussian


def _skellam(
    event: Event, relation: Neighbours, orders: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Rényi divergences of a Skellam release (Agarwal et al. 2021, Theorem 3.5)."""
    twice = 1 if relation == event.neighbours else 2
    l1, l2, variance = event.l1 * twice, event.l2 * twice, (event.noise * event.l2) ** 2
    near = ((2 * orders - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    return orders * l2**2 / (2 * variance) + np.minimum(near, 3 * l1 / (2 * variance))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence dp-accounting's message that it excludes an order, which is harmless."""
    log = logging.getLogger("absl")

    def passes(record: logging.LogRecord) -> bool:
        return "Excluding this order" not in record.getMessage()

    log.addFilter(passes)
    try:
        yield
    finally:
        log.removeFilter(passes)
