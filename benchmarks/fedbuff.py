"""Time to the same accuracy: synchronous against buffered rounds, some sites being slow.

    python benchmarks/fedbuff.py [--seeds 3] [--quick]
    python benchmarks/fedbuff.py --real [--quick]

The built-in sample of Fashion-MNIST at twenty sites (Dirichlet 0.5), whose answers are late by a
long-tailed (lognormal) delay. Each way to take part sees as many images in all. Synchronous rounds
wait for all of their cohort, or, with a deadline, go on without the late ones; buffered rounds
(FedBuff) take a step as soon as some have answered. The time is that at which the test accuracy was
first at least the target; in seconds of virtual time, so this machine's speed does not matter. A
run that is finished is not repeated: the folder can be given again after an interruption.

With `--real`, over real processes on loopback: a server and four sites, one of which is slow
because its trainer is stopped for most of the time. The time is then wall time, so the machine
should be quiet.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import tempfile
import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from common import RESULTS, machine, print_table, write_json
from loopback import Loopback

import fedsight
from fedsight.coordinator.store import RunStore
from fedsight.deploy.server import scheduler
from fedsight.program import config

SITES, REPLIES, TARGET = 20, 240, 0.82
TIMING = {
    "images_per_second": 100.0,
    "spread": 0.3,
    "delay": "lognormal",
    "delay_seconds": 5.0,
    "delay_sigma": 1.5,
}
GOAL = 2.0  # times faster than the fastest synchronous way that waits for its cohort
# settings of [rounds], replies of a round that are planned for
WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "synchronous, all": ({}, SITES),
    "synchronous, 10 a round": ({"cohort": 10}, 10),
    "synchronous, 5 a round": ({"cohort": 5}, 5),
    "synchronous, all, deadline 20 s": ({"deadline": 20.0, "quorum": 1}, 14),
    "buffered, 10 of all": ({"mode": "buffered", "buffer": 10}, 10),
    "buffered, 5 of all": ({"mode": "buffered", "buffer": 5}, 5),
}


REAL_SITES, SLOWDOWN, PERIOD = 4, 10, 0.5  # the period in seconds
REAL_WAYS: dict[str, dict[str, Any]] = {
    "synchronous": {},
    "buffered, 2 of 4": {"mode": "buffered", "buffer": 2},
}


def trained(way: str, seed: int, replies: int, folder: Path) -> fedsight.Run:
    """One run."""
    if (folder / "summary.json").is_file():
        return fedsight.load(folder)
    if (folder / "run.toml").is_file():
        return fedsight.resume(folder)
    rounds, each = WAYS[way]
    if "deadline" not in rounds:
        rounds = {**rounds, "deadline": 1e9}
    return fedsight.run(
        {
            "seed": seed,
            "data": {"name": "fashion-mnist-12k"},
            "split": {"name": "dirichlet", "alpha": 0.5, "sites": SITES, "min_samples": 50},
            "model": {"name": "small_cnn", "width": 8},
            "train": {"epochs": 1, "batch": 32, "lr": 0.1},
            "rounds": {**rounds, "rounds": replies // each, "evaluate_every": max(1, 10 // each)},
            "timing": TIMING,
        },
        out=folder,
        workers=1,
    )


def figures(run: fedsight.Run) -> dict[str, Any]:
    """When a run first reached the target, and how it ended."""
    lines = [line for line in run.history if line["score"] is not None]
    reached = [line for line in lines if line["score"] >= TARGET]
    first = reached[0] if reached else None
    old = [old for line in run.history for old in line.get("staleness", {}).values()]
    counted = sum(line["replies"] for line in run.history)
    return {
        "seconds": first and first["virtual_seconds"],
        "rounds": first and first["round"],
        "replies": counted,
        "all_seconds": run.history[-1]["virtual_seconds"],
        "best": max(line["score"] for line in lines),
        "last": lines[-1]["score"],
        "staleness": sum(old) / counted,
    }


def told(way: str, found: list[dict[str, Any]]) -> list[str]:
    """A row of the table: medians over the seeds."""
    seconds = together(found)
    return [
        way,
        "not reached" if seconds is None else f"{seconds:,.0f} s",
        f"{statistics.median(one['all_seconds'] for one in found):,.0f} s",
        f"{statistics.median(one['best'] for one in found):.4f}",
        f"{statistics.median(one['last'] for one in found):.4f}",
        f"{statistics.median(one['staleness'] for one in found):.2f}",
    ]


def together(found: list[dict[str, Any]]) -> float | None:
    """The median time to the target; None if not every seed reached it."""
    times = [one["seconds"] for one in found]
    return None if None in times else statistics.median(times)


@contextlib.contextmanager
def slowed(loopback: Loopback, home: Path) -> Iterator[None]:
    """The trainer of the site in `home` runs for one in SLOWDOWN parts of the time."""
    over = threading.Event()

    def send(number: int) -> None:
        found = loopback.find("trainer", home)
        if found is not None and found.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found.pid, number)

    def slow() -> None:
        while not over.wait(PERIOD / SLOWDOWN):
            send(signal.SIGSTOP)
            over.wait(PERIOD - PERIOD / SLOWDOWN)
            send(signal.SIGCONT)

    thread = threading.Thread(target=slow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def over_processes(loopback: Loopback, way: str, replies: int) -> list[dict[str, Any]]:
    """The history of a run over real processes; its rounds have so many replies in all."""
    rounds = REAL_WAYS[way]
    each = rounds.get("buffer", REAL_SITES)
    program, speed = config.parse(
        {
            "data": {"name": "fashion-mnist-12k"},
            "split": {"name": "dirichlet", "alpha": 1.0, "sites": REAL_SITES},
            "model": {"name": "small_cnn", "width": 8},
            "train": {"epochs": 1, "batch": 32, "lr": 0.1},
            "rounds": {**rounds, "rounds": replies // each, "deadline": 3600.0},
        },
        Path.cwd(),
    )
    store = RunStore(loopback.federation.runs / way.replace(",", "").replace(" ", "-"))
    scheduler.prepare(loopback.federation, program, speed, store)
    with slowed(loopback, loopback.sites[-1].folder):
        scheduler.resume(loopback.federation, store, [], lambda _: None)
    return store.history()


def wall(lines: Sequence[dict[str, Any]], target: float) -> dict[str, Any]:
    """When a run over real processes first reached the target."""
    ends = list(accumulate(line["seconds"] for line in lines))
    reached = [n for n, line in enumerate(lines) if (line["score"] or 0.0) >= target]
    old = [old for line in lines for old in line.get("staleness", {}).values()]
    return {
        "seconds": ends[reached[0]] if reached else None,
        "rounds": reached[0] + 1 if reached else None,
        "all_seconds": ends[-1],
        "best": max(line["score"] or 0.0 for line in lines),
        "last": lines[-1]["score"],
        "staleness": sum(old) / sum(line["replies"] for line in lines),
        "replies_of_the_slow_site": sum(
            f"site-{REAL_SITES - 1:02d}" in line["sites"] for line in lines
        ),
    }


def real(quick: bool, out: Path) -> None:
    """The part over real processes, written beside the other's results."""
    target, replies = (0.65, 16) if quick else (TARGET, 64)
    with tempfile.TemporaryDirectory() as place:
        loopback = Loopback(Path(place), REAL_SITES)
        with loopback.up():
            lines = {way: over_processes(loopback, way, replies) for way in REAL_WAYS}
        loopback.leftovers()
    found = {way: wall(one, target) for way, one in lines.items()}
    columns = (f"time to {target:.0%}", "time of all", "best", "last", "mean staleness")
    rows = [told(way, [one]) for way, one in found.items()]
    title = f"{REAL_SITES} sites, one {SLOWDOWN} times slower, {replies} replies, wall time"
    print_table(title, ["way", *columns], rows)
    waiting, buffered = (one["seconds"] for one in found.values())
    faster = waiting / buffered if waiting and buffered else None
    print(f"buffered is {faster} times as fast as waiting (asked: {GOAL})")
    known = json.loads(out.read_text()) if out.exists() else {}
    known["real"] = {
        "machine": machine(), "target": target, "goal": GOAL, "slowdown": SLOWDOWN,
        "times_faster": faster, "runs": found,
    }  # fmt: skip
    write_json(out, known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds, one seed")
    parser.add_argument("--folder", type=Path, help="of the runs; default: one that is removed")
    parser.add_argument("--out", type=Path, default=RESULTS / "fedbuff.json")
    parser.add_argument("--real", action="store_true", help="over real processes")
    given = parser.parse_args()
    if given.real:
        real(given.quick, given.out)
        return
    seeds, replies = (1, REPLIES // 10) if given.quick else (given.seeds, REPLIES)
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place)
        for way in WAYS:
            name = way.replace(",", "").replace(" ", "-")
            found[way] = [
                figures(trained(way, seed, replies, folder / f"{name}-seed-{seed}"))
                for seed in range(seeds)
            ]
    columns = (f"time to {TARGET:.0%}", "time of all", "best", "last", "mean staleness")
    title = f"{SITES} sites, {seeds} seeds, {replies} replies, virtual time"
    print_table(title, ["way", *columns], [told(way, one) for way, one in found.items()])
    times = {way: together(one) for way, one in found.items()}
    waiting = [t for way, t in times.items() if t and way[0] == "s" and "deadline" not in way]
    buffered = [t for way, t in times.items() if t and way[0] == "b"]
    faster = min(waiting) / min(buffered) if waiting and buffered else None
    late = times["synchronous, all, deadline 20 s"]
    by_deadline = late / min(buffered) if late and buffered else None
    print(
        f"buffered is {faster} times as fast as waiting (asked: {GOAL}), {by_deadline} a deadline"
    )
    result = {"machine": machine(), "target": TARGET, "timing": TIMING, "goal": GOAL}
    if given.out.exists():
        result |= {k: v for k, v in json.loads(given.out.read_text()).items() if k == "real"}
    result |= {"times_faster": faster, "times_faster_than_a_deadline": by_deadline}
    write_json(given.out, {**result, "seconds": times, "runs": found})


if __name__ == "__main__":
    main()
