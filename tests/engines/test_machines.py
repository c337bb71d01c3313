"""Several machines train what one trains, bit for bit; here they are processes on loopback."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from command_line import Launched, done, history, lines, refused, same, write_config
from federations import federation, program

from fedsight.coordinator.session import Session
from fedsight.core.errors import EngineError
from fedsight.engines.group import NEEDED
from fedsight.engines.machines import problems
from fedsight.runs import machines

CASES = {
    # memory at the sites, a cohort that changes, and BatchNorm that is personal
    "scaffold": {"algorithm": {"name": "scaffold"}, "rounds": {"rounds": 4, "cohort": 2}},
    # models of several rounds, and memory of replies that count later
    "buffered": {
        "algorithm": {"name": "ditto"},
        "rounds": {"rounds": 5, "mode": "buffered", "buffer": 2},
        "timing": {"delay": "lognormal", "delay_seconds": 5.0, "delay_sigma": 1.5},
    },
    "quantised": {"secure": {"name": "quantised"}, "algorithm": {"name": "fedbn"}},
}


class Machines:
    """The command line in two processes that find one another as `torchrun` makes them."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        self.each = []
        for rank in ("0", "1"):
            home = folder / f"machine-{rank}"
            home.mkdir(exist_ok=True)
            environment = {"RANK": rank, "WORLD_SIZE": "2", **where}
            self.each.append(Launched(home, *arguments, environment=environment))

    @property
    def said(self) -> list[str]:
        """What each printed."""
        return [one.said.read_text() for one in self.each]

    def codes(self) -> list[int | None]:
        """Wait for all, and return their exit codes."""
        for one in self.each:
            one.process.join(240)
        return [one.process.exitcode for one in self.each]


@pytest.mark.parametrize("case", list(CASES))
def test_two_machines_train_what_one_trains(case: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, **CASES[case])
    done("run", config, "--out", tmp_path / "one", "--workers", 1)
    machines = Machines(tmp_path, "run", config, "--out", tmp_path / "two", "--workers", 1)
    assert machines.codes() == [0, 0], machines.said
    same(tmp_path / "one", tmp_path / "two")
    assert machines.said[1] == ""


def test_a_machine_that_dies_stops_the_run_which_then_resumes(tmp_path: Path) -> None:
    config = write_config(tmp_path, rounds={"rounds": 30}, algorithm={"name": "scaffold"})
    done("run", config, "--out", tmp_path / "one", "--workers", 1)
    machines = Machines(tmp_path, "run", config, "--out", tmp_path / "two", "--workers", 1)
    machines.each[0].wait_until(lambda: lines(tmp_path / "two") >= 3, "the third round")
    machines.each[1].kill()
    assert machines.codes() == [6, -9]
    assert "process 0 of 2 has lost the others" in machines.said[0]
    assert len(history(tmp_path / "two")) < 30
    again = Machines(tmp_path, "resume", tmp_path / "two", "--workers", 1)
    assert again.codes() == [0, 0], again.said
    same(tmp_path / "one", tmp_path / "two")


def test_what_several_machines_cannot_do_is_said_before_training() -> None:
    asked = program(secure={"name": "secagg"})
    assert [one.where for one in problems(asked)] == ["secure.name"]
    asked = program(aggregation={"name": "median"})
    assert [one.where for one in problems(asked)] == ["aggregation.name"]


@pytest.mark.parametrize("words", [["run", "CONFIG", "--seeds", 2], ["resume", "RUN"]], ids=str)
def test_what_one_machine_does_alone_is_refused_under_torchrun(
    words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "series.json").write_text("{}")
    where = {"CONFIG": write_config(tmp_path), "RUN": tmp_path / "series"}
    for name in NEEDED:
        monkeypatch.setenv(name, "2")
    said = refused(2, *[where.get(str(word), word) for word in words])
    assert "several machines train one run together" in said


@pytest.mark.parametrize("what", ["program", "data set"])
def test_a_machine_with_another_program_or_other_images_is_named(what: str, tmp_path: Path) -> None:
    session = Session(federation())

    class First:
        """What machine 0 tells."""

        rank, size = 1, 2

        def given(self, value: None) -> object:
            return {**machines._identity(session), what: "another"}, None

    with pytest.raises(EngineError, match=f"machine 1 of 2 has another {what} than machine 0"):
        machines.begun(First(), session, tmp_path)  # type: ignore[arg-type]
