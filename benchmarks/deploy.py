"""A deployed round: what it costs beyond training, what memory it takes, and Flower's beside it."""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from common import (
    HERE,
    PEERS,
    RESULTS,
    ContestantError,
    Process,
    await_quiet,
    installed,
    machine,
    print_table,
    run_contestant,
    write_json,
)
from loopback import Loopback, Seen, available, brief, finished, identity

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import FedSightError
from fedsight.deploy.server import scheduler
from fedsight.program import config

WARM_UP = 1  # rounds whose time is not counted; nor is that of the last one, which is evaluated
MIB = 2**20
PAUSE = 0.02  # seconds between two looks at the coordinator's memory
QUIET = 5  # looks in which it computes for no more than one clock tick: it is idle
RULE = 4  # vectors of float32 that the coordinator may take on top of its base
PATIENCE = 900.0  # seconds that Flower may take
# Memory that a site and the rest need beside vectors, and the vectors that a site holds.
PER_SITE, SERVER, SITE_VECTORS = 400 * MIB, 1200 * MIB, 12
FLOWER = {"Flower": [], "Flower, polling oftener": ["--tuned"]}


def settings(sites: int, millions: float, rounds: int) -> dict[str, Any]:
    """The program: a network of about that many parameters, four images a site."""
    width = 4 * round((millions * 1e6 / 378) ** 0.5 / 4)  # 378 w^2 + 99 w + 10 parameters
    return brief(f"{sites}x{millions:g}M", sites, rounds, width=width, blocks=4)


@dataclass
class Watch:
    """Looks at the coordinator's job process and at the history, from a thread of its own."""

    loopback: Loopback
    store: RunStore
    rounds: int
    looks: list[tuple[float, int, int]] = field(default_factory=list)  # time, KiB, ticks
    private: list[int] = field(default_factory=list)  # KiB in each look that no file backs
    ends: list[float] = field(default_factory=list)  # when each round's line was there
    high: list[int] = field(default_factory=list)  # KiB, the kernel's high-water mark then
    held: dict[str, float] = field(default_factory=dict)  # MiB by role, once, between two rounds

    def __enter__(self) -> Watch:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        job: Seen | None = None
        while not self._over.wait(PAUSE):
            job = job or self.loopback.find("coordinator's job", self.loopback.server)
            if job is None:
                continue
            status, now = job.status(), time.monotonic()
            if "VmRSS" in status:
                self.looks.append((now, status["VmRSS"], job.ticks()))
                self.private.append(status["RssAnon"])
            while len(self.ends) < finished(self.store):
                self.ends.append(now)
                self.high.append(status.get("VmHWM", 0))
                if len(self.ends) == WARM_UP:
                    self.held = resident(self.loopback)

    def memory(self, first: float, vector: int) -> dict[str, Any]:
        """The coordinator's memory in MiB and in vectors; `first`: seconds of the first round."""
        began = self.ends[0] - first
        idle = [
            (now, kib)
            for (now, kib, ticks), (_, _, before) in zip(
                self.looks[QUIET:], self.looks, strict=False
            )
            if ticks - before <= 1
        ]
        window = [kib for now, kib in idle if began + QUIET * PAUSE <= now <= self.ends[0]]
        base = min(window or [kib for now, kib, _ in self.looks if began <= now <= self.ends[0]])
        empty = [kib for now, kib in idle if now <= began][-1:]  # waiting for sites to take part
        last = self.ends[self.rounds - 2]  # the round before the evaluated one
        peak = max(kib for now, kib, _ in self.looks if began <= now <= last)
        if self.high[self.rounds - 2] > self.high[0]:  # it rose in a later round: the exact figure
            peak = max(peak, self.high[self.rounds - 2])
        over = (peak - base) * 1024
        private = [
            kib
            for (now, _, _), kib in zip(self.looks, self.private, strict=True)
            if began <= now <= last
        ]
        return {
            "base_mib": round(base / 1024, 1),
            "base_seen_idle": bool(window),
            "before_the_model_mib": round(empty[0] / 1024, 1) if empty else None,
            "peak_mib": round(peak / 1024, 1),
            "peak_without_mapped_files_mib": round(max(private) / 1024, 1),
            "least_without_mapped_files_mib": round(min(private) / 1024, 1),
            "over_base_mib": round(over / MIB, 1),
            "over_base_vectors": round(over / vector, 2),
            "within_rule": over <= RULE * vector,
        }


