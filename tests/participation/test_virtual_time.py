"""Virtual time: what a site takes follows from its speed, its line, delays and its seed."""

from __future__ import annotations

import math
import statistics
from typing import Any

import federations
import pytest

from fedsight.core.draws import draws
from fedsight.participation.timing import SiteTiming, Timing
from fedsight.program.virtual_time import VirtualTime


def clock(**sections: Any) -> VirtualTime:
    return VirtualTime(federations.federation(**sections))


def test_a_site_takes_its_images_over_its_speed_its_bytes_over_its_line_and_a_delay() -> None:
    timing = {"images_per_second": 20.0, "bytes_per_second": 1000.0, "delay_seconds": 3.0}
    of = federations.federation(timing=timing, train={"epochs": 2})
    travels = of.layout.travelling.stop
    expected = 2 * 40 / 20 + 8 * travels / 1000 + 3
    assert VirtualTime(of).seconds(1, 0) == pytest.approx(expected)
    halved = federations.federation(
        timing=timing, train={"epochs": 2}, codec={"up": {"steps": ["float16"]}}
    )
    sent = sum(spec.bytes for spec in halved.parts.values())
    assert sent < 2.1 * travels
    expected = 2 * 40 / 20 + (4 * travels + sent) / 1000 + 3
    assert VirtualTime(halved).seconds(1, 0) == pytest.approx(expected)


def test_a_site_with_a_narrower_network_and_the_coordinator_tell_the_same_time() -> None:
    """Or they would not decide on the same number of epochs."""
    of = federations.federation(
        model={"width": 16, "groups": [{"sites": ["site-01"], "width": 4}]},
        timing={"images_per_second": 40.0, "bytes_per_second": 1000.0, "partial": True},
        train={"epochs": 5},
        rounds={"deadline": 65.0},
    )
    member = of.member(1)
    assert of.layout.travelling.stop == 7738  # 4 bytes each, both ways: 61.904 s
    assert member.layout.travelling.stop < of.layout.travelling.stop
    coordinator, site = VirtualTime(of), VirtualTime(member)
    assert coordinator.seconds(1, 1) == site.seconds(1, 1)
    for time in (coordinator, site):
        assert time.lessened(1, "site-01", 40).train.epochs == 3


def test_without_settings_no_time_passes() -> None:
    time = clock()
    assert not time.passes
    assert time.seconds(1, 0) == 0.0
    assert not time.is_lost(1, 0)


def test_groups_differ_in_what_they_say() -> None:
    slow = {"sites": ["site-01", "site-02*"], "images_per_second": 1.0}
    time = clock(timing={"images_per_second": 10.0, "delay_seconds": 1.0, "groups": [slow]})
    assert [time.seconds(5, client) for client in range(3)] == [5.0, 41.0, 41.0]
    assert Timing(groups=(SiteTiming(sites=("a",), dropout=0.5),)).passes
    (problem,) = Timing(groups=(SiteTiming(sites=("b*",)),)).check_sites(["a"])
    assert problem.cause == "no site is called 'b*'"


def test_delays_have_their_distributions() -> None:
    def delays(**settings: Any) -> list[float]:
        timing = Timing(delay_seconds=2.0, **settings)
        return [timing.delayed(2.0, draws(0, number)) for number in range(4000)]

    assert set(delays()) == {2.0}
    assert statistics.mean(delays(delay="exponential")) == pytest.approx(2.0, rel=0.06)
    long = delays(delay="lognormal", delay_sigma=1.5)
    assert statistics.median(long) == pytest.approx(2.0, rel=0.08)
    logs = [math.log(value) for value in long]
    assert statistics.stdev(logs) == pytest.approx(1.5, rel=0.05)


def test_a_sites_speed_stays_and_its_delay_is_drawn_again() -> None:
    time = clock(timing={"images_per_second": 10.0, "spread": 1.0})
    assert time.seconds(1, 0) == time.seconds(9, 0) != time.seconds(1, 1)
    time = clock(timing={"delay": "exponential", "delay_seconds": 1.0})
    assert len({time.seconds(round, 0, attempt) for round in (1, 2) for attempt in (1, 2)}) == 4
    assert time.seconds(1, 0) == time.seconds(1, 0)


def test_drop_outs_have_their_probability() -> None:
    time = clock(timing={"dropout": 0.2})
    lost = [time.is_lost(round, 0) for round in range(2000)]
    assert sum(lost) / 2000 == pytest.approx(0.2, abs=0.03)


def test_a_slow_site_does_as_many_epochs_as_it_can() -> None:
    groups = [{"sites": ["site-01"], "images_per_second": 4.0}]
    groups += [{"sites": ["site-02"], "images_per_second": 1.0}]
    of = federations.federation(
        timing={"images_per_second": 100.0, "partial": True, "groups": groups},
        train={"epochs": 5},
        rounds={"deadline": 30.0},
    )
    time = VirtualTime(of)
    done = [time.lessened(1, of.name(client), 40).train.epochs for client in range(3)]
    assert done == [5, 3, 1]
    assert [time.seconds(1, client) for client in range(3)] == [2.0, 30.0, 40.0]
