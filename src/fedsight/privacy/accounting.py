"""Privacy accounting: epsilon of a sequence of noisy releases at a delta, with dp-accounting.

An `Event` is one noisy release. Samplers (`privacy/sampling.py`) and mechanisms create it, so that
its neighbouring relation and its amplification are those of what was actually done. `spent`
composes events; `calibrate` and `rounds_within` solve for the noise and for the number of rounds.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
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
MOST_EPSILON = 200.0  # more, by Rényi divergences, is not computed any closer
MOST_CELLS = 2.0**21  # about, of a composed loss distribution; then the grid becomes wider
SMALL = 1e-3  # chi-squared divergence below which it determines all Rényi divergences
GROUP = 128  # releases that are composed first, where there are more than its square
MOST_KINDS = 64  # different sampled releases, of which each takes a loss distribution
MOST_COUNT = 10**15  # more releases than this are not counted: epsilon is infinite
LEAST_NOISE = 1e-100  # anything less is no noise: its inverse square is hardly a number
MOST_NOISE = 1e6  # more counts as this much: accountants fail on numbers that are nearly 0
CLOSE = 1e-4  # relative accuracy of a calibrated noise multiplier
COARSE = 1e-3  # ten times as fast: for every round
ROUGH = 8e-3  # within a few per cent
SHARE = 8.0  # widths of the grid in the deviation of a sampled loss: then within about 0.1 %
LITTLE = 0.01  # share of the whole variance that no finer grid is needed for
FINEST = 5e-5  # but not finer than this


def need_accounting() -> None:
    """Raise FedSightError unless dp-accounting is installed."""
    if find_spec("dp_accounting") is None:
        raise FedSightError(
            "differential privacy needs dp-accounting, which is not installed",
            "install it with: pip install 'fedsight[privacy]'",
        )


def spent(events: Events, delta: float, method: Method = "pld", grid: float = FINE) -> float:
    """Epsilon of all `events` together at `delta`; infinity if a release has no noise.

    Noise of more than `MOST_NOISE` counts as that much.

    `pld` composes privacy loss distributions (Koskela et al. 2020, Doroshenko et al. 2022), `rdp`
    Rényi divergences (Mironov 2017). With `pld`, Gaussian releases on their own are accounted
    exactly (Balle and Wang 2018). Sampling without replacement and Skellam noise support only
    `rdp`, so all events are composed that way if one of them is among them. The same applies when
    there is so little noise, or there are so many releases, that epsilon is in the hundreds or the
    loss distribution would take gigabytes. So the time that this takes is bounded whatever the
    events are, which others may choose. More than `MOST_COUNT` releases of a kind cost infinitely
    much. If the events have different neighbouring relations, all are treated as replace-one:
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
            event = replace(event, noise=min(event.noise, MOST_NOISE))
            counted[event] = counted.get(event, 0) + count
    if not counted:
        return 0.0
    if any(event.under("replace_one") < LEAST_NOISE for event in counted):
        return math.inf
    if max(counted.values()) > MOST_COUNT:
        return math.inf
    need_accounting()
    return _composed(tuple(counted.items()), delta, method, grid)


@lru_cache(maxsize=4096)  # each round of a run, each resumption and each plan asks again
def _composed(
    events: tuple[tuple[Event, int], ...], delta: float, method: Method, grid: float
) -> float:
    counted = dict(events)
    mixed = len({event.neighbours for event in counted}) > 1
    relation: Neighbours = "replace_one" if mixed else next(iter(counted)).neighbours
    composable = all(event.kind not in ("fixed_size", "skellam") for event in counted)
    if method == "rdp" or not composable or _wide(counted, relation):
        return _rdp(counted, relation, delta)
    if all(event.kind in ("gaussian", "matrix") for event in counted):
        return _pld(counted, relation, delta, grid)  # exact, and at once
    bound = _rdp(counted, relation, delta)
    width = _width(counted, relation, grid)
    if not bound <= MOST_EPSILON or width is None:
        return bound
    return min(bound, _pld(counted, relation, delta, width))  # both are upper bounds


