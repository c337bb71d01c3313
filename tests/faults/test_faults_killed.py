"""Killed at any moment and resumed, a run ends with the very same bits as one left in peace."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_line import Launched, check_message, done, lines, read, same, write_config
from processes import DEPLOYED, wait_until

ROUNDS = 6
COMMANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "fedavg": ("run", {"algorithm": {"name": "fedavgm"}, "train": {"momentum": 0.9}}),
    "scaffold": ("run", {"algorithm": {"name": "scaffold"}, "rounds": {"cohort": 2}}),
    "fedrep": ("run", {"algorithm": {"name": "fedrep"}, "speed": {"checkpoint_every": 2}}),
    "buffered": (
        "run",
        {
            "algorithm": {"name": "fedrep"},
            "rounds": {"mode": "buffered", "buffer": 1},
            "timing": {"delay": "lognormal", "delay_seconds": 5.0, "delay_sigma": 1.5},
            "speed": {"checkpoint_every": 2},
        },
    ),
    "compare": ("compare", {"train": {"epochs": 2}}),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module", params=COMMANDS)
def undisturbed(request: pytest.FixtureRequest, home: Path) -> tuple[str, str, Path]:
    """(command, name, finished run folder)."""
    command, sections = COMMANDS[request.param]
    rounds = {**sections.pop("rounds", {}), "rounds": ROUNDS}
    config = write_config(home, request.param, rounds=rounds, **sections)
    run = home / f"{request.param}-whole"
    done(command, config, "--out", run, "--workers", 2)
    return command, request.param, run


def kill_and_resume(launched: Launched, run: Path, random: random.Random) -> None:
    """Kill one that writes checkpoints, sometimes twice; then end it here."""
    launched.wait_until(lambda: lines(run) >= random.randrange(1, ROUNDS - 1), "a round")
    assert launched.kill(random.uniform(0, 0.03)) == -signal.SIGKILL
    if random.random() < 0.5:
        before = lines(run)
        again = Launched(run.parent, "resume", run, "--workers", 2)
        again.wait_until(lambda: lines(run) > before or not again.process.is_alive(), "a round")
        again.kill(random.uniform(0, 0.02))
    done("resume", run, "--workers", random.choice([1, 2]))


@pytest.mark.parametrize("seed", range(2))
def test_killed_in_training(
    undisturbed: tuple[str, str, Path], home: Path, tmp_path: Path, seed: int
) -> None:
    command, name, whole = undisturbed
    draws = random.Random(f"{name} {seed}")
    run = tmp_path / "run"
    launched = Launched(tmp_path, command, home / f"{name}.toml", "--out", run, "--workers", 2)
    kill_and_resume(launched, run, draws)
    same(run, whole)


@pytest.mark.parametrize("seed", range(2))
def test_killed_in_the_comparison(home: Path, tmp_path: Path, seed: int) -> None:
    whole = home / "compare-whole"
    config = home / "compare.toml"
    if not whole.exists():
        done("compare", config, "--out", whole, "--workers", 2)
    draws = random.Random(seed)
    run = tmp_path / "run"
    partial = run / "comparison.partial.json"
    launched = Launched(tmp_path, "compare", config, "--out", run, "--workers", 2)
    wanted = draws.randrange(1, 3)
    launched.wait_until(lambda: partial.exists() and len(read(run, partial.name)) >= wanted, "one")
    launched.kill(draws.uniform(0, 0.02))
    kept = read(run, partial.name)
    assert len(kept) >= wanted
    assert not (run / "summary.json").exists() or len(kept) == 4
    done("resume", run, "--workers", 1)
    same(run, whole)
    assert kept.items() <= read(run, partial.name).items()


def test_the_whole_process_group_killed(home: Path, tmp_path: Path) -> None:
    """As a machine that loses power would: coordinator, server and workers at once."""
    config = write_config(home, "group", algorithm={"name": "scaffold"}, rounds={"rounds": ROUNDS})
    done("run", config, "--out", tmp_path / "whole", "--workers", 2)
    run = tmp_path / "run"
    words = ["run", str(config), "--out", str(run), "--workers", "2"]
    with subprocess.Popen(
        [sys.executable, "-c", "from fedsight.cli import main; main()", *words],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_until(lambda: lines(run) >= 2 or process.poll() is not None, DEPLOYED)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done("resume", run, "--workers", 2)
    same(run, tmp_path / "whole")


def test_torn_files_of_a_crash_are_cleared_away(home: Path, tmp_path: Path) -> None:
    """A crash can leave a torn history line, lines past the checkpoint, and partial files."""
    config = write_config(home, "torn", algorithm={"name": "fedrep"}, rounds={"rounds": ROUNDS})
    whole, run = tmp_path / "whole", tmp_path / "run"
    done("run", config, "--out", whole, "--workers", 2)
    rare = ["--set", "speed.checkpoint_every=2"]
    launched = Launched(tmp_path, "run", config, "--out", run, "--workers", 1, *rare)
    launched.wait_until(lambda: lines(run) >= 5, "round 5")
    launched.kill()
    with (run / "history.jsonl").open("a") as file:
        file.write('{"round": 6, "accur')
    (run / ".checkpoint.safetensors.77.partial").write_bytes(b"half")
    done("resume", run, "--workers", 2)
    same(run, whole)
    assert not list(run.glob(".*"))
    versions = {int(path.stem) for path in (run / "memory").glob("*/*")}
    # A checkpoint is written while the next round trains: round 6 may still go back to round 3.
    assert versions <= {3, 4, 5, 6}, "what no resumption can need is gone"


def test_ctrl_c_in_training(home: Path, tmp_path: Path) -> None:
    """Pressed in a real terminal's process group; then the run goes on to the same bits."""
    config = write_config(home, "stopped", rounds={"rounds": 40})
    run = tmp_path / "run"
    words = ["run", str(config), "--out", str(run), "--workers", "2"]
    with subprocess.Popen(
        [sys.executable, "-c", "from fedsight.cli import main; main()", *words],
        start_new_session=True,
        # In the background of a script, where these tests may be, the shell has it ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: lines(run) >= 3 or process.poll() is not None, DEPLOYED)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    check_message(said)
    assert f"fedsight resume {run}" in said
    assert "checkpoint" in said
    assert lines(run) < 40
    done("resume", run, "--workers", 1)
    done("run", config, "--out", tmp_path / "whole", "--workers", 2)
    same(run, tmp_path / "whole")


def test_ctrl_c_before_the_first_round_and_in_the_comparison(home: Path, tmp_path: Path) -> None:
    config = write_config(home, "early", rounds={"rounds": 40})
    run = tmp_path / "early"
    launched = Launched(tmp_path, "run", config, "--out", run, "--workers", 2)
    launched.wait_until((run / "run.json").exists, "the folder")
    assert launched.kill(how=signal.SIGINT) == 130
    check_message(launched.said.read_text())

    run = tmp_path / "late"
    launched = Launched(tmp_path, "compare", config, "--out", run, "--workers", 1)
    launched.wait_until((run / "comparison.partial.json").exists, "a baseline")
    assert launched.kill(how=signal.SIGINT) == 130
    said = launched.said.read_text()
    check_message(said)
    assert f"fedsight resume {run}" in said
    assert lines(run) == 40
    assert not (run / "summary.json").exists()


def test_ctrl_c_where_nothing_is_begun(monkeypatch, home: Path) -> None:
    from command_line import cli

    from fedsight.program import federation

    def press(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(federation, "federate", press)
    answer = cli("check", write_config(home))
    assert (answer.code, answer.err) == (130, "Stopped by Ctrl-C\n")


def test_a_worker_that_is_killed_is_named(home: Path, tmp_path: Path, monkeypatch) -> None:
    """As the kernel does when memory runs out."""
    from command_line import refused

    from fedsight.engines import workers

    config = write_config(home, "murder", rounds={"rounds": 5})
    original = workers.WorkerEngine.submit

    def submit(self: Any, order: Any, *rest: Any) -> Any:
        if order.round == 3:
            self._pool._processes[1].kill()
        return original(self, order, *rest)

    monkeypatch.setattr(workers.WorkerEngine, "submit", submit)
    said = refused(6, "run", config, "--out", tmp_path / "run", "--workers", 2)
    assert "fedsight-worker-1 died while training in round 3 (killed by signal 9)" in said
    assert "fedsight resume" in said
    monkeypatch.undo()
    done("resume", tmp_path / "run", "--workers", 2)
    done("run", config, "--out", tmp_path / "whole", "--workers", 2)
    same(tmp_path / "run", tmp_path / "whole")
