"""What `check` refuses of who takes part, and when: from facts of the parts, with the cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import federations
import pytest
import torch
from torch import Tensor

from fedsight.algorithms.base import State
from fedsight.algorithms.fedavg import FedAvg
from fedsight.core.errors import ConfigError
from fedsight.participation.uniform import Uniform
from fedsight.program import config, taking_part
from fedsight.program.program import Speed

TIME = {"images_per_second": 10.0}
BUFFER = {"rounds": 2, "mode": "buffered"}


def refused(**sections: Any) -> dict[str, str]:
    """Where and why, without and with data."""
    program = federations.program(**sections)
    problems = [*program.check(), *taking_part.simulated(program)]
    found = {one.where: f"{one.cause}; {one.cure}" for one in problems}
    if found:
        return found
    try:
        federations.federate(program)
    except ConfigError as error:
        return {one.where: f"{one.cause}; {one.cure}" for one in error.problems}
    return {}


@pytest.mark.parametrize(
    "name", ["fedavg", "fedprox", "fedadam", "fedbn", "ditto", "moon", "fedsam"]
)
def test_algorithms_whose_replies_stand_alone_go_with_buffered_rounds(name: str) -> None:
    assert refused(algorithm={"name": name}, rounds=BUFFER, timing=TIME) == {}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("scaffold", "its state at the coordinator"),
        ("feddyn", "its state at the coordinator"),
        ("fednova", "the numbers that sites send besides the update"),
        ("fedexp", "the numbers that sites send besides the update"),
        ("ridge", "its sums need every site once"),
    ],
)
def test_algorithms_that_assume_synchrony_do_not(name: str, why: str) -> None:
    found = refused(algorithm={"name": name}, rounds=BUFFER, timing=TIME)
    assert found["algorithm.name"].startswith(why)
    assert "set rounds.mode = 'synchronous'" in found["algorithm.name"]
    assert "algorithm.name" not in refused(algorithm={"name": name}, rounds={"rounds": 2})


class Sharing(FedAvg):
    """Sends sites a vector of its state."""

    registered: ClassVar[str | None] = "sharing"

    def init(self, vector: Tensor) -> State:
        """Zero."""
        return {"more": torch.zeros_like(vector)}

    def shared(self, state: State) -> State:
        """All."""
        return state


def test_the_facts_decide_and_not_the_name() -> None:
    program = federations.program(rounds=BUFFER, timing=TIME)
    object.__setattr__(program, "algorithm", Sharing())
    assert [one.where for one in program.check()] == ["algorithm.name"]


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"secure": {"name": "secagg"}}, "rounds.mode"),
        ({"secure": {"name": "quantised"}}, "rounds.mode"),
        ({"privacy": {"name": "central", "epsilon": 9.0}}, "rounds.mode"),
        ({"privacy": {"name": "matrix", "epsilon": 9.0}}, "rounds.mode"),
        ({"participation": {"name": "poisson"}, "rounds": {**BUFFER, "cohort": 2}},
         "participation.name"),
        ({"participation": {"name": "power-of-choice"}, "rounds": {**BUFFER, "cohort": 2}},
         "participation.name"),
        ({"timing": {**TIME, "partial": True}}, "timing.partial"),
        ({"timing": {}}, "timing"),
        ({"timing": {"dropout": 0.5}}, "timing"),
        ({"model": {"norm": "batch"}}, "model.norm"),
        ({"rounds": {**BUFFER, "buffer": 4}}, "rounds.buffer"),
        ({"rounds": {**BUFFER, "buffer": 2, "quorum": 3}}, "rounds.quorum"),
    ],
)  # fmt: skip
def test_what_a_buffer_cannot_do(sections: dict[str, Any], where: str) -> None:
    weighting = {"weighting": "uniform"}
    given = {"rounds": BUFFER, "timing": TIME, **sections}
    given["rounds"] = {**weighting, **given["rounds"]}
    assert where in refused(**given)
    if where not in ("rounds.mode", "model.norm"):
        return
    given["rounds"] = {"rounds": 2, **weighting}
    assert where not in refused(**given)


@pytest.mark.parametrize("name", ["local", "example"])
def test_noise_that_sites_add_goes_with_buffered_rounds(name: str) -> None:
    rounds = {**BUFFER, "weighting": "uniform"}
    privacy = {"name": name, "epsilon": 50.0, "delta": 1e-3}
    assert refused(privacy=privacy, rounds=rounds, timing=TIME) == {}


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"rounds": {"buffer": 2}}, "rounds.buffer"),
        ({"rounds": {"max_staleness": 2}}, "rounds.max_staleness"),
        ({"participation": {"name": "poisson"}}, "rounds.cohort"),
        ({"participation": {"name": "day-night"}}, "timing"),
        ({"participation": {"name": "day-night"}, "timing": {"dropout": 0.5}}, "timing"),
        ({"timing": {"partial": True, "delay_seconds": 1.0}}, "timing.partial"),
        ({"timing": {"groups": [{"sites": ["nobody"], "dropout": 0.1}]}}, "timing.groups"),
        (
            {
                "participation": {"name": "power-of-choice"},
                "rounds": {"cohort": 2, "weighting": "uniform"},
                "privacy": {"name": "local", "epsilon": 9.0},
            },
            "participation.name",
        ),
        (
            {
                "participation": {"name": "poisson"},
                "rounds": {"cohort": 2, "weighting": "uniform"},
                "privacy": {"name": "central", "epsilon": 9.0},
            },
            "participation.name",
        ),
        (
            {
                "participation": {"name": "power-of-choice"},
                "rounds": {"cohort": 2},
                "algorithm": {"name": "ridge"},
            },
            "participation.name",
        ),
    ],
)
def test_settings_that_do_not_go_with_one_another(sections: dict[str, Any], where: str) -> None:
    assert where in refused(**sections)


def test_a_trace_that_never_has_enough_sites_is_refused_before_training(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("site,from,until\nsite-00,0,8\nsite-01,8,16\nsite-02,16,24\n", "utf-8")
    trace = {"name": "trace", "file": str(path)}
    found = refused(participation=trace, timing=TIME, rounds={"cohort": 2})
    assert found == {
        "participation": "at most 1 of 3 sites are there at the same time, and a round needs 2; "
        "lower rounds.cohort to 1, or let more sites be there at the same time"
    }
    assert refused(participation=trace, timing=TIME, rounds={"cohort": 1}) == {}
    assert refused(participation=trace, timing=TIME) == {}


def test_masks_need_enough_sites_in_the_smallest_round_that_may_begin() -> None:
    def found(**rounds: Any) -> dict[str, str]:
        asleep = {"name": "day-night"}
        return refused(
            participation=asleep, timing=TIME, secure={"name": "secagg"}, rounds=rounds,
            split={"sites": 8},
        )  # fmt: skip

    assert found() == {
        "rounds.quorum": "a round may begin with 1 of the sites, too few for secure aggregation; "
        "raise it, or set rounds.cohort and no quorum"
    }
    assert "rounds.quorum" in found(cohort=3, quorum=2)
    assert "rounds.quorum" not in found(cohort=4)
    assert "rounds.quorum" not in found(quorum=7)
    assert refused(secure={"name": "secagg"}) == {}


def test_a_trace_is_part_of_the_program_not_its_file(tmp_path: Path) -> None:
    one, other = tmp_path / "a.csv", tmp_path / "b.csv"
    for path in (one, other):
        path.write_text("site,from,until\nsite-00,0,8\n", "utf-8")
    programs = [
        federations.program(participation={"name": "trace", "file": str(path)}, timing=TIME)
        for path in (one, other)
    ]
    assert programs[0].fingerprint == programs[1].fingerprint
    one.write_text("site,from,until\nsite-00,0,9\n", "utf-8")
    again = federations.program(participation={"name": "trace", "file": str(one)}, timing=TIME)
    assert again.fingerprint != programs[0].fingerprint
    table = programs[0].table()["participation"]
    assert table["spans"] == [{"site": "site-00", "begin": 0.0, "end": 8.0}]


def test_baselines_and_single_rounds_know_no_virtual_time() -> None:
    program = federations.program(
        rounds=BUFFER,
        timing=TIME,
        participation={"name": "day-night"},
        start={"name": "ridge"},
    )
    for other in (program.baseline(), program.opening()):
        assert other is not None
        assert not other.timing.passes
        assert isinstance(other.participation, Uniform)
        assert not other.rounds.buffered
        assert other.check() == []


def test_a_deployed_federation_refuses_what_only_a_simulation_can_do() -> None:
    sections = {
        "rounds": {**BUFFER, "cohort": 2},
        "timing": TIME,
        "participation": {"name": "day-night"},
    }
    with pytest.raises(ConfigError) as raised:
        config.check_elsewhere(federations.program(**sections), Speed())
    found = {one.where: one.cure for one in raised.value.problems}
    assert set(found) == {"timing", "participation.name"}
    assert found["timing"].startswith("leave out [timing]")


def test_buffered_rounds_need_virtual_time_in_a_simulation_and_real_time_elsewhere() -> None:
    program = federations.program(rounds=BUFFER)
    config.check_elsewhere(program, Speed())
    with pytest.raises(ConfigError, match="all answer in no time"):
        config.check(program, Speed())
    masked = federations.program(rounds=BUFFER, secure={"name": "secagg"})
    with pytest.raises(ConfigError, match="what is masked cannot be weighted by staleness"):
        config.check_elsewhere(masked, Speed())
