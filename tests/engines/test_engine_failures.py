"""What goes wrong at a site or in a worker is named, contained, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import federations
import pytest
import torch

from fedsight.client.memory import MemoryStore
from fedsight.core.errors import DataError, EngineError, SiteError
from fedsight.core.types import Order
from fedsight.engines.base import Engine, collect
from fedsight.engines.in_process import InProcessEngine
from fedsight.engines.pool import Pool
from fedsight.engines.workers import WorkerEngine
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

Make = Callable[..., Federation]
KINDS = pytest.mark.parametrize("workers", [0, 2], ids=["inline", "two workers"])


@contextmanager
def started(workers: int, federation: Federation, memory: Path | None = None) -> Iterator[Engine]:
    """Inline for 0 workers; closed at the end."""
    engine: Engine = (
        WorkerEngine(federation, Speed(workers=workers), memory)
        if workers
        else InProcessEngine(federation, memory)
    )
    try:
        yield engine
    finally:
        engine.close()


def order(federation: Federation, round: int = 1) -> Order:
    layout = federation.layout
    algorithm, vector = federation.program.algorithm, federation.initial
    shared = algorithm.shared(algorithm.init(vector[layout.shared]))
    return Order(round, vector[layout.travelling], shared)


def broken(make: Make, **sections: object) -> tuple[Federation, str]:
    """A federation in which one image of one site is NaN, and that site's name."""
    partition = make(**sections).partition
    image = int(partition.indices(1)[7])
    return make(**{**sections, "data": {"broken": image}}), partition.name(1)


def gone(pids: list[int], patience: float = 30.0) -> bool:
    """Whether all processes have ended; waits for them."""
    end = time.monotonic() + patience
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# -- a site's reply is refused ---------------------------------------------------------------------


@KINDS
def test_nan_at_a_site_stops_the_run_with_its_name_and_the_round(
    tiny_federation: Make, workers: int
) -> None:
    federation, site = broken(tiny_federation)
    with (
        started(workers, federation) as engine,
        pytest.raises(
            SiteError,
            match=f"round 1 has 2 good replies of 3, and needs all; .*'{site}'.*not finite",
        ) as caught,
    ):
        federations.learn(federation, engine)
    assert "rounds.quorum" in caught.value.cure
    assert "The last checkpoint is intact" in caught.value.cure


@KINDS
def test_other_sites_go_on_without_a_nan_site_and_it_remembers_nothing(
    tiny_federation: Make, tmp_path: Path, workers: int
) -> None:
    federation, site = broken(tiny_federation, rounds={"quorum": 2}, algorithm={"name": "scaffold"})
    diary = federations.Diary()
    with started(workers, federation, tmp_path) as engine:
        trained = federations.learn(federation, engine, diary)
    assert torch.isfinite(trained.vector).all()
    for line in diary.lines:
        assert list(line["rejected"]) == [site]
        assert "not finite" in line["rejected"][site]
        assert (line["cohort"], line["replies"], line["weight"]) == (3, 2, 80)
        assert line["sites"] == sorted({"site-00", "site-01", "site-02"} - {site})
        # The first model is built at the sites; the control variate comes with every order.
        vectors = 1 if line["round"] == 1 else 2
        assert line["bytes_up"] * 3 * vectors == line["bytes_down"] * 2 * 2
    assert diary.replies == 6
    memory = MemoryStore(tmp_path)
    others = {federation.name(client) for client in range(3)} - {site}
    assert {path.name for path in tmp_path.iterdir()} == others
    assert all(memory.load(other, 3) for other in others)
    without = {federation.name(c): c for c in range(3) if federation.name(c) != site}
    with started(0, federation) as engine:
        expected = collect(engine, order(federation), list(without.values()))
    with started(0, federation) as engine:
        found = collect(engine, order(federation), [0, 1, 2])
    assert torch.equal(expected.total.sums["delta"].total, found.total.sums["delta"].total)


@KINDS
def test_update_too_large_for_the_sum_is_refused_like_one_that_is_not_finite(
    tiny_federation: Make, workers: int
) -> None:
    federation = tiny_federation(train={"lr": 1e12, "batch": 40})
    with (
        started(workers, federation) as engine,
        pytest.raises(SiteError, match=r"round 1 has 0 good replies of 3.*64-bit range"),
    ):
        federations.learn(federation, engine)


def test_too_few_good_replies_stop_the_run(tiny_federation: Make) -> None:
    federation, site = broken(tiny_federation, rounds={"quorum": 3})
    with pytest.raises(
        SiteError, match=f"round 1 has 2 good replies of 3, and needs 3; .*'{site}'"
    ):
        federations.learn(federation)


def test_server_step_that_leaves_the_finite_numbers_stops_the_run(tiny_federation: Make) -> None:
    federation = tiny_federation(algorithm={"server_lr": 1e300})
    with pytest.raises(SiteError, match="global model is no longer finite after round 1"):
        federations.learn(federation)


# -- a worker fails --------------------------------------------------------------------------------


