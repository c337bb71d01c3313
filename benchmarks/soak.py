"""Endurance of a deployed run: through kills of every process there is, and over many rounds."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import RESULTS, machine, print_table, write_json
from loopback import Loopback, Seen, finished, identity

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import FedSightError
from fedsight.deploy.server import scheduler
from fedsight.program import config
from fedsight.program.program import Program, Speed

SITE_KINDS = ("trainer", "site's job", "site's parent", "site start")
SERVER_KINDS = ("coordinator's job", "server's parent", "server start")
KINDS = (*SITE_KINDS, *SERVER_KINDS)
LIGHT = (  # little to compute: processes are tried; SCAFFOLD's sites have a memory to be lost
    *("train.epochs=1", "train.momentum=0.0", "model.width=8"),
    "algorithm.name=scaffold",
)
LOOK = 0.05
WARM_UP = 0.2  # the part of a long run over whose memory no line is fitted


class Over(Exception):  # noqa: N818 - the run is
    """The run has ended."""


@dataclass
class Killer:
    """Kills somebody at a random moment, waits for two finished rounds, and again."""

    loopback: Loopback
    store: RunStore
    kinds: Sequence[str]
    draws: random.Random
    kills: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """All kills; to be run in a thread of its own."""
        try:
            self.wait_for(2)
            for kind in self.kinds:
                site = self.draws.choice(self.loopback.sites)
                rounds, moment = self.draws.randint(0, 1), self.draws.random()
                self.wait_for(finished(self.store) + rounds)
                self.kill(kind, site.folder if kind in SITE_KINDS else self.loopback.server, moment)
        except Over:
            pass
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"

    def kill(self, kind: str, home: Path, moment: float) -> None:
        """One kill, `moment` of a round after the next one that finishes."""
        self.wait_for(finished(self.store) + 1)
        seconds = median(line["seconds"] for line in self.store.history()[-5:])
        time.sleep(moment * seconds)
        while not self.strike(kind, home):
            self.pause()
        began, before = time.monotonic(), finished(self.store)
        fact: dict[str, Any] = {"kind": kind, "of": home.name, "after_round": before}
        self.kills.append(fact)
        print(f"{len(self.kills):3}: {kind} of {home.name}, killed after round {before}", end="")
        sys.stdout.flush()
        self.wait_for(before + 1)
        next_round = time.monotonic() - began
        self.wait_for(before + 2)
        # Where the round could still be finished without the dead, the pause is in the next one.
        pause = max(next_round, time.monotonic() - began - next_round)
        fact |= {"next_round": round(next_round, 2), "longest_pause": round(pause, 2)}
        fact["rounds_before_took"] = round(seconds, 2)
        print(
            f"; the next {next_round:.1f} s later, "
            f"longest pause {pause:.1f} s, before {seconds:.1f} s"
        )

    def strike(self, kind: str, home: Path) -> bool:
        """Kill the process now; False if there is none of that kind at the moment."""
        if kind.endswith(" start"):
            found: Seen | None = self.loopback.starter(home)
        else:
            found = self.loopback.find(kind, home)
        return found is not None and found.kill()

    def wait_for(self, rounds: int) -> int:
        """Until so many rounds are in the history. Raises Over when the run ends before."""
        while (done := finished(self.store)) < rounds:
            self.pause()
        return done

    def pause(self) -> None:
        """A moment. Raises Over."""
        if self.over.wait(LOOK):
            raise Over


def spread(kills: int, draws: random.Random) -> list[str]:
    """The kinds of so many kills: all equally often, in random order."""
    kinds: list[str] = []
    while len(kinds) < kills:
        kinds += draws.sample(KINDS, len(KINDS))
    return kinds[:kills]


def undisturbed(sets: Sequence[str], folder: Path) -> str:
    """The model's SHA-256 of the same program on the embedded engine."""
    words = [word for each in sets for word in ("--set", each)]
    command = [sys.executable, "-m", "fedsight", "run", "--example", "fashion", *words]
    subprocess.run([*command, "--out", str(folder)], check=True, capture_output=True)
    return str(json.loads((folder / "summary.json").read_text())["model_sha256"])


def deployed(
    loopback: Loopback, program: Program, speed: Speed, store: RunStore
) -> tuple[dict[str, Any], list[str], str]:
    """The run's summary, what it said on its way, and why it failed if it did."""
    said: list[str] = []
    try:
        scheduler.prepare(loopback.federation, program, speed, store)
        return scheduler.resume(loopback.federation, store, [], said.append), said, ""
    except FedSightError as error:
        return {}, said, f"{error.cause} ({error.cure})"