def _wide(counted: Mapping[Event, int], relation: Neighbours) -> bool:
    """Whether privacy losses reach the hundreds; they grow as (sensitivity / noise)^2."""
    losses = {event: event.under(relation) ** -2 for event in counted}
    plain = (event for event in counted if event.kind in ("gaussian", "matrix"))
    whole = sum(losses[event] * counted[event] for event in plain)
    return max(whole, *losses.values()) > WIDE


def _width(counted: dict[Event, int], relation: Neighbours, grid: float) -> float | None:
    """The width of the grid for the loss distribution of these events: `grid`, finer where losses
    are small, or wider if there would be too many cells; None if there are too many on any.

    A loss below the width is rounded to 0 or to the width, which enlarges its variance: by 3 % in
    a run with a sampling rate of 1e-3, and by more than half with one of 1e-4. (Events that this
    hardly concerns do not count.) The distribution of all losses reaches about as far on either
    side as epsilon does at a tiny delta.
    """
    if len(counted) > MOST_KINDS:
        return None
    scales = {event: _scale(event, relation) for event in counted}
    least = LITTLE * sum(count * scales[event] ** 2 for event, count in counted.items())
    sampled = (
        scales[event]
        for event, count in counted.items()
        if event.kind == "poisson" and count * scales[event] * grid > least
    )
    share = SHARE * min(1.0, COARSE / grid)  # a wider grid than for every round is a rough one
    grid = min(grid, max(min(sampled, default=1.0) / share, FINEST))
    reach = 2 * _rdp(counted, relation, 1e-12)
    if reach > grid * MOST_CELLS:  # a power of two, so that single distributions can be kept
        grid = 2.0 ** math.ceil(math.log2(reach / MOST_CELLS))
    rounded = (count * scales[event] * grid for event, count in counted.items())
    return grid if sum(rounded) <= MOST_EPSILON else None


def _scale(event: Event, relation: Neighbours) -> float:
    """About the standard deviation of the privacy loss of one release: at most 1 / noise, and, if
    it is sampled, the square root of its chi-squared divergence."""
    loss = event.under(relation) ** -2
    chi = event.rate * math.sqrt(math.expm1(min(loss, 500.0)))
    return min(chi, math.sqrt(loss)) if event.kind == "poisson" else math.sqrt(loss)


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

    def excess(width: float, logarithm: float) -> float:
        found = spent(events(math.exp(logarithm)), delta, method, width)
        return -math.inf if found == 0 else math.log(found / epsilon)

    at = math.log(min(max(_guess(events(1.0), epsilon, delta), 0.5), 1e3))
    crossing: float | None = at
    slow = any(
        event.kind == "poisson" and _scale(event, event.neighbours) < SHARE * grid
        for event, _ in events(math.exp(at))
    )
    for width in (ROUGH, grid) if slow else (grid,):  # then few trials are left for the fine grid
        at = at if crossing is None else crossing
        crossing = _crossing(partial(excess, width), at, math.log(0.01), math.log(1e6))
    if crossing is None:
        raise FedSightError(
            f"no noise keeps these rounds within epsilon {epsilon:g} at delta {delta:g}",
            "raise epsilon, or plan fewer rounds",
        )
    return math.exp(crossing)


def _guess(unit: Events, epsilon: float, delta: float) -> float:
    """About the noise multiplier whose events cost `epsilon`, from those of a multiplier of 1: as
    if all were Gaussian, under zero-concentrated privacy (Bun and Steinke 2016)."""
    whole = 0.0
    for event, count in unit:
        rate = event.sample / event.population if event.kind == "fixed_size" else event.rate
        noise = event.under(event.neighbours)
        whole += count * (rate / noise) ** 2 if noise else 0.0
    certain = -math.log(delta)
    return math.sqrt(whole / 2) / (math.sqrt(certain + epsilon) - math.sqrt(certain))