def test_killed_worker_is_named_with_what_it_was_doing(tiny_federation: Make) -> None:
    federation = tiny_federation()
    with started(2, federation) as engine:
        victim = engine._pool._processes[0]
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        for call, doing in (
            (lambda: collect(engine, order(federation, 4), [0]), "training in round 4"),
            (lambda: engine.measure(order(federation).vector, 4), "measuring round 4"),
        ):
            with pytest.raises(
                EngineError, match=rf"fedsight-worker-0 died while {doing} \(killed by signal 9\)"
            ) as caught:
                call()
            assert "fedsight resume" in caught.value.cure


def test_worker_killed_at_work_is_named_too(tiny_federation: Make) -> None:
    federation = tiny_federation()
    with started(2, federation) as engine:
        victim = engine._pool._processes[1]
        os.kill(victim.pid, signal.SIGSTOP)  # it has the command and cannot finish it

        def kill() -> None:
            victim.kill()  # again at the next reply, when it may be gone already

        with pytest.raises(EngineError, match="fedsight-worker-1 died while training in round 2"):
            collect(engine, order(federation, 2), [0, 1, 2], lambda _: kill())


def test_mistake_in_the_code_reaches_the_coordinator_with_its_place(tiny_federation: Make) -> None:
    federation = tiny_federation()
    stumbling = replace(federation.program, algorithm=federations.Stumbling())
    federation = replace(federation, program=stumbling)
    with (
        started(1, federation) as engine,
        pytest.raises(EngineError, match="ZeroDivisionError: a mistake in the algorithm") as caught,
    ):
        federations.learn(federation, engine)
    assert "federations.py" in caught.value.cause


def test_image_torn_since_the_start_reaches_the_coordinator_as_what_it_is(
    tiny_federation: Make,
) -> None:
    federation = tiny_federation(data={"torn": True})
    with (
        started(2, federation) as engine,
        pytest.raises(DataError, match=r"image tiny\[\d+\] is torn"),
    ):
        federations.learn(federation, engine)


def test_worker_that_cannot_start_is_named_and_the_others_are_ended(
    tiny_federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = tiny_federation(data={"stillborn": True})
    closed: list[WorkerEngine] = []
    close = WorkerEngine.close
    monkeypatch.setattr(WorkerEngine, "close", lambda self: (closed.append(self), close(self)))
    with pytest.raises(EngineError, match="a worker process cannot load the program: MemoryError"):
        WorkerEngine(federation, Speed(workers=2))
    assert not any(process.is_alive() for process in closed[0]._pool._processes)
    assert not Path(closed[0]._scratch.name).exists()


def test_closed_engine_leaves_no_process_and_no_scratch(tiny_federation: Make) -> None:
    engine = WorkerEngine(tiny_federation(), Speed(workers=2))
    pids = [process.pid for process in engine._pool._processes]
    scratch = Path(engine._scratch.name)
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    assert scratch.is_dir()
    engine.close()
    assert gone(pids)
    assert not scratch.exists()
    engine.close()  # once more does no harm


def test_worker_that_does_not_listen_is_ended_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedsight.engines.pool.GRACE", 0.1)
    monkeypatch.setattr("fedsight.engines.pool.PATIENCE", 0.1)
    pool = Pool(federations.deaf, [None])
    assert pool.receive(0, "starting") == "I hear nothing"
    (process,) = pool._processes
    pool.close()
    assert process.exitcode == -signal.SIGKILL


def test_interrupt_while_workers_start_waits_and_leaves_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Any] = []
    start = Pool._start

    def interrupted(self: Pool, *given: Any) -> None:
        start(self, *given)
        started.append(self._processes[-1])
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Pool, "_start", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Pool(federations.quiet, [None, None])
    assert signal.getsignal(signal.SIGINT) is before
    assert len(started) == 2
    assert not any(process.is_alive() for process in started)


def test_workers_of_a_worker_come_from_the_server_that_it_comes_from() -> None:
    pool = Pool(federations.leading, [None], daemon=False)
    try:
        own, of_its_worker = pool.receive(0, "starting")
    finally:
        pool.close()
    assert own == of_its_worker


def test_workers_can_be_started_from_any_thread() -> None:
    with ThreadPoolExecutor(1) as threads:
        pool = threads.submit(Pool, federations.quiet, [None]).result()
    assert pool.receive(0, "starting") == "ready"
    pool.close()


def test_workers_do_not_outlive_a_killed_coordinator(tmp_path: Path) -> None:
    script = tmp_path / "coordinator.py"
    script.write_text(
        "import time, federations\n"
        "from fedsight.engines.workers import WorkerEngine\n"
        "from fedsight.program.program import Speed\n"
        "if __name__ == '__main__':\n"
        "    engine = WorkerEngine(federations.federation(), Speed(workers=2))\n"
        "    print(*(process.pid for process in engine._pool._processes), flush=True)\n"
        "    time.sleep(600)\n"
    )
    path = os.pathsep.join(
        [str(Path(federations.__file__).parent), os.environ.get("PYTHONPATH", "")]
    )
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path)},
    ) as coordinator:
        assert coordinator.stdout is not None
        pids = [int(pid) for pid in coordinator.stdout.readline().split()]
        coordinator.kill()
    assert len(pids) == 2
    assert gone(pids)
