"""What an open console costs a simulation of a thousand clients, and how soon it answers."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from common import RESULTS, await_quiet, machine, print_table, spread, write_json
from visitor import EVENT, ConsoleProcess, Visitor, told

NAME = "thousand"
COST, ANSWER = 0.02, 0.05  # a round may take so much longer; seconds of an answer (median)
LOOK = 0.05
PATIENCE = 600.0  # seconds for a round


PROGRAM = """
name = "{name}"
data = {{ name = "fashion-mnist-12k" }}
split = {{ name = "virtual", sites = {clients}, samples = 12 }}
model = {{ name = "small_cnn" }}
train = {{ batch = 12, epochs = 1, lr = 0.01 }}
rounds = {{ rounds = {rounds}, evaluate_every = 5 }}
"""  # all clients train in each round


def lines(folder: Path) -> list[dict[str, Any]]:
    """The rounds so far."""
    path = folder / "history.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def wait_for(folder: Path, process: subprocess.Popen[bytes], rounds: int) -> int:
    """Until so many rounds are complete; how many are."""
    until = time.monotonic() + PATIENCE
    while (done := len(lines(folder))) < rounds:
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the run ended, or hangs, after {done} of {rounds} rounds")
        time.sleep(LOOK)
    return done


def measure(root: Path, clients: int, pairs: int, block: int) -> dict[str, Any]:
    """One run, and a console that is open for every second block of its rounds."""
    rounds = 3 + pairs * 2 * (block + 2) + 20
    config, folder = root / "thousand.toml", root / "runs" / NAME
    config.write_text(PROGRAM.format(name=NAME, clients=clients, rounds=rounds))
    command = [sys.executable, "-m", "fedsight", "run", str(config)]
    with tempfile.TemporaryFile() as said:
        run = subprocess.Popen([*command, "--out", str(folder)], stdout=said, stderr=said)
        try:
            found = watched(folder, run, pairs, block)
        except RuntimeError as error:
            said.seek(0)
            raise RuntimeError(f"{error}\n{said.read()[-2000:].decode()}") from None
        finally:
            run.kill()
            run.wait()
    return {"clients": clients, **found}


def watched(folder: Path, run: subprocess.Popen[bytes], pairs: int, block: int) -> dict[str, Any]:
    """Blocks of rounds without a console and with one, in turn. The round in progress when one
    opens or closes is in neither."""
    blocks: dict[str, list[tuple[int, int]]] = {"without": [], "with": []}
    visits: list[Visitor] = []
    cpu: list[float] = []
    wait_for(folder, run, 3)
    for _ in range(pairs):
        first = len(lines(folder)) + 1
        blocks["without"].append((first, wait_for(folder, run, first + block)))
        console = ConsoleProcess(["console", "--runs", str(folder.parent)], folder)
        try:
            pages = ["/", f"/run/{NAME}", "/new"]
            visitor = Visitor(console, f"/run/{NAME}", pages)
            with visitor.looking():
                first, before = wait_for(folder, run, len(lines(folder)) + 1), console.ticks
                began = time.monotonic()
                blocks["with"].append((first, wait_for(folder, run, first + block)))
                cpu.append((console.ticks - before) / 100 / (time.monotonic() - began))
            visits.append(visitor)
        finally:
            console.close()
    seconds = [line["seconds"] for line in lines(folder)]
    each = {
        kind: [median(seconds[first:last]) for first, last in found]
        for kind, found in blocks.items()
    }
    ratios = [a / b for a, b in zip(each["with"], each["without"], strict=True)]
    answers = {
        what: sorted(value for one in visits for value in one.seconds.get(what, []))
        for what in dict.fromkeys(key for one in visits for key in one.seconds)
    }
    return {
        "rounds_of_a_block": block,
        "seconds_per_round": {
            kind: [round(value, 4) for value in found] for kind, found in each.items()
        },
        "ratio_by_pair": [round(value, 4) for value in ratios],
        "ratio": round(median(ratios), 4),
        "console_cores": round(median(cpu), 4),
        "events": sum(one.events for one in visits),
        "answers": {what: told(values) for what, values in answers.items()},
        "problems": [text for one in visits for text in one.problems],
    }


def show(found: Mapping[str, Any]) -> None:
    """The tables, and the verdicts."""
    each = found["seconds_per_round"]
    rows = [[kind, spread(values, 3)] for kind, values in each.items()]
    rows.append(["with / without, by pair", spread(found["ratio_by_pair"], 3)])
    print_table(f"{found['clients']:,} clients, all in each round", ["console", "round, s"], rows)
    rows = [
        [what, *(f"{one[key]:g}" for key in ("answers", "median", "p95", "most"))]
        for what, one in found["answers"].items()
    ]
    columns = ["asked for", "times", "median, ms", "95 of 100, ms", "longest, ms"]
    print_table("Answers of the console meanwhile", columns, rows)
    print(f"  the console computed on {found['console_cores']:.3f} of {found['cores']} cores")
    for check, met in found["checks"].items():
        print(f"  {check}: {'yes' if met else 'NO'}")
    for problem in found["problems"][:10]:
        print(f"  {problem}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 clients, 2 pairs of blocks")
    parser.add_argument("--clients", type=int)
    parser.add_argument("--pairs", type=int, help="of blocks without and with a console")
    parser.add_argument("--block", type=int, default=8, help="rounds of a block")
    parser.add_argument(
        "--quiet", type=float, default=0.0, metavar="S", help="wait so long for others to pause"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "console.json")
    options = parser.parse_args()
    facts, before = machine(), await_quiet(options.quiet)
    clients = options.clients or (100 if options.quick else 1000)
    pairs = options.pairs or (2 if options.quick else 8)
    with tempfile.TemporaryDirectory(prefix="fedsight-benchmark-") as scratch:
        found = measure(Path(scratch), clients, pairs, options.block)
    pages = {key: one for key, one in found["answers"].items() if key != EVENT}
    found["checks"] = {
        f"a round takes at most {COST:.0%} longer": found["ratio"] <= 1 + COST,
        f"pages within {1000 * ANSWER:g} ms (median)": all(
            one["median"] <= 1000 * ANSWER for one in pages.values()
        ),
        f"the page of an event within {1000 * ANSWER:g} ms (median)": (
            EVENT in found["answers"] and found["answers"][EVENT]["median"] <= 1000 * ANSWER
        ),
        "nothing went wrong": not found["problems"],
    }
    show({**found, "cores": facts["cores"]})
    content = {"benchmark": "console", "quick": options.quick, "machine": facts}
    write_json(options.out, {**content, "cores_busy_with_other_work_before": before, **found})
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
