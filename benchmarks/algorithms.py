"""What each algorithm's rounds cost beside FedAvg's: processor time for each image.

    python benchmarks/algorithms.py [--quick]

Ten sites hold the built-in Fashion-MNIST images, in one process, with `small_cnn`; a round trains
one epoch at each, and is timed from the order to the new model, without measuring. An algorithm's
rounds and FedAvg's are taken in turn and compared in pairs; the first round of each is left out.
It is processor time, which other work on the machine changes little.

Some papers' algorithms pass the images more often than FedAvg. `passes` counts what they add, in
forward passes of all images (an epoch of training is three: forward, and back to activations and
to weights), and `possible` is the speed that leaves at best. Closed forms train nothing and are not
compared.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import RESULTS, machine, print_table, spread, write_json

from fedsight.algorithms.base import algorithms
from fedsight.coordinator.loop import run
from fedsight.coordinator.session import Session
from fedsight.core.errors import ConfigError
from fedsight.core.types import Metrics
from fedsight.engines.in_process import InProcessEngine
from fedsight.program.config import parse
from fedsight.program.federation import federate

GOAL = 0.8
EPOCH = 3  # forward passes' worth of work
# Forward passes of all images that the paper's algorithm adds to an epoch.
PASSES = {
    "fedsam": EPOCH,  # a second gradient
    "apfl": EPOCH,  # a gradient at the mixture
    "ditto": EPOCH,  # an epoch of the own model
    "moon": 2,  # features of the global and of the earlier model
    "qfedavg": 1,  # the loss where the round began
    "afl": 1,  # the same
    "fedrep": 2,  # an epoch of the head: forward, and back to the head alone, which is near nothing
}


def seconds(name: str, rounds: int) -> list[float]:
    """Processor seconds of each round but the first."""
    tables = {
        "data": {"name": "fashion-mnist-12k"},
        "split": {"name": "dirichlet", "sites": 10, "alpha": 0.3},
        "model": {"name": "small_cnn"},
        "train": {"epochs": 1, "batch": 32, "lr": 0.02},
        "algorithm": {"name": name},
        "rounds": {"rounds": rounds, "evaluate_every": rounds},
    }
    program, _ = parse(tables, base=Path.cwd())
    if problems := program.check():
        raise ConfigError(problems)
    of = federate(program)
    engine = Timed(of)
    run(Session(of), engine, lambda sums: {})
    engine.close()
    return [after - before for before, after in pairwise(engine.at[1:])]


class Timed(InProcessEngine):
    """Notes the processor time at the end of each round's work."""

    def __init__(self, federation: Any) -> None:
        super().__init__(federation)
        self.at: list[float] = []

    def submit(self, *order: Any) -> Any:
        """As ever; the time is that at which the round before was complete."""
        self.at.append(time.process_time())
        return super().submit(*order)

    def measure(self, *model: Any) -> list[Metrics]:
        """The end of the last round; nothing is measured."""
        self.at.append(time.process_time())
        return [{}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one pair, two rounds")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="these algorithms")
    parser.add_argument("--out", type=Path, default=RESULTS / "algorithms.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    repeats, rounds = (1, 2) if options.quick else (options.repeats, 4)
    # Closed forms have no parts that are averaged.
    names = [name for name in algorithms.names() if algorithms.get(name)().parts]
    names = [name for name in options.only or names if name != "fedavg"]
    found: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for name in names:
        pairs: list[float] = []
        try:
            for _ in range(repeats):
                mine, plain = (seconds(one, rounds) for one in (name, "fedavg"))
                pairs += [a / b for a, b in zip(plain, mine, strict=True)]
        except ConfigError as error:  # it needs more than this program has
            left_out[name] = error.problems[0].cause
            print(f"{name} is left out: {left_out[name]}", flush=True)
            continue
        possible = EPOCH / (EPOCH + PASSES.get(name, 0))
        found.append({"algorithm": name, "speed": pairs, "possible": possible})
        print(f"{name}: {median(pairs):.2f} of FedAvg", flush=True)
    rows = [
        [
            one["algorithm"],
            spread(one["speed"]),
            f"{one['possible']:.2f}",
            f"{median(one['speed']) / one['possible']:.2f}",
        ]
        for one in found
    ]
    columns = ["algorithm", "speed", "possible", "of the possible"]
    print_table("Images per processor second, FedAvg = 1", columns, rows)
    content = {"benchmark": "algorithms", "goal": GOAL, "machine": machine()}
    write_json(
        options.out, {**content, "quick": options.quick, "left_out": left_out, "algorithms": found}
    )


if __name__ == "__main__":
    main()