def _crossing(excess: Callable[[float], float], at: float, low: float, high: float) -> float | None:
    """Where `excess`, which falls, is no longer above 0: the upper end of an interval of length
    `CLOSE` around that point; `low` if that is enough, None if `high` is not.

    Logarithms of epsilon and of the noise lie almost on a straight line, so each trial is where
    the line through the last two meets 0, and a little beyond, to close the interval. Each trial
    costs an accounting, a second for some samplers.
    """
    ends, slope, before = (low, high), -1.0, None
    for trial in itertools.count():
        over = excess(at)
        if over > 0:
            low = at
        else:
            high = at
        if at == ends[over > 0] or high - low <= CLOSE:
            return None if at == ends[1] and over > 0 else high
        if before is not None and math.isfinite(before[1] - over):
            slope = min(max((over - before[1]) / (at - before[0]), -8.0), -0.5)
        before = at, over
        beyond = 0.4 * CLOSE if over > 0 else -0.4 * CLOSE
        step = min(max(-over / slope + beyond, -math.log(2)), math.log(16))
        at = min(max(at + step, ends[0]), ends[1])
        if trial > 10 or (not low < at < high and at not in ends):
            at = (low + high) / 2
    raise AssertionError


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
    plain = 0.0  # sum of (sensitivity / noise)^2 of Gaussian releases: together they are one
    for event, count in events.items():
        if event.kind in ("gaussian", "matrix"):
            plain += count * event.under(relation) ** -2
            continue
        noise = event.under(relation) if event.kind == "laplace" else event.noise
        found = _loss(event.kind, noise, event.rate, relation, grid)
        found = _repeated(found, count)
        whole = found if whole is None else whole.compose(found)
    if whole is None:
        from dp_accounting import get_epsilon_gaussian  # exact, without a grid

        return float(get_epsilon_gaussian(plain**-0.5, delta))
    if plain:
        whole = whole.compose(_loss("gaussian", plain**-0.5, 1.0, relation, grid))
    return float(whole.get_epsilon_for_delta(delta))


def _repeated(one: Any, count: int) -> Any:
    """The privacy loss distribution of `count` releases like `one`.

    Very many are composed from groups of groups: of a narrow distribution dp-accounting first
    computes size^count, an integer of any number of digits, and its bounds on the tails, which
    decide how much memory it takes, are loose where distributions are narrow and counts large.
    """
    groups, rest = divmod(count, GROUP)
    if groups < GROUP:
        return one.self_compose(count) if count > 1 else one
    tail = 1e-15 / groups  # cut off each; in all, as much as of a single composition
    whole = _repeated(one.self_compose(GROUP, tail), groups)
    return whole.compose(_repeated(one, rest)) if rest else whole


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
    from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS, compute_epsilon

    orders = np.array(DEFAULT_RDP_ORDERS, dtype=np.float64)
    if any(event.kind == "skellam" for event in events):
        orders = orders[orders == np.round(orders)]  # its bound holds for integer orders
    total = np.zeros_like(orders)
    with _quiet():
        for event, count in events.items():
            total += count * _divergences(event, relation, tuple(orders))
    return float(compute_epsilon(orders, total, delta)[0])


@lru_cache(maxsize=256)
def _divergences(
    event: Event, relation: Neighbours, orders: tuple[float, ...]
) -> npt.NDArray[np.float64]:
    """Rényi divergences of one release; for a fixed cohort they take most of a second."""
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    if event.kind == "skellam":
        return _skellam(event, relation, np.array(orders))
    accountant = RdpAccountant(list(orders), _relation(event))
    accountant.compose(_dp_event(event, relation), 1)
    # the public methods convert to epsilon at once, so they cannot be added
    found: npt.NDArray[np.float64] = accountant._rdp
    if event.kind == "poisson" and relation == "add_remove":
        found = _corrected(found, event, orders)
    return found


def _corrected(
    found: npt.NDArray[np.float64], event: Event, orders: tuple[float, ...]
) -> npt.NDArray[np.float64]:
    """Divergences that are lost among rounding errors, and may even come out negative: at least
    order / 2 times the chi-squared divergence, which all are in the limit of small ones."""
    chi = event.rate**2 * math.expm1(min(event.under("add_remove") ** -2, 500.0))
    return np.maximum(found, np.array(orders) / 2 * chi) if chi < SMALL else found


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
    """Silence dp-accounting's message that it excludes an order, which is harmless, and that a
    divergence is negative, which is corrected."""
    log = logging.getLogger("absl")

    def passes(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return "Excluding this order" not in said and "Negative Renyi" not in said

    log.addFilter(passes)
    try:
        yield
    finally:
        log.removeFilter(passes)
