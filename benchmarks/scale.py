"""Many sites on one machine: what a site costs that waits, and a round by the number of sites."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from common import RESULTS, await_quiet, machine, print_table, write_json
from loopback import Loopback, Seen, available, below, brief, finished

from deploy import installed_engine, numbers
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import FedSightError
from fedsight.deploy.processes import on_demand, supervisor
from fedsight.deploy.server import scheduler
from fedsight.program import config

WARM_UP = 2  # rounds whose time is not counted; nor is that of the last one, which is evaluated
SETTLE = 5.0  # seconds between the last connection and the look at idle processes
LOOK = 0.02
TICK = os.sysconf("SC_CLK_TCK")
# MiB of a site in a run, with room: with processes of its own, and forked from one for all sites.
OWN_MIB, SHARED_MIB, SERVER_MIB = 750, 350, 1500


def settings(sites: int, rounds: int) -> dict[str, Any]:
    """The program: the smallest network for these images (2,982 parameters), four images a site."""
    return brief(f"scale-{sites}", sites, rounds, width=4, blocks=3)


@dataclass
class Watch:
    """Notes when rounds ended, and what all processes had computed by then."""

    loopback: Loopback
    store: RunStore
    rounds: int
    ends: list[float] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)  # by round: of processor time
    mib: float = 0.0  # of all processes, in the middle of the run

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """At work in a thread of its own while the block runs."""
        over = threading.Event()
        thread = threading.Thread(target=self._look, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _look(self, over: threading.Event) -> None:
        while not over.wait(LOOK):
            while len(self.ends) < finished(self.store):
                self.ends.append(time.monotonic())
            done = len(self.ends)
            if done in (WARM_UP, self.rounds - 1) and done not in self.seconds:
                seen = everybody(self.loopback)
                self.seconds[done] = sum(one.ticks() for one in seen) / TICK
                if done == WARM_UP:
                    self.mib = mib_of(seen)


def everybody(loopback: Loopback) -> list[Seen]:
    """All processes of the federation."""
    starters = [loopback.starter(home) for home in loopback.homes()]
    return [*(one for one in starters if one), *loopback.look()]


def mib_of(seen: Sequence[Seen]) -> float:
    """MiB of processes, a page divided among those that share it."""
    return round(sum(one.share() for one in seen) / 1024, 1)


def idle(loopback: Loopback, home: Path) -> dict[str, float]:
    """MiB of the processes of a site, or of the server, by role."""
    starter = loopback.starter(home)
    found: dict[str, float] = {}
    for one in [*([starter] if starter else []), *loopback.look(home)]:
        found[one.role] = round(found.get(one.role, 0.0) + one.share() / 1024, 1)
    return found


def resting(loopback: Loopback) -> dict[str, Any]:
    """What the server and the median site hold while nothing is asked of them."""
    sites = [idle(loopback, site.folder) for site in loopback.sites]
    roles = dict.fromkeys(role for site in sites for role in site)
    by_role = {role: round(median(site.get(role, 0.0) for site in sites), 1) for role in roles}
    server = idle(loopback, loopback.server)
    return {
        "site_mib": round(median(sum(site.values()) for site in sites), 1),
        "site_mib_by_role": by_role,
        "server_mib": round(sum(server.values()), 1),
        "server_mib_by_role": server,
    }


def measure(count: int, rounds: int, shared: bool, again: bool, scratch: Path) -> dict[str, Any]:
    """One federation: idle, in a run, and, if `again`, idle once more."""
    print(f"making keys and kits for {count} sites", flush=True)
    loopback = Loopback(scratch, count)
    program, speed = config.parse(settings(count, rounds), Path.cwd())
    store = RunStore(loopback.federation.runs / program.name)
    watch = Watch(loopback, store, rounds)
    found: dict[str, Any] = {"sites": count, "one_prefork_process": shared}
    found["cores_busy_with_other_work_before"] = await_quiet(0.0)
    began = time.monotonic()
    with supervisor.prefork_process() if shared else contextlib.nullcontext(), loopback.up():
        found["start_to_connected"] = round(time.monotonic() - began, 2)
        # A site that opens its images leaves a process behind that a job soon after that needs.
        settle = SETTLE if shared else on_demand.KEPT + SETTLE
        time.sleep(settle)
        found["idle"] = resting(loopback)
        if shared:
            all_from = [one for one in below(os.getpid()) if one.role == "prefork process"]
            found["idle"]["prefork_process_mib"] = mib_of(all_from)
        asked = time.monotonic()
        with watch.beside():
            scheduler.prepare(loopback.federation, program, speed, store)
            scheduler.resume(loopback.federation, store, [], lambda _: None)
        if again:
            time.sleep(on_demand.KEPT + SETTLE)
            found["idle_after_the_run"] = resting(loopback)
    found["left_running"] = loopback.leftovers()
    lines = store.history()
    seconds = [line["seconds"] for line in lines[WARM_UP:-1]]
    first, last = watch.seconds[WARM_UP], watch.seconds[rounds - 1]
    return {
        **found,
        "parameters": lines[0]["bytes_up"] // (4 * lines[0]["replies"]),
        "replies": min(line["replies"] for line in lines),
        "asked_to_first_round": round(watch.ends[0] - asked, 2),
        "start_to_first_round": round(watch.ends[0] - began - settle, 2),
        "round": round(median(seconds), 4),
        "round_by_round": [round(value, 4) for value in seconds],
        "processor_seconds_per_round": round((last - first) / (rounds - 1 - WARM_UP), 3),
        "all_processes_mib": watch.mib,
    }


def show(found: Sequence[dict[str, Any]]) -> None:
    """The table."""
    rows = [
        [
            f"{one['sites']}, {'from one process' if one['one_prefork_process'] else 'each alone'}",
            f"{one['idle']['site_mib']:.0f}",
            f"{one['idle']['server_mib']:.0f}",
            f"{one['all_processes_mib'] / 1024:.1f}",
            f"{one['start_to_connected']:.1f}",
            f"{one['asked_to_first_round']:.1f}",
            f"{one['round']:.2f}",
            f"{one['processor_seconds_per_round']:.2f}",
        ]
        for one in found
    ]
    columns = ["idle site, MiB", "idle server", "all in a run, GiB", "s to connect"]
    columns += ["s from asking to round 1", "round, s", "processor s a round"]
    size = f"{found[0]['parameters']:,}" if found else "few"
    title = f"Sites on one machine, a model of {size} parameters; memory is proportional (PSS)"
    print_table(title, ["sites", *columns], rows)
    for one in found:
        if "idle_after_the_run" in one:
            mib, after = one["idle"]["site_mib"], one["idle_after_the_run"]["site_mib"]
            print(
                f"  {one['sites']} sites: {mib:.0f} MiB before the first run, {after:.0f} after it"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 sites, each alone, 6 rounds")
    parser.add_argument("--own", type=numbers, help="sites with processes of their own: 4,10,20")
    parser.add_argument("--shared", type=numbers, help="sites forked from one: 4,10,20,40")
    parser.add_argument("--rounds", type=int, help="default: 20")
    parser.add_argument("--more", action="store_true", help="add to the results that are there")
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json")
    options = parser.parse_args()
    own = options.own if options.own is not None else [3] if options.quick else [4, 10, 20]
    shared = options.shared if options.shared is not None else [4, 10, 20, 40]
    shared = [] if options.quick and options.shared is None else shared
    rounds = options.rounds or (6 if options.quick else 20)
    if rounds < WARM_UP + 2:
        parser.error(f"--rounds must be {WARM_UP + 2} or more: the first and the last do not count")
    content: dict[str, Any] = {"benchmark": "scale", "machine": machine(), "rounds": rounds}
    content["machine"] |= {"deployed": installed_engine()}
    found: list[dict[str, Any]] = []
    left_out: list[str] = []
    if options.more and options.out.exists():
        found += json.loads(options.out.read_text())["federations"]
    cases = [(int(count), False) for count in own] + [(int(count), True) for count in shared]
    for number, (count, one) in enumerate(cases):
        need, free = SERVER_MIB + count * (SHARED_MIB if one else OWN_MIB), available() / 2**20
        if need > free:
            left_out.append(f"{count} sites: need about {need} MiB, and {free:.0f} are available")
            print(f"left out: {left_out[-1]}")
            continue
        with tempfile.TemporaryDirectory(prefix="fedsight-benchmark-") as scratch:
            try:
                again = not number and not one
                found.append(measure(count, rounds, one, again, Path(scratch)))
            except FedSightError as error:
                left_out.append(f"{count} sites: {error.cause}")
                print(f"FAILED: {left_out[-1]}")
        write_json(options.out, {**content, "federations": found, "left_out": left_out})
    show(found)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
