"""A question whose cost takes gigabytes or hours to compute, in the site's process for its job.

A program's epochs and noise multiplier are the coordinator's, and a question is charged before any
training. So a few steps with little noise, or 10^12 with any, cost as much memory or time as the
coordinator likes, and meanwhile no other job could use the ledger.
"""

from __future__ import annotations

import math
import threading
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, Model, draw, known, noise_images, program

from fedsight.core.errors import ConfigError
from fedsight.governance.costs import fedsight_epsilon
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger, Limit
from fedsight.privacy import accounting
from fedsight.privacy.accounting import COARSE, spent
from fedsight.privacy.event import Event, gaussian, poisson

Attack = Callable[..., AttackedSite]
# A little noise, any steps; much noise, many steps; next to no loss in each of very many.
COSTLY = {
    "little noise": (poisson(0.06, 0.5), 100_000),
    "many steps": (poisson(5.0, 1 / 40), 4 * 10**13),
    "tiny losses": (poisson(2.0, 1e-8), 10**15),
}


class Asked(Exception):  # noqa: N818 - stands for the gigabytes
    """A loss distribution was to be composed."""


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Instead of composing a loss distribution, the widths of the grids that were asked for."""
    widths: list[float] = []

    def asked(events: dict[Event, int], relation: str, delta: float, grid: float) -> float:
        widths.append(grid)
        raise Asked

    monkeypatch.setattr(accounting, "_pld", asked)
    accounting._composed.cache_clear()
    return widths


@pytest.mark.parametrize("how", COSTLY)
def test_the_first_version_composes_it(
    composed: list[float], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It counted the losses of the releases without sampling only."""
    monkeypatch.setattr(accounting, "MOST_EPSILON", math.inf)
    monkeypatch.setattr(accounting, "MOST_CELLS", math.inf)
    with pytest.raises(Asked):
        spent([COSTLY[how]], 1e-5, grid=COARSE)
    assert len(composed) == 1


@pytest.mark.parametrize("how", COSTLY)
def test_ours_bounds_it_without_a_loss_distribution(composed: list[float], how: str) -> None:
    assert spent([COSTLY[how]], 1e-5, grid=COARSE) > 0
    assert not composed


def test_a_distribution_of_some_width_has_a_wider_grid(composed: list[float]) -> None:
    for releases in (60, 2_000):
        with pytest.raises(Asked):
            spent([(poisson(2.0, 0.5), releases)], 1e-5, grid=1e-4)
    assert composed[0] == 1e-4 < composed[1]


def test_many_kinds_of_releases_are_not_composed_one_by_one(composed: list[float]) -> None:
    kinds = [(poisson(1.0 + number / 100, 0.01), 1) for number in range(accounting.MOST_KINDS + 1)]
    assert 0 < spent(kinds, 1e-5, grid=COARSE) < 20
    with pytest.raises(Asked):
        spent(kinds[1:], 1e-5, grid=COARSE)


def test_more_releases_than_the_square_of_a_group_cost_as_much_composed_at_once() -> None:
    event, releases = poisson(20.0, 0.01), accounting.GROUP**2 + 17
    width = accounting._width({event: releases}, "add_remove", COARSE)
    assert width is not None
    one = accounting._loss("poisson", 20.0, 0.01, "add_remove", width)
    whole = one.self_compose(releases).get_epsilon_for_delta(1e-5)
    assert spent([(event, releases)], 1e-5, grid=COARSE) == pytest.approx(whole, rel=1e-6)


def test_a_million_releases_of_a_narrow_distribution_take_no_integer_of_a_million_digits() -> None:
    found = accounting._repeated(_Counted(11), 10**7)
    assert found.count == 10**7
    assert found.largest < accounting.GROUP**2


class _Counted:
    """Counts compositions instead of doing them."""

    def __init__(self, size: int, count: int = 1, largest: int = 1) -> None:
        self.size, self.count, self.largest = size, count, largest

    def self_compose(self, times: int, tail: float = 1e-15) -> _Counted:
        assert times <= accounting.GROUP or self.size > 11
        return _Counted(self.size * times, self.count * times, max(self.largest, times))

    def compose(self, other: _Counted) -> _Counted:
        return _Counted(self.size, self.count + other.count, self.largest)


@pytest.mark.parametrize(
    ("noise", "rate", "releases"), [(1e6, 1e-3, 5 * 10**14), (1e3, 1e-6, 10**14)]
)
def test_tiny_losses_are_not_lost_among_rounding_errors(
    noise: float, rate: float, releases: int
) -> None:
    """In the limit of small losses, the sum is that of one Gaussian release."""
    whole = rate / noise * math.sqrt(releases)
    assert spent([(poisson(noise, rate), releases)], 1e-5, "rdp") > spent(
        [(gaussian(1 / whole), 1)], 1e-5
    )


def test_a_program_cannot_ask_for_so_many_steps(tmp_path: Path) -> None:
    images = draw(tmp_path / "images", noise_images(6))
    with pytest.raises(ConfigError, match="epochs"):
        program(images, train={"epochs": 10**12})


def test_a_site_refuses_a_costly_question_at_once(
    attack: Attack, tmp_path: Path, composed: list[float]
) -> None:
    images = draw(tmp_path / "images", noise_images(6))
    site = attack("ours", images, epsilon=8.0, require=["example_dp"], figures="none")
    privacy = {"name": "example", "noise_multiplier": 0.06}
    of = program(images, privacy=privacy, train={"batch": 3, "epochs": 50_000})
    site.join(of)
    told, _ = site.train(Model(known(of)).travelling)
    assert "contract.epsilon" in told["error"]
    assert not composed


def test_nobody_waits_for_the_ledger_while_a_cost_is_computed(tmp_path: Path) -> None:
    event = gaussian(1.0).table()
    begun, done = threading.Event(), threading.Event()

    def slow(events: list[tuple[Mapping[str, Any], int]], delta: float) -> float:
        begun.set()
        assert done.wait(60)
        return fedsight_epsilon(events, delta)

    limit = Limit(100.0, 1e-5, trusted=False)
    entry = LedgerEntry("update", run="r", question="q", data_set="images", event=event)
    entry = LedgerEntry(**{**entry.__dict__, "enforced": True})
    Ledger(tmp_path)
    first = Ledger(tmp_path, slow)
    asking = threading.Thread(target=first.append, args=(entry, limit))
    asking.start()
    assert begun.wait(60)
    Ledger(tmp_path).append(LedgerEntry("declaration", run="other", data_set="images"))
    done.set()
    asking.join(60)
    assert [one.kind for one in Ledger(tmp_path).entries()] == ["declaration", "update"]


def in_two_levels(one: Any, count: int) -> Any:
    """How very many were composed before: groups, and then all groups at once."""
    groups, rest = divmod(count, accounting.GROUP)
    whole = one.self_compose(accounting.GROUP, 1e-15 / groups).self_compose(groups)
    return whole.compose(one.self_compose(rest)) if rest else whole


def test_very_many_narrow_distributions_take_memory_by_their_width_not_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def peak() -> int:
        accounting._composed.cache_clear()
        tracemalloc.start()
        try:
            assert spent([(poisson(1e3, 1e-4), 10**10)], 1e-6) > 0
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    spent([(poisson(1e3, 1e-4), 10)], 1e-6)  # imports
    ours = peak()
    monkeypatch.setattr(accounting, "_repeated", in_two_levels)
    assert peak() > 5 * ours
