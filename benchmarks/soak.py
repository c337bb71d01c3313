"""Endurance of a deployed run: processes of every kind are killed, stopped and held up, and both
consoles are open and looked at all the while. The bits must be the same, and memory flat."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from common import RESULTS, await_quiet, machine, print_table, write_json
from loopback import Loopback, Seen, finished, identity
from soak_consoles import CONSOLES, Consoles
from soak_memory import GROWTH, Gauge

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import FedSightError
from fedsight.deploy.server import scheduler
from fedsight.program import config

SITE, SERVER = "site", "server"
ROUNDS = 10  # for each fault: three, and those that go by while a console is opened again
HELD = (1.0, 6.0)  # seconds that a process is held by SIGSTOP
LOOK = 0.05
LEAST_ROUNDS = 100  # over which a line through memory says something
PROGRAM = """
name = "soak"
algorithm = {{ name = "scaffold" }}
data = {{ name = "fashion-mnist-12k" }}
split = {{ name = "virtual", sites = {sites}, samples = 64 }}
model = {{ name = "small_cnn", width = 8, blocks = 2 }}
train = {{ batch = 32, epochs = 1, lr = 0.05, momentum = 0.0 }}
rounds = {{ rounds = {rounds}, evaluate_every = 20 }}
"""  # little to compute: processes are tried; SCAFFOLD's sites have a memory to be lost


class Over(Exception):  # noqa: N818 - the run is
    """The run has ended."""


@dataclass(frozen=True)
class Fault:
    """What is done to a process: `how` (killed, stopped, held, reopened), and to which."""

    how: str
    where: str  # "site", "server", or the console
    role: str = "start command"

    @property
    def name(self) -> str:
        """As it is called in tables."""
        return f"{self.where}: {self.how}" if self.how == "reopened" else f"{self.role}, {self.how}"


FAULTS = (
    *(Fault("killed", SITE, role) for role in ("trainer", "site's job", "site's parent")),
    *(Fault("killed", SERVER, role) for role in ("coordinator's job", "server's parent")),
    *(Fault("killed", where, "prefork process") for where in (SITE, SERVER)),
    Fault("killed", SITE, "site's start command"),
    Fault("killed", SERVER, "server's start command"),
    Fault("stopped (SIGTERM)", SITE, "site's start command"),
    Fault("stopped (SIGTERM)", SERVER, "server's start command"),
    *(Fault("held (SIGSTOP)", SITE, role) for role in ("trainer", "site's job", "site's parent")),
    Fault("held (SIGSTOP)", SERVER, "coordinator's job"),
    *(Fault("reopened", console) for console in CONSOLES),
)
SIGNALS = {
    "killed": signal.SIGKILL,
    "stopped (SIGTERM)": signal.SIGTERM,
    "held (SIGSTOP)": signal.SIGSTOP,
}


@dataclass
class Killer:
    """Does something to somebody at a random moment, waits for two finished rounds, and again."""

    loopback: Loopback
    store: RunStore
    consoles: Consoles
    faults: Sequence[Fault]
    draws: random.Random
    made: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """All faults; to be run in a thread of its own."""
        try:
            self.wait_for(2)
            for fault in self.faults:
                site = self.draws.choice(self.loopback.sites).folder
                moment, seconds = self.draws.random(), self.draws.uniform(*HELD)
                home = site if fault.where == SITE else self.loopback.server
                self.fault(fault, home, moment, seconds)
        except Over:
            pass
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"

    def fault(self, fault: Fault, home: Path, moment: float, held: float) -> None:
        """One fault, `moment` of a round after the next one that finishes."""
        self.wait_for(finished(self.store) + 1)
        usual = median(line["seconds"] for line in self.store.history()[-5:])
        time.sleep(moment * usual)
        began = time.monotonic()
        if fault.how == "reopened":
            before = finished(self.store)
            self.consoles.kill_and_reopen(fault.where)
        else:
            seen = self.strike(fault, home)
            began, before = time.monotonic(), finished(self.store)
            if fault.how == "held (SIGSTOP)":
                try:
                    self.over.wait(held)
                finally:
                    seen.send(signal.SIGCONT)
        who = fault.where if fault.how == "reopened" else home.name
        fact: dict[str, Any] = {"fault": fault.name, "of": who, "after_round": before}
        self.made.append(fact)
        print(f"{len(self.made):3}: {fault.name} ({who}) after round {before}", end="", flush=True)
        self.wait_for(before + 1)
        next_round = time.monotonic() - began
        self.wait_for(before + 2)
        # Where the round could still be finished without the dead, the pause is in the next one.
        pause = max(next_round, time.monotonic() - began - next_round)
        fact |= {"next_round": round(next_round, 2), "longest_pause": round(pause, 2)}
        fact["rounds_before_took"] = round(usual, 2)
        print(f"; longest pause {pause:.1f} s, rounds before {usual:.2f} s", flush=True)

    def strike(self, fault: Fault, home: Path) -> Seen:
        """Send the signal, as soon as there is such a process; to whom."""
        while True:
            if fault.role.endswith("start command"):
                found = self.loopback.starter(home)
            else:
                found = self.loopback.find(fault.role, home)
            if found is not None and found.send(SIGNALS[fault.how]):
                return found
            self.pause()

    def wait_for(self, rounds: int) -> None:
        """Until so many rounds are in the history. Raises Over when the run ends before."""
        while finished(self.store) < rounds:
            self.pause()

    def pause(self) -> None:
        """A moment. Raises Over."""
        if self.over.wait(LOOK):
            raise Over


def drawn(count: int, draws: random.Random) -> list[Fault]:
    """So many faults, each kind as often as the others, in random order; the consoles' all come in
    the first half, so that those that are open at the end have been so for long."""
    faults: list[Fault] = []
    while len(faults) < count:
        faults += draws.sample(FAULTS, len(FAULTS))
    faults = faults[:count]
    late = [n for n in range(count // 2, count) if faults[n].how == "reopened"]
    early = [n for n in range(count // 2) if faults[n].how != "reopened"]
    for number, other in zip(late, draws.sample(early, len(late)), strict=True):
        faults[number], faults[other] = faults[other], faults[number]
    return faults


def undisturbed(file: Path, folder: Path) -> str:
    """The model's SHA-256 of the same program on the embedded engine."""
    command = [sys.executable, "-m", "fedsight", "run", str(file), "--out", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return str(json.loads((folder / "summary.json").read_text())["model_sha256"])


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


def soak(sites: int, faults: Sequence[Fault], quiet: int, seed: int, place: Path) -> dict[str, Any]:
    """A run through all faults, and `quiet` rounds more; what came of it."""
    rounds = ROUNDS * len(faults) + quiet
    file = place / "soak.toml"
    file.write_text(PROGRAM.format(sites=sites, rounds=rounds))
    sha = undisturbed(file, place / "embedded")
    print(f"undisturbed: {sha[:16]}; making keys and kits for {sites} sites", flush=True)
    loopback = Loopback(place / "federation", sites)
    program, speed = config.load(file)
    store = RunStore(loopback.federation.runs / program.name)
    consoles = Consoles(loopback, program.name)
    killer = Killer(loopback, store, consoles, faults, random.Random(seed))
    gauge = Gauge(loopback, store, consoles)
    summary: dict[str, Any] = {}
    said: list[str] = []
    problems: list[str] = []
    began = time.monotonic()
    with loopback.up(again=True):
        scheduler.prepare(loopback.federation, program, speed, store)
        with consoles.open(), beside(gauge), beside(killer):
            try:
                summary = scheduler.resume(loopback.federation, store, [], said.append)
            except FedSightError as error:
                problems.append(f"{error.cause} ({error.cure})")
    seconds = time.monotonic() - began
    left = loopback.leftovers()
    if killer.problem:
        problems.append(killer.problem)
    lost = again(loopback, store)
    last_fault = max((one["after_round"] for one in killer.made), default=0) + 2
    found = {
        "sites": sites,
        "rounds": rounds,
        "rounds_wanted_after_the_last_fault": quiet,
        "rounds_after_the_last_fault": finished(store) - last_fault,
        "seed": seed,
        "seconds": round(seconds, 1),
        "problems": problems,
        "faults": killer.made,
        "by_fault": by_fault(killer.made),
        "rounds_trained_again": {str(number): times for number, times in sorted(lost.items())},
        "jobs": sum(text.endswith("continuing") for text in said) + 1,
        "said": said,
        "starts_by_the_init_system": loopback.restarts,
        "left_running": left,
        "consoles": consoles.found(),
        "memory_after_the_last_fault": gauge.quiet(last_fault, rounds),
        "memory_over_all_faults": gauge.whole(),
        "most_threads": gauge.threads,
        "model_sha256": {"embedded": sha, "deployed": summary.get("model_sha256")},
    }
    return {**found, "checks": checks(found, len(faults))}


def checks(found: Mapping[str, Any], faults: int) -> dict[str, bool]:
    """What must hold."""
    consoles, memory = found["consoles"], found["memory_after_the_last_fault"]
    parts = {part: line for part, line in memory.items() if ": " not in part}
    sha = found["model_sha256"]
    flat = len(parts) == found["sites"] + 1 + len(consoles) and all(
        line["flat"] and line["rounds"] >= LEAST_ROUNDS for line in parts.values()
    )
    name = f"memory of server, sites and consoles flat (at most {GROWTH:.0%} in 100 rounds)"
    wanted = found["rounds_wanted_after_the_last_fault"] >= LEAST_ROUNDS
    return {
        "finished without anybody's help": sha["deployed"] is not None,
        "all faults were made": len(found["faults"]) == faults and not found["problems"],
        "at most one round lost for each fault": sum(found["rounds_trained_again"].values())
        <= faults,
        "same bits as the undisturbed run": sha["deployed"] == sha["embedded"],
        "nothing left running": not found["left_running"],
        "the consoles answered all the time": all(
            one["events"] and not one["problems"] for one in consoles.values()
        ),
        **({name: flat} if wanted else {}),
    }


def again(loopback: Loopback, store: RunStore) -> Counter[int]:
    """How often each round was trained anew, by the sites' own logs: the most of any site."""
    trained = Counter((line["round"], line["site"]) for line in loopback.updates(identity(store)))
    lost: Counter[int] = Counter()
    for (number, _), times in trained.items():
        lost[number] = max(lost[number], times - 1)
    return +lost


def by_fault(made: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The median times of each kind."""
    found: dict[str, dict[str, Any]] = {}
    for name in (fault.name for fault in FAULTS):
        of = [one for one in made if one["fault"] == name and "next_round" in one]
        if of:
            found[name] = {
                "times": len(of),
                "next_round": round(median(one["next_round"] for one in of), 2),
                "longest_pause": round(median(one["longest_pause"] for one in of), 2),
            }
    return found


def show(found: Mapping[str, Any]) -> None:
    """The tables, and the verdicts."""
    rows = [
        [name, str(one["times"]), f"{one['next_round']:.1f}", f"{one['longest_pause']:.1f}"]
        for name, one in found["by_fault"].items()
    ]
    print_table(
        f"{found['sites']} sites, {found['rounds']} rounds, {len(found['faults'])} faults; medians",
        ["what", "times", "s to the next finished round", "longest pause in the next two, s"],
        rows,
    )
    lost = sum(found["rounds_trained_again"].values())
    print(f"  {lost} rounds trained again; {found['jobs']} jobs; {found['seconds']:.0f} s")
    show_memory(found["memory_after_the_last_fault"])
    rows = [
        [group, *(f"{value:.0f}" for value in one["mib_by_tenth"])]
        for group, one in found["memory_over_all_faults"].items()
    ]
    tenths = [str(number + 1) for number in range(max(len(row) for row in rows) - 1)]
    print_table("MiB (PSS) in each tenth of the time, faults included", ["", *tenths], rows)
    for name, one in found["consoles"].items():
        answers = list(one["answers"].values())
        times = sum(answer["answers"] for answer in answers)
        slowest = max((answer["median"] for answer in answers), default=0.0)
        print(f"  {name}: opened {one['opened']} times, {one['events']} events, {times} answers,")
        print(f"    the slowest page's median {slowest:.0f} ms")
    for check, met in found["checks"].items():
        print(f"  {check}: {'yes' if met else 'NO'}")
    seen = [text for one in found["consoles"].values() for text in one["problems"][:5]]
    for problem in (*found["problems"], *seen, *found["left_running"]):
        print(f"  {problem}")


def show_memory(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Lines through the memory of the server, the sites and the consoles, by part and role."""
    rows = []
    for key, line in found.items():
        low, slope, high = line["mib_per_100_rounds"]
        name = f"  {key.partition(': ')[2]}" if ": " in key else key
        verdict = "" if ": " in key else "yes" if line["flat"] else "NO"
        values = [
            f"{line['mib']:.1f}",
            str(line["rounds"]),
            f"{slope:+.2f} ({low:+.2f}..{high:+.2f})",
        ]
        rows.append([name, *values, f"{line['mib_per_hour']:+.0f}", verdict])
    print_table(
        "Memory (PSS) after the last fault: a line and the 95 % interval of its slope",
        ["part and its processes", "MiB", "rounds", "MiB in 100 rounds", "MiB an hour", "flat"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 sites, 8 faults, 40 rounds after")
    parser.add_argument("--sites", type=int, help="default: 10")
    parser.add_argument("--faults", type=int, help="default: 40; 0: memory only")
    parser.add_argument("--rounds-after", type=int, help="the last fault; default: 300")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed, and when")
    parser.add_argument(
        "--quiet", type=float, default=0.0, metavar="S", help="wait so long for others to pause"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    given = parser.parse_args()
    sites, count, after = (3, 8, 40) if given.quick else (10, 40, 300)
    sites = given.sites or sites
    count = count if given.faults is None else given.faults
    after = after if given.rounds_after is None else given.rounds_after
    facts, before = machine(), await_quiet(given.quiet)
    with tempfile.TemporaryDirectory(prefix="fedsight-benchmark-") as scratch:
        faults = drawn(count, random.Random(given.seed))
        found = soak(sites, faults, after, given.seed, Path(scratch))
    show(found)
    content = {"benchmark": "soak", "quick": given.quick, "machine": facts}
    write_json(given.out, {**content, "cores_busy_with_other_work_before": before, **found})
    print(f"wrote {given.out}")
    sys.exit(not all(found["checks"].values()))


if __name__ == "__main__":
    main()
