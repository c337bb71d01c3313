"""Many sites on one machine: memory of an idle site, and a round's time by number of sites."""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from common import RESULTS, await_quiet, machine, print_table, write_json
from loopback import Loopback, Seen, available

from deploy import installed_engine, numbers
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import FedSightError
from fedsight.deploy import demo
from fedsight.deploy.server import scheduler
from fedsight.program import config

WARM_UP = 2  # rounds whose time is not counted; nor is that of the last one, which is evaluated
SETTLE = 5.0  # seconds between the last connection and the look at idle processes
OWN_MIB, SHARED_MIB = 700, 350  # of a site in a run, with room
SERVER_MIB = 1500


def settings(sites: int, rounds: int) -> dict[str, Any]:
    """The program: a network of about 1,000 parameters, four images a site."""
    return {
        "name": f"scale-{sites}",
        "data": {"name": "fashion-mnist-12k"},
        "split": {"name": "virtual", "sites": sites, "samples": 4},
        "model": {"name": "small_cnn", "width": 4, "blocks": 2},
        "train": {"batch": 4, "lr": 0.01},
        "rounds": {"rounds": rounds, "evaluate_every": rounds},
    }


def idle(loopback: Loopback) -> dict[str, float]:
    """MiB of one site's processes by role, the median over the sites; a page is divided among the
    processes that share it, on the whole machine."""
    found: dict[str, list[float]] = {}
    for site in loopback.sites:
        held: dict[str, float] = {}
        starter = loopback.starter(site.folder)
        for one in [*([starter] if starter else []), *loopback.look(site.folder)]:
            held[one.role] = held.get(one.role, 0.0) + one.share() / 1024
        for role, value in held.items():
            found.setdefault(role, []).append(value)
    return {role: round(median(values), 1) for role, values in found.items()}


def measure(count: int, rounds: int, shared: bool, scratch: Path) -> dict[str, Any]:
    """One federation: idle, then in a run."""
    print(f"making keys and kits for {count} sites", flush=True)
    loopback = Loopback(scratch, count)
    program, speed = config.parse(settings(count, rounds), Path.cwd())
    store = RunStore(loopback.federation.runs / program.name)
    others = await_quiet(0.0)
    one_prefork = demo.prefork_process() if shared else contextlib.nullcontext()
    with one_prefork:
        began = time.monotonic()
        with loopback.up():
            connected = time.monotonic() - began
            time.sleep(SETTLE)
            resting = idle(loopback)
            if rounds:
                scheduler.prepare(loopback.federation, program, speed, store)
                scheduler.resume(loopback.federation, store, [], lambda _: None)
            working = busy(loopback.look())
    found: dict[str, Any] = {
        "sites": count,
        "one_prefork_process": shared,
        "start_to_connected": round(connected, 2),
        "idle_site_mib": round(sum(resting.values()), 1),
        "idle_site_mib_by_role": resting,
        "all_processes_mib_after": working,
        "left_running": loopback.leftovers(),
        "cores_busy_with_other_work_before": others,
    }
    if rounds:
        lines = store.history()
        seconds = [line["seconds"] for line in lines[WARM_UP:-1]]
        found |= {
            "parameters": lines[0]["bytes_up"] // (4 * lines[0]["replies"]),
            "replies": min(line["replies"] for line in lines),
            "round": round(median(seconds), 4),
            "round_by_round": [round(value, 4) for value in seconds],
        }
    return found


def busy(seen: Sequence[Seen]) -> float:
    """MiB of all processes together."""
    return round(sum(one.share() for one in seen) / 1024, 1)


def show(found: Sequence[dict[str, Any]]) -> None:
    """The table."""
    rows = [
        [
            str(one["sites"]),
            "one for all" if one["one_prefork_process"] else "each its own",
            f"{one['start_to_connected']:.1f}",
            f"{one['idle_site_mib']:.0f}",
            f"{one['round']:.2f}" if "round" in one else "-",
            str(one.get("replies", "-")),
        ]
        for one in found
    ]
    columns = ["sites", "prefork process", "s to connected", "MiB of an idle site", "round, s"]
    print_table("Sites on one machine, a model of 1,000 parameters", [*columns, "replies"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=numbers, help="default: 4,10,20,40")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--own", type=numbers, default=[4], help="sites with a prefork process each"
    )
    parser.add_argument("--more", action="store_true", help="add to the results that are there")
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json")
    options = parser.parse_args()
    if options.rounds < WARM_UP + 2:
        parser.error(f"--rounds must be {WARM_UP + 2} or more: the first and the last do not count")
    facts = machine() | {"deployed": installed_engine()}
    found: list[dict[str, Any]] = []
    left_out: list[str] = []
    if options.more and options.out.exists():
        found += json.loads(options.out.read_text())["federations"]
    shared = [(int(value), True) for value in options.sites or [4, 10, 20, 40]]
    for count, one in [*((int(value), False) for value in options.own), *shared]:
        need, free = SERVER_MIB + count * (SHARED_MIB if one else OWN_MIB), available() / 2**20
        if need > free:
            left_out.append(f"{count} sites: need about {need} MiB, and {free:.0f} are available")
            print(f"left out: {left_out[-1]}")
            continue
        with tempfile.TemporaryDirectory(prefix="fedsight-benchmark-") as scratch:
            try:
                found.append(measure(count, options.rounds, one, Path(scratch)))
            except FedSightError as error:
                left_out.append(f"{count} sites: {error.cause}")
                print(f"FAILED: {left_out[-1]}")
        content = {"benchmark": "scale", "machine": facts, "rounds": options.rounds}
        write_json(options.out, {**content, "federations": found, "left_out": left_out})
    show(found)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