@contextlib.contextmanager
def beside(watcher: Killer | Gauge) -> Iterator[None]:
    """The watcher at work in a thread of its own, until the block ends."""
    thread = threading.Thread(target=watcher.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        watcher.over.set()
        thread.join()


def killed(sites: int, kills: int, rounds: int, seed: int, place: Path) -> dict[str, Any]:
    """A run through all kills; what came of it."""
    draws = random.Random(seed)
    sets = [*LIGHT, f"split.sites={sites}", f"rounds.rounds={rounds}"]
    program, speed = config.example("fashion", [*sets, "name=soak"])
    sha = undisturbed(sets, place / "embedded")
    print(f"undisturbed: {sha[:16]}; making keys and kits for {sites} sites")
    loopback = Loopback(place / "federation", sites)
    store = RunStore(loopback.federation.runs / program.name)
    killer = Killer(loopback, store, spread(kills, draws), draws)
    began = time.monotonic()
    with loopback.up(again=True), beside(killer):
        summary, said, problem = deployed(loopback, program, speed, store)
    seconds = time.monotonic() - began
    left = loopback.leftovers()
    lost = again(loopback, store)
    checks = {
        "finished without anybody's help": bool(summary),
        "all kills were made": len(killer.kills) == kills and not killer.problem,
        "at most one round lost for each kill": sum(lost.values()) <= len(killer.kills),
        "same bits as the undisturbed run": summary.get("model_sha256") == sha,
        "nothing left running": not left,
    }
    return {
        "sites": sites,
        "rounds": rounds,
        "seed": seed,
        "seconds": round(seconds, 1),
        "checks": checks,
        "problems": [text for text in (problem, killer.problem) if text],
        "kills": killer.kills,
        "kinds": by_kind(killer.kills),
        "rounds_trained_again": {str(number): times for number, times in sorted(lost.items())},
        "segments": len(said_going_on(said)) + 1,
        "said": said,
        "starts_by_the_init_system": loopback.restarts,
        "left_running": left,
        "model_sha256": {"embedded": sha, "deployed": summary.get("model_sha256")},
    }


def again(loopback: Loopback, store: RunStore) -> Counter[int]:
    """How often each round was trained anew, by the sites' own logs: the most of any site."""
    trained = Counter((line["round"], line["site"]) for line in loopback.updates(identity(store)))
    lost: Counter[int] = Counter()
    for (number, _), times in trained.items():
        lost[number] = max(lost[number], times - 1)
    return +lost


def said_going_on(said: Sequence[str]) -> list[str]:
    """What the chain said when a segment ended before the run did."""
    return [text for text in said if text.endswith("continuing")]


def by_kind(kills: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The median times of each kind of kill."""
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        of = [kill for kill in kills if kill["kind"] == kind and "next_round" in kill]
        if of:
            found[kind] = {
                "kills": len(of),
                "next_round": round(median(kill["next_round"] for kill in of), 2),
                "longest_pause": round(median(kill["longest_pause"] for kill in of), 2),
            }
    return found


def show_kills(found: dict[str, Any]) -> None:
    """The table, and the verdicts."""
    rows = [
        [kind, str(one["kills"]), f"{one['next_round']:.1f}", f"{one['longest_pause']:.1f}"]
        for kind, one in found["kinds"].items()
    ]
    print_table(
        f"{found['sites']} sites, {found['rounds']} rounds, {len(found['kills'])} kills; medians",
        ["killed", "times", "s to the next finished round", "longest pause in the next two, s"],
        rows,
    )
    lost = sum(found["rounds_trained_again"].values())
    print(f"  {lost} rounds trained again; {found['segments']} segments; {found['seconds']:.0f} s")
    for check, met in found["checks"].items():
        print(f"  {check}: {'yes' if met else 'NO'}")
    for problem in (*found["problems"], *found["left_running"]):
        print(f"  {problem}")


@dataclass
class Gauge:
    """Resident memory of all processes after each round."""

    loopback: Loopback
    store: RunStore
    over: threading.Event = field(default_factory=threading.Event)
    rounds: list[int] = field(default_factory=list)
    kib: dict[str, list[int]] = field(default_factory=dict)  # by role and place, for each round
    threads: dict[str, int] = field(default_factory=dict)  # by role and place: the most seen

    def run(self) -> None:
        """To be run in a thread of its own, until `over`."""
        known: dict[str, Seen] = {}
        while not self.over.wait(LOOK):
            done = finished(self.store)
            if not done or done == (self.rounds[-1] if self.rounds else 0):
                continue
            if not known or not all(one.alive for one in known.values()):
                known = self.everybody()
                self.rounds, self.kib = [], {}  # a new segment has new processes
            self.rounds.append(done)
            for place, one in known.items():
                status = one.status()
                self.kib.setdefault(place, []).append(status.get("VmRSS", 0))
                self.threads[place] = max(self.threads.get(place, 0), status.get("Threads", 0))

    def everybody(self) -> dict[str, Seen]:
        """All processes by role and place, the youngest of each."""
        homes = [self.loopback.server, *(site.folder for site in self.loopback.sites)]
        return {
            f"{one.role} ({home.name})": one for home in homes for one in self.loopback.look(home)
        }

    def slopes(self) -> dict[str, dict[str, float]]:
        """By role and place: MiB at first and last, KiB in a hundred rounds by least squares."""
        skipped = int(len(self.rounds) * WARM_UP)
        found = {}
        for place, values in self.kib.items():
            rounds, kib = self.rounds[skipped:], values[skipped:]
            kept = [(a, b) for a, b in zip(rounds, kib, strict=True) if b]  # 0: it had ended
            if len(kept) < 2:
                continue
            slope = float(np.polyfit(*np.array(kept, dtype=float).T, 1)[0])
            found[place] = {
                "first_mib": round(kept[0][1] / 1024, 1),
                "last_mib": round(kept[-1][1] / 1024, 1),
                "kib_per_100_rounds": round(100 * slope, 1),
                "most_threads": self.threads[place],
            }
        return found


def flat(sites: int, rounds: int, place: Path) -> dict[str, Any]:
    """A long run of a tiny model without kills; how memory goes."""
    table = {
        "name": "flat",
        "data": {"name": "fashion-mnist-12k"},
        "split": {"name": "virtual", "sites": sites, "samples": 16},
        "model": {"name": "small_cnn", "width": 4, "blocks": 2},
        "train": {"batch": 16, "lr": 0.01},
        "rounds": {"rounds": rounds, "evaluate_every": 10},
    }
    program, speed = config.parse(table, Path.cwd())
    print(f"making keys and kits for {sites} sites")
    loopback = Loopback(place / "flat", sites)
    store = RunStore(loopback.federation.runs / program.name)
    gauge = Gauge(loopback, store)
    with loopback.up(), beside(gauge):
        summary, said, problem = deployed(loopback, program, speed, store)
    left = loopback.leftovers()
    lines = store.history()
    step = max(1, len(gauge.rounds) // 50)
    return {
        "sites": sites,
        "rounds": rounds,
        "finished": bool(summary),
        "problems": [problem] if problem else [],
        "said": said,
        "seconds_per_round": round(median(line["seconds"] for line in lines), 3),
        "fitted_over": f"the last {1 - WARM_UP:.0%} of the rounds",
        "processes": gauge.slopes(),
        "at_rounds": gauge.rounds[::step],
        "resident_kib": {place: values[::step] for place, values in gauge.kib.items()},
        "left_running": left,
    }


def show_flat(found: dict[str, Any]) -> None:
    """The table."""
    rows = [
        [
            place,
            f"{one['first_mib']:.1f}",
            f"{one['last_mib']:.1f}",
            f"{one['kib_per_100_rounds']:+.0f}",
            f"{one['most_threads']:.0f}",
        ]
        for place, one in found["processes"].items()
    ]
    print_table(
        f"Resident memory over {found['rounds']} rounds of {found['seconds_per_round']:.2f} s; "
        f"slopes over {found['fitted_over']}",
        ["process", "first, MiB", "last, MiB", "KiB in 100 rounds", "most threads"],
        rows,
    )
    for problem in (*found["problems"], *found["left_running"]):
        print(f"  {problem}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, help="default: 10, or 4 with --flat")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rounds", type=int, help="default: as many as the kills can need")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed, and when")
    parser.add_argument("--flat", type=int, metavar="ROUNDS", help="no kills: memory over so many")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    given = parser.parse_args()
    content = {"benchmark": "soak"}
    if given.out.exists():  # the other half of it stays
        content |= json.loads(given.out.read_text())
    facts = machine()
    with tempfile.TemporaryDirectory(prefix="fedsight-benchmark-") as scratch:
        if given.flat is not None:
            found = flat(given.sites or 4, given.flat, Path(scratch))
            good = found["finished"] and not found["left_running"]
            show_flat(found)
        else:
            rounds = given.rounds or 4 * given.kills + 4
            found = killed(given.sites or 10, given.kills, rounds, given.seed, Path(scratch))
            good = all(found["checks"].values())
            show_kills(found)
    part = "flat" if given.flat is not None else "kills"
    write_json(given.out, {**content, part: {"machine": facts, **found}})
    print(f"wrote {given.out}")
    sys.exit(not good)


if __name__ == "__main__":
    main()
