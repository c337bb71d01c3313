"""Time to an accuracy over a thin line that four real sites share, with codecs and without.

    python benchmarks/thin_line.py [--ways float32 auto] [--goal 0.86]

The line has 2 Mbit/s each way, 200 ms there and back, and loses 2 % of packets; the server is at
one end and all sites are at the other, in network namespaces (`shaped.py`; it needs root). The
network is that of the paper on federated averaging (1,663,370 parameters), the images are the
built-in garments in four equal parts, and only `[codec]` differs. Counted is wall time from the
order to run until the line of the history with the accuracy is on the disk: starting, training,
sending and measuring.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, machine, print_table, write_json
from shaped import HOST, SPACES, fedsight, line

from fedsight.deploy.membership import overview
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.site.folder import SiteFolder

PORT = 8002
SITES = 4
EDEN = '{name = "eden", scale = "least"}'
WAYS: dict[str, list[str]] = {
    "float32": [],
    "auto": ['codec.name="auto"', "codec.seconds=5.0"],
    "eden 1 bit both": [
        f"codec.up.steps=[{EDEN}]",
        "codec.up.feedback=true",
        f"codec.down.steps=[{EDEN}]",
    ],
}
PATIENCE = 3 * 3600.0


def settings(rounds: int) -> list[str]:
    """What differs from the example, but for the codec."""
    return [
        'split={name="iid", sites=4}',
        'model={name="fedavg_cnn"}',
        "train.epochs=1",
        "train.lr=0.05",
        f"rounds.rounds={rounds}",
        "rounds.deadline=36000",
        "rounds.validation=0",
    ]


def measure(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One federation and run: seconds and accuracy of each round, and what the line carried."""
    with tempfile.TemporaryDirectory(prefix="fedsight-") as scratch:
        root = Path(scratch)
        federation = FederationFolder.create(root / "thin", HOST, PORT)
        homes = [root / f"site-{number:02d}" for number in range(SITES)]
        for home in homes:
            federation.admit(SiteFolder.create(home, home.name, federation.invitation))
        where = ["--federation", federation.folder]
        sets = [word for one in settings(asked.rounds) + WAYS[name] for word in ("--set", one)]
        history = federation.runs / "fashion" / "history.jsonl"
        processes = []
        with line(asked.mbit, asked.delay, asked.loss) as shaped:
            try:
                server = federation.folder / "server"
                processes.append(fedsight(SPACES[0], server, "server", "start", *where))
                for home in homes:
                    data = ["--data", "fashion-mnist-12k"]
                    processes.append(fedsight(SPACES[1], home, "site", "start", home, *data))
                connected(federation)
                before, began = list(shaped.carried), time.monotonic()
                run = fedsight(SPACES[0], root, "run", "--example", "fashion", *where, *sets)
                processes.append(run)
                rounds = watch(history, run, began, asked.goal)
                carried = [now - then for now, then in zip(shaped.carried, before, strict=True)]
            finally:
                for process in reversed(processes):
                    process.terminate()
                for process in reversed(processes):
                    process.wait()
        if not rounds:
            raise SystemExit((root / "said.txt").read_text()[-2000:])
    reached = [one["at"] for one in rounds if one["accuracy"] >= asked.goal]
    return {
        "way": name,
        "seconds_until": reached[0] if reached else None,
        "rounds": rounds,
        "carried_bytes": carried,
        "packets_lost": shaped.lost,
    }


def connected(federation: FederationFolder) -> None:
    """Wait until the server has heard from all sites."""
    while sum(row.connected for row in overview.sites(federation).rows) < SITES:
        time.sleep(1)


def watch(history: Path, run: Any, began: float, goal: float) -> list[dict[str, Any]]:
    """The rounds until one reaches the goal, each with when its line was there."""
    rounds: list[dict[str, Any]] = []
    while time.monotonic() - began < PATIENCE:
        whole = history.read_text().split("\n")[:-1] if history.is_file() else []
        for text in whole[len(rounds) :]:
            told = json.loads(text)
            kept = {key: told[key] for key in ("accuracy", "bytes_up", "bytes_down", "seconds")}
            rounds.append({"at": time.monotonic() - began, **kept})
            print(rounds[-1], flush=True)
        if (rounds and rounds[-1]["accuracy"] >= goal) or run.poll() is not None:
            return rounds
        time.sleep(0.2)
    return rounds


def show(found: list[dict[str, Any]], goal: float) -> None:
    """The table: each way beside float32."""
    plain = next((one["seconds_until"] for one in found if one["way"] == "float32"), None)
    rows = []
    for one in found:
        until = one["seconds_until"]
        rows.append(
            [
                one["way"],
                "not reached" if until is None else f"{until:.0f} s",
                str(len(one["rounds"])),
                f"{plain / until:.1f}" if plain and until else "",
                f"{sum(one['carried_bytes']) / 1e6:.1f} MB",
            ]
        )
    heads = ["way", f"until {goal}", "rounds", "times shorter", "the line carried"]
    print_table("Four sites share a line", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS])
    parser.add_argument("--goal", type=float, default=0.86)
    parser.add_argument("--rounds", type=int, default=20, help="at most")
    parser.add_argument("--mbit", type=float, default=2.0)
    parser.add_argument("--delay", type=float, default=200.0, help="ms there and back")
    parser.add_argument("--loss", type=float, default=2.0, help="percent of packets")
    parser.add_argument("--out", type=Path, default=RESULTS / "thin_line.json")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the namespaces are removed
    found = []
    for name in asked.ways:
        found.append(measure(name, asked))
        facts = {key: getattr(asked, key) for key in ("goal", "mbit", "delay", "loss")}
        write_json(asked.out, {"machine": machine(), **facts, "ways": found})
    show(found, asked.goal)


if __name__ == "__main__":
    main()