def measure(loopback: Loopback, millions: float, rounds: int) -> dict[str, Any]:
    """One deployment from the start of its processes to the end of its run."""
    sites = len(loopback.sites)
    program, speed = config.parse(settings(sites, millions, rounds), Path.cwd())
    store = RunStore(loopback.federation.runs / program.name)
    began = time.monotonic()
    with loopback.up(), Watch(loopback, store, rounds) as watch:
        connected = time.monotonic() - began
        scheduler.prepare(loopback.federation, program, speed, store)
        scheduler.resume(loopback.federation, store, [], lambda _: None)
    left = loopback.leftovers()
    history = store.history()
    updates = loopback.updates(identity(store))
    training = {
        line["round"]: max(u["seconds"] for u in updates if u["round"] == line["round"])
        for line in history
    }
    parameters = history[0]["bytes_up"] // (4 * history[0]["replies"])
    counted = history[WARM_UP:-1]
    overhead = [line["seconds"] - training[line["round"]] for line in counted]
    return {
        "sites": sites,
        "parameters": parameters,
        "overhead": round(median(overhead), 4),
        "overhead_by_round": [round(value, 4) for value in overhead],
        "round": round(median(line["seconds"] for line in counted), 4),
        "round_by_round": [round(line["seconds"], 4) for line in counted],
        "slowest_training": round(median(training[line["round"]] for line in counted), 4),
        "start_to_connected": round(connected, 2),
        "start_to_first_round": round(watch.ends[0] - began, 2),
        "coordinator": watch.memory(history[0]["seconds"], 4 * parameters),
        "all_processes_mib": watch.held,
        "left_running": left,
    }


def resident(loopback: Loopback) -> dict[str, float]:
    """MiB by role: the sum over all sites; a page is divided among those that share it."""
    found: dict[str, float] = {}
    for one in loopback.look():
        found[one.role] = found.get(one.role, 0.0) + one.share() / 1024
    return {role: round(value, 1) for role, value in found.items()}


