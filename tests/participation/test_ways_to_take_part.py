"""Who is drawn, and who is there: uniform, Poisson, power of choice, a trace, day and night."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.draws import draws
from fedsight.participation.base import Known, Participation, participations
from fedsight.participation.day_night import DayNight
from fedsight.participation.poisson import PoissonParticipation
from fedsight.participation.power_of_choice import PowerOfChoice
from fedsight.participation.trace import Span, Trace
from fedsight.participation.uniform import Uniform
from fedsight.program.rounds import Rounds

NOTHING = Known(images=lambda client: 10, loss=lambda client: math.inf)
NAMES = [f"site-{number}" for number in range(6)]


def drawn(
    way: Participation, there: list[int], cohort: int | None, known: Known = NOTHING
) -> Counter[int]:
    """How often each was drawn in 2,000 rounds."""
    return Counter(
        client
        for round in range(2000)
        for client in way.draw(there, cohort, known, draws(3, "round", round))
    )


@given(
    name=st.sampled_from(participations.names()),
    there=st.lists(st.integers(0, 30), unique=True, max_size=12).map(sorted),
    cohort=st.none() | st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_only_those_that_are_there_are_drawn_sorted_and_once(
    name: str, there: list[int], cohort: int | None, seed: int
) -> None:
    way = participations.get(name)()
    found = way.draw(there, cohort, NOTHING, draws(seed, "x"))
    assert found == sorted(set(found))
    assert set(found) <= set(there)
    if name != "poisson":
        assert len(found) == min(cohort or len(there), len(there))
    assert found == way.draw(there, cohort, NOTHING, draws(seed, "x"))


def test_a_uniform_choice_gives_all_the_same_chance() -> None:
    often = drawn(Uniform(), [2, 5, 7, 9], 2)
    assert all(abs(count - 1000) < 100 for count in often.values())


def test_poisson_draws_independently_with_the_cohort_as_mean() -> None:
    way, there = PoissonParticipation(), [0, 1, 2, 3]
    often = drawn(way, there, 1)
    assert all(abs(count - 500) < 80 for count in often.values())
    sizes = Counter(len(way.draw(there, 1, NOTHING, draws(0, round))) for round in range(2000))
    for size in range(4):  # binomial
        chance = math.comb(4, size) * 0.25**size * 0.75 ** (4 - size)
        assert abs(sizes[size] / 2000 - chance) < 0.04
    assert way.check(Rounds())[0].where == "rounds.cohort"


def test_power_of_choice_takes_the_largest_losses_of_its_candidates() -> None:
    losses = {0: 0.1, 1: 5.0, 2: 0.2, 3: 4.0}
    known = Known(lambda client: 10, losses.__getitem__)
    assert PowerOfChoice(candidates=4).draw([0, 1, 2, 3], 2, known, draws(0)) == [1, 3]
    often = drawn(PowerOfChoice(candidates=2), [0, 1, 2, 3], 1, known)
    # The worst of two drawn uniformly: three of six pairs have site 1, two more have site 3.
    assert abs(often[1] - 1000) < 100
    assert abs(often[3] - 667) < 100
    assert often[0] == 0


def test_power_of_choice_draws_candidates_by_their_images_and_the_unknown_first() -> None:
    images = {0: 300, 1: 100}
    often = drawn(PowerOfChoice(), [0, 1], 1, Known(images.__getitem__, lambda client: math.inf))
    assert abs(often[0] - 1500) < 100
    fresh = Known(lambda client: 10, lambda client: math.inf if client == 2 else 9.0)
    assert PowerOfChoice(candidates=3).draw([0, 1, 2], 1, fresh, draws(0)) == [2]


def test_power_of_choice_needs_a_choice() -> None:
    assert PowerOfChoice().check(Rounds())[0].where == "rounds.cohort"
    assert PowerOfChoice(candidates=3).check(Rounds(cohort=3))[0].cause == (
        "3 candidates leave no choice for a cohort of 3"
    )
    assert PowerOfChoice(candidates=4).check(Rounds(cohort=3)) == []


def test_day_and_night_repeat_and_have_their_hours() -> None:
    way = DayNight(hours=6)
    for name in NAMES:
        there = [way.is_there(name, hour / 10, 1) for hour in range(480)]
        assert there[:240] == there[240:]
        assert sum(there[:240]) in (59, 60, 61)
    for hour in way.comings(NAMES, 1):
        assert any(way.is_there(name, hour, 1) for name in NAMES)
    together = DayNight(hours=6, spread=0)
    assert together.comings(NAMES, 1) == [0.0]
    assert all(together.is_there(name, 5.9, 1) for name in NAMES)
    assert not any(together.is_there(name, 6.0, 1) for name in NAMES)


def written(folder: Path, text: str) -> Trace:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return Trace(file=path)


def test_a_trace_becomes_part_of_the_settings(tmp_path: Path) -> None:
    trace = written(tmp_path, "site,from,until\nsite-0,0,2\nsite-1,1,3\nsite-0,5,6\n").settled()
    assert trace.file is None
    assert trace.spans[2] == Span(site="site-0", begin=5.0, end=6.0)
    assert trace.period == 6.0
    assert [trace.is_there("site-0", hour, 0) for hour in (0, 1.9, 2, 5, 6, 11.5)] == [
        True, True, False, True, True, True,
    ]  # fmt: skip
    assert trace.comings(NAMES, 0) == [0.0, 1.0, 5.0]
    assert trace.check(Rounds()) == []


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("site,from\na,0\n", "line 1: there is no column 'until'"),
        ("site,from,until\na,0,1\na,x,2\n", "line 3: from and until are not numbers of hours"),
        ("site,from,until\na,2,1\n", "line 2: expected 0 <= from < until, in hours"),
        ("site,from,until\na,0,inf\n", "line 2: expected 0 <= from < until, in hours"),
    ],
)
def test_a_file_that_is_not_a_trace_is_named_with_its_line(
    tmp_path: Path, text: str, cause: str
) -> None:
    trace = written(tmp_path, text).settled()
    (problem,) = trace.check(Rounds())
    assert problem.where == "participation.file"
    assert problem.cause.endswith(cause)


def test_a_file_that_is_not_there_and_spans_that_make_no_sense(tmp_path: Path) -> None:
    (problem,) = Trace(file=tmp_path / "none.csv").settled().check(Rounds())
    assert "No such file" in problem.cause
    (problem,) = Trace(spans=(Span(site="a", begin=3, end=2),)).check(Rounds())
    assert "ends at hour 2, and begins at hour 3" in problem.cause
    (problem,) = Trace().check(Rounds())
    assert problem.cause == "the trace never has a site: it has no span"


def spans(*rows: tuple[str, float, float]) -> Trace:
    return Trace(spans=tuple(Span(site=site, begin=begin, end=end) for site, begin, end in rows))


def test_a_trace_that_never_has_enough_sites_is_refused_with_the_cure() -> None:
    trace = spans(("site-0", 0, 2), ("site-1", 1, 3), ("site-2", 3, 4))
    assert trace.check_sites(NAMES, Rounds(cohort=2), 0) == []
    (problem,) = trace.check_sites(NAMES, Rounds(cohort=3), 0)
    assert problem.cause == ("at most 2 of 6 sites are there at the same time, and a round needs 3")
    assert problem.cure == ("lower rounds.cohort to 2, or let more sites be there at the same time")
    (problem,) = trace.check_sites(NAMES, Rounds(cohort=6, quorum=4), 0)
    assert problem.cure.startswith("lower rounds.quorum to 2")
    assert trace.check_sites(NAMES, Rounds(mode="buffered", buffer=3), 0) == []
    (problem,) = trace.check_sites(NAMES, Rounds(mode="buffered", buffer=4), 0)
    assert problem.cause == "only 3 of 6 sites are ever there, and a buffer takes 4"


def test_a_site_of_the_trace_that_there_is_not_is_most_likely_misspelt() -> None:
    (problem,) = spans(("site_0", 0, 2)).check_sites(NAMES, Rounds(), 0)
    assert problem.cure.startswith("did you mean 'site-")


def test_hours_that_never_overlap_are_refused_too() -> None:
    (problem,) = DayNight(hours=0.01).check_sites(NAMES, Rounds(cohort=6), 0)
    assert "at the same time" in problem.cause
    assert DayNight(hours=0.01, spread=0).check_sites(NAMES, Rounds(cohort=6), 0) == []
