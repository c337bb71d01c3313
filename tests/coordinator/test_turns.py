"""Who takes part in a synchronous round in virtual time: deadline, drop-outs, who is there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import federations
import pytest
from federations import Diary

from fedsight.coordinator.loop import run
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import SiteError
from fedsight.engines.in_process import InProcessEngine
from fedsight.program.budget import passes_by_site, spent

SPAN = {"site": "site-00", "begin": 0.0, "end": 1.0}


def lines(**sections: Any) -> list[Any]:
    diary = Diary()
    federations.learn(federations.federation(**sections), diary=diary)
    return diary.lines


def test_a_round_lasts_as_long_as_its_slowest_site() -> None:
    groups = [{"sites": ["site-01"], "images_per_second": 4.0}]
    found = lines(timing={"images_per_second": 40.0, "groups": groups})
    assert [line["virtual_seconds"] for line in found] == [10.0, 20.0]
    assert all("staleness" not in line for line in found)


def test_without_virtual_time_the_history_has_none() -> None:
    assert all("virtual_seconds" not in line for line in lines())


def test_virtual_time_alone_changes_nothing() -> None:
    plain = federations.learn(federations.federation())
    timed = federations.learn(federations.federation(timing={"delay_seconds": 9.0}))
    assert federations.sha(plain.vector) == federations.sha(timed.vector)


def test_a_deadline_closes_a_round_with_who_answered() -> None:
    groups = [{"sites": ["site-01"], "images_per_second": 4.0}]
    timing = {"images_per_second": 40.0, "groups": groups}
    found = lines(timing=timing, rounds={"deadline": 5.0, "quorum": 2})
    for number, line in enumerate(found, 1):
        assert line["virtual_seconds"] == 5.0 * number
        assert (line["cohort"], line["replies"]) == (3, 2)
        assert line["sites"] == ["site-00", "site-02"]
        assert line["rejected"] == {
            "site-01": "would have taken 10 virtual seconds, and rounds.deadline is 5"
        }
    with pytest.raises(SiteError, match=r"2 good replies of 3, and needs all.*virtual seconds"):
        lines(timing=timing, rounds={"deadline": 5.0})


def test_with_partial_work_the_slow_site_answers_in_time_with_fewer_epochs() -> None:
    groups = [{"sites": ["site-01"], "images_per_second": 8.0}]
    timing = {"images_per_second": 40.0, "groups": groups, "partial": True}
    sections = {"train": {"epochs": 2}, "rounds": {"deadline": 6.0}}
    of, diary = federations.federation(timing=timing, **sections), Diary()
    partly = federations.learn(of, diary=diary)
    assert [line["virtual_seconds"] for line in diary.lines] == [5.0, 10.0]
    assert all(line["replies"] == 3 for line in diary.lines)
    wholly = federations.learn(federations.federation(**sections))
    assert federations.sha(partly.vector) != federations.sha(wholly.vector)
    images = [40 * 2, 40, 40 * 2]
    engine = InProcessEngine(of)
    federations.learn(of, engine)
    engine.close()
    assert engine.seen == 2 * sum(images)


def test_a_drop_out_costs_the_whole_deadline() -> None:
    timing = {"delay_seconds": 1.0, "dropout": 0.3}
    found = lines(timing=timing, rounds={"rounds": 12, "deadline": 50.0, "quorum": 1}, seed=1)
    assert {line["replies"] for line in found} >= {1, 3}
    ends = 0.0
    for line in found:
        ends += 1.0 if line["replies"] == 3 else 50.0
        assert line["virtual_seconds"] == ends
        assert set(line["rejected"].values()) <= {"dropped out (timing.dropout)"}


def test_a_round_waits_until_enough_sites_are_there() -> None:
    spans = [SPAN, {**SPAN, "site": "site-01", "begin": 2.0, "end": 4.0}]
    spans += [{**SPAN, "site": "site-02", "begin": 3.0, "end": 5.0}]
    found = lines(
        participation={"name": "trace", "spans": spans},
        timing={"delay_seconds": 600.0},
        rounds={"rounds": 3, "cohort": 2},
    )
    assert [line["sites"] for line in found] == [["site-01", "site-02"]] * 3
    assert [line["virtual_seconds"] / 3600 for line in found] == pytest.approx(
        [3 + 1 / 6, 3 + 2 / 6, 3 + 3 / 6]
    )
    again = lines(
        participation={"name": "trace", "spans": spans},
        timing={"delay_seconds": 3000.0},
        rounds={"rounds": 3, "cohort": 2, "deadline": 3600.0},
    )
    # The third round begins when the trace has begun again.
    assert [line["virtual_seconds"] / 3600 for line in again] == pytest.approx(
        [3 + 5 / 6, 3 + 10 / 6, 8 + 5 / 6]
    )


def test_buffered_rounds_wait_for_the_day_too() -> None:
    found = lines(
        participation={"name": "trace", "spans": [SPAN, {**SPAN, "site": "site-01", "begin": 0.5}]},
        timing={"delay_seconds": 1500.0},
        rounds={"rounds": 4, "mode": "buffered", "buffer": 1},
    )
    assert {site for line in found for site in line["sites"]} == {"site-00", "site-01"}
    hours = [line["virtual_seconds"] / 3600 for line in found]
    assert hours == sorted(hours)


def test_power_of_choice_follows_the_losses_that_sites_replied_with(tmp_path: Path) -> None:
    sections = {
        "split": {"name": "labels", "sites": 5, "labels": 2},
        "rounds": {"rounds": 8, "cohort": 2},
        "participation": {"name": "power-of-choice", "candidates": 5},
    }
    of, diary = federations.federation(**sections), Diary()
    whole = federations.learn(of, diary=diary)
    asked = [line["sites"] for line in diary.lines]
    assert len({site for sites in asked[:3] for site in sites}) == 5  # the unknown come first
    for before, line in zip(diary.checkpoints[2:], diary.lines[3:], strict=False):
        losses = before.losses
        assert losses is not None
        assert math.inf not in losses
        worst = sorted(range(5), key=lambda client: -losses[client])[:2]
        assert line["sites"] == sorted(of.name(client) for client in worst)
    store = RunStore(tmp_path)
    store.save_checkpoint(diary.checkpoints[3])
    engine, again = InProcessEngine(of), Diary()
    start = store.load_checkpoint()
    assert start is not None
    assert start.losses == diary.checkpoints[3].losses
    found = run(Session(of), engine, federations.overall(of), [again], start)
    engine.close()
    assert federations.sha(found.vector) == federations.sha(whole.vector)


def test_poisson_cohorts_vary_and_one_may_be_empty() -> None:
    found = lines(participation={"name": "poisson"}, rounds={"rounds": 12, "cohort": 1}, seed=2)
    sizes = [line["cohort"] for line in found]
    assert 0 in sizes
    assert max(sizes) > 1


def test_baselines_take_as_many_passes_as_slow_sites_did() -> None:
    groups = [{"sites": ["site-01"], "images_per_second": 8.0}]
    timing = {"images_per_second": 40.0, "groups": groups, "partial": True}
    of, diary = (
        federations.federation(timing=timing, train={"epochs": 2}, rounds={"deadline": 6.0}),
        Diary(),
    )
    federations.learn(of, diary=diary)
    found = passes_by_site(of, diary.lines)
    assert found == {"site-00": 4.0, "site-01": 2.0, "site-02": 4.0}
    assert spent(of, diary.lines).passes == pytest.approx(10 / 3)


def test_a_site_that_comes_while_another_trains_begins_at_once() -> None:
    """Two come after 36 s, and fill the buffer long before the slow one has answered."""
    spans = [{**SPAN, "end": 24.0}]
    spans += [{"site": name, "begin": 0.01, "end": 24.0} for name in ("site-01", "site-02")]
    slow = [{"sites": ["site-00"], "delay_seconds": 1000.0}]
    (line,) = lines(
        timing={"delay_seconds": 1.0, "groups": slow},
        participation={"name": "trace", "spans": spans},
        rounds={"rounds": 1, "mode": "buffered", "buffer": 2},
    )
    assert line["sites"] == ["site-01", "site-02"]
    assert line["virtual_seconds"] == pytest.approx(37.001)