def flower(found: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Flower's rounds with as many sites and parameters, by variant."""
    peers: dict[str, Any] = {}
    for name, words in FLOWER.items():
        counts = ["--sites", str(found["sites"]), "--parameters", str(found["parameters"])]
        script = HERE / "contestants" / "flower_deploy.py"
        process = Process(PEERS, script, [*counts, "--rounds", str(rounds), *words])
        try:
            result = run_contestant(process, PATIENCE)
        except ContestantError as error:
            result = {"rounds": [], "error": str(error)}
        if "error" in result:
            print(f"{name}: {result['error']}")
        if len(result["rounds"]) > WARM_UP:
            result["round"] = median(result["rounds"][WARM_UP:])
            result["times_ours"] = round(result["round"] / found["round"], 2)
        peers[name] = result
    return peers


def needed(sites: int, millions: float) -> int:
    """Bytes that a deployment takes, roughly."""
    return int(SERVER + sites * PER_SITE + 4e6 * millions * (SITE_VECTORS * sites + 16))


def show(found: Sequence[dict[str, Any]]) -> None:
    """The table, and how to read it."""
    rows = []
    for one in found:
        memory = one["coordinator"]
        peers = [one.get("peers", {}).get(name, {}) for name in FLOWER]
        rows.append(
            [
                f"{one['sites']} x {one['parameters'] / 1e6:.2f} M",
                f"{one['overhead']:.2f}",
                f"{one['round']:.2f}",
                f"{one['start_to_first_round']:.1f}",
                f"{memory['over_base_mib']:.0f}",
                f"{memory['over_base_vectors']:.1f}" + ("" if memory["within_rule"] else " (!)"),
                *(
                    f"{p['round']:.2f} ({p['times_ours']:.1f}x)" if "round" in p else "-"
                    for p in peers
                ),
            ]
        )
    columns = ["sites x parameters", "overhead s", "round s", "first round s", "MiB", "vectors"]
    print_table("A deployed round, on loopback with mutual TLS", [*columns, *FLOWER], rows)
    print(
        "  overhead: the coordinator's round less the slowest site's own training, median\n"
        "  first round: from starting the first process to the end of the first round; keys and\n"
        "  kits were made before\n"
        "  MiB, vectors: the coordinator's peak over its base (idle in round 1); the rule:\n"
        f"  at most base plus {RULE} float32 vectors; (!) is more\n"
        "  Flower: its round, without TLS and without training, and how many times ours that is"
    )


def numbers(text: str) -> list[float]:
    """`4,10,20`."""
    return [float(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 sites, 1 million, no peers")
    parser.add_argument("--sites", type=numbers, help="default: 4,10,20")
    parser.add_argument("--parameters", type=numbers, help="in millions; default: 1,10")
    parser.add_argument("--rounds", type=int, help="default: 12, or 6 with --quick")
    parser.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, help="default: if installed; not --quick"
    )
    parser.add_argument("--peer-rounds", type=int, help="default: as many as ours")
    parser.add_argument(
        "--quiet", type=float, default=0.0, metavar="S", help="wait so long for others to pause"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "deploy.json")
    options = parser.parse_args()
    sites = [int(value) for value in options.sites or ([4] if options.quick else [4, 10, 20])]
    millions = options.parameters or ([1] if options.quick else [1, 10])
    rounds = options.rounds or (6 if options.quick else 12)
    if rounds < WARM_UP + 2:
        parser.error(f"--rounds must be {WARM_UP + 2} or more: the first and the last do not count")
    peers = options.peers if options.peers is not None else not options.quick
    if peers and not installed(PEERS, "flwr"):
        print("Flower is not installed ('make peers' installs it): left out")
        peers = False
    facts = machine() | {"peers": installed(PEERS, "flwr"), "deployed": installed_engine()}
    found: list[dict[str, Any]] = []
    left_out: list[str] = []
    content = {
        "benchmark": "deploy",
        "quick": options.quick,
        "machine": facts,
        "rounds": rounds,
        "not_counted": f"the first {WARM_UP} and the last",
        "rule": f"coordinator's peak in the rounds at most base + {RULE} float32 vectors",
        "deployments": found,
        "left_out": left_out,
    }
    for count in sites:
        with tempfile.TemporaryDirectory(prefix="fedsight-benchmark-") as scratch:
            print(f"making keys and kits for {count} sites")
            loopback = Loopback(Path(scratch), count)
            for size in millions:
                if (need := needed(count, size)) > (free := available()):
                    left_out.append(
                        f"{count} sites x {size:g} M: needs about {need / 2**30:.0f} GiB of "
                        f"memory, and {free / 2**30:.0f} GiB are available"
                    )
                    print(f"left out: {left_out[-1]}")
                    continue
                others = await_quiet(options.quiet)
                try:
                    one = measure(loopback, size, rounds)
                except FedSightError as error:
                    left_out.append(f"{count} sites x {size:g} M: {error.cause}")
                    print(f"FAILED: {left_out[-1]}")
                    continue
                one["cores_busy_with_other_work_before"] = others
                print(
                    f"{count} x {size:g} M: {one['overhead']:.2f} of {one['round']:.2f} s a round"
                )
                if peers:
                    one["peers"] = flower(one, max(options.peer_rounds or rounds, WARM_UP + 1))
                found.append(one)
                write_json(options.out, json.loads(json.dumps(content)))
    write_json(options.out, json.loads(json.dumps(content)))
    print()
    show(found)
    print(f"wrote {options.out}")


def installed_engine() -> str:
    """The version of the deployment engine."""
    from importlib.metadata import version

    return f"nvflare {version('nvflare')}"


if __name__ == "__main__":
    main()
