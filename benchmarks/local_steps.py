"""What local steps cost: this code beside that of an earlier commit, in turn on one machine.

    python benchmarks/local_steps.py [--quick] [--before COMMIT]

A process of each code trains the same site from the same model, on one thread and set up as a
worker is. They take turns, and each pair gives a ratio of processor time, which other work on the
machine changes little. The models that come out are compared bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import HERE, RESULTS, ROOT, machine, print_table, spread, write_json
from deploy_before_after import checked_out, environment

EARLIER = "e51dc99c"  # the commit before the first that this was written for
EPOCHS = 2
JOBS: dict[str, dict[str, Any]] = {
    "niid_cnn": {"data": {"name": "fashion-mnist-12k"}, "train": {"batch": 64, "momentum": 0.9}},
    "small_cnn": {"data": {"name": "fashion-mnist-12k"}, "train": {"batch": 32}},
    "resnet18": {
        "data": {"name": "fashion-mnist-12k", "size": 32, "channels": 3},
        "model": {"name": "torchvision", "architecture": "resnet18"},
        "train": {"batch": 32, "momentum": 0.9},
    },
}
SITES = {"niid_cnn": 10, "small_cnn": 20, "resnet18": 100}


def serve(job: str) -> None:
    """Train the site once for each line that comes; say how long it took and what came out."""
    import torch

    from fedsight.client.step import Client
    from fedsight.core.types import Order
    from fedsight.program.config import parse
    from fedsight.program.federation import federate

    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):  # an earlier commit
        from fedsight.core.allocator import keep_freed_memory

        keep_freed_memory()
    tables = {"model": {"name": job}, "split": {"name": "iid", "sites": SITES[job]}, **JOBS[job]}
    tables["train"] = {"epochs": EPOCHS, "lr": 0.02, **JOBS[job]["train"]}
    if job == "niid_cnn":
        tables["plugins"] = [str(HERE / "niid_cnn.py")]
    program, _ = parse({**tables, "rounds": {"rounds": 1}}, base=HERE)
    of = federate(program)
    client, order = Client(of), Order(1, of.initial[of.layout.travelling].clone())
    steps = EPOCHS * -(-of.size(0) // program.train.batch)
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.process_time()
        delta = client.step(order, 0, {}).payload["delta"]
        seconds = (time.process_time() - began) / steps
        found = hashlib.sha256(delta.numpy().tobytes()).hexdigest()
        print(json.dumps({"seconds": seconds, "model": found}), flush=True)


class Code:
    """A process that trains with the code in one folder."""

    def __init__(self, folder: Path, job: str) -> None:
        command = [sys.executable, __file__, "--serve", job]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, env=environment(folder), stdin=pipe, stdout=pipe, text=True
        )
        self._line()

    def train(self) -> dict[str, Any]:
        """Train once."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._line())
        return found

    def _line(self) -> str:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line
        raise SystemExit("a process that trains has ended")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def compare(job: str, earlier: Path, pairs: int) -> dict[str, Any]:
    """Both codes in turn, of which each is first as often as the other."""
    codes = {"before": Code(earlier, job), "after": Code(ROOT, job)}
    for code in codes.values():
        code.train()  # caches fill
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in codes}
    for number in range(pairs):
        for name in list(codes)[:: 1 if number % 2 else -1]:
            found[name].append(codes[name].train())
    for code in codes.values():
        code.close()
    seconds = {name: [one["seconds"] for one in runs] for name, runs in found.items()}
    return {
        "job": job,
        "milliseconds": {name: 1e3 * median(values) for name, values in seconds.items()},
        "faster": [a / b for a, b in zip(seconds["before"], seconds["after"], strict=True)],
        "same_bits": len({one["model"] for runs in found.values() for one in runs}) == 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="five pairs")
    parser.add_argument("--before", default=EARLIER, help="commit; default: %(default)s")
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--out", type=Path, default=RESULTS / "local_steps.json")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    with checked_out(options.before) as earlier:
        found = [compare(job, earlier, 5 if options.quick else 25) for job in options.jobs]
    rows = [
        [
            one["job"],
            f"{one['milliseconds']['before']:.2f}",
            f"{one['milliseconds']['after']:.2f}",
            spread(one["faster"]),
            "yes" if one["same_bits"] else "NO",
        ]
        for one in found
    ]
    columns = ["network", "before, ms", "after, ms", "times as fast", "same bits"]
    print_table("Processor time of a local step", columns, rows)
    content = {"benchmark": "local_steps", "before": options.before, "machine": machine()}
    write_json(options.out, {**content, "quick": options.quick, "networks": found})


if __name__ == "__main__":
    main()
