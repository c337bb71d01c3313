"""Speed: images per second of FedSight's worker engine, a bare loop, Flower and pfl."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from common import (
    HERE,
    OURS,
    PEERS,
    RESULTS,
    ContestantError,
    Process,
    await_quiet,
    installed,
    machine,
    print_table,
    ratios,
    run_contestant,
    spread,
    write_json,
)
from contestants.task import Job, save_data

WARM_UP = 2  # rounds whose time is not counted: processes start, caches fill
PATIENCE = 300.0  # seconds a contestant may take
NOISY = 0.2  # cores busy with other work, from which on a table says so
QUICK_BUDGET = 270.0  # seconds; no repeat is begun that would not fit
OFFLINE = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@dataclass(frozen=True)
class Contestant:
    """A way to train the cohort."""

    name: str
    script: str
    needs: tuple[str, ...] = ()  # packages in the peers' environment; none: our own environment
    environment: Mapping[str, str] = field(default_factory=dict)
    launcher: tuple[str, ...] = ()
    client: str = "tuned"
    quick: bool = True  # takes part in --quick

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return PEERS if self.needs else OURS

    def missing(self) -> bool:
        """Whether it cannot run here."""
        return bool(self.needs) and not installed(self.python, *self.needs)

    def measure(self, job: Job, scratch: Path) -> dict[str, Any]:
        """Run it once. Raises ContestantError."""
        home = {"FLWR_HOME": str(scratch / "flwr"), "TORCHELASTIC_ERROR_FILE": ""}
        process = Process(
            self.python,
            HERE / "contestants" / self.script,
            [replace(job, client=self.client).text()],
            {**home, **self.environment},
            self.launcher,
        )
        result = run_contestant(process, PATIENCE)
        if len(result["images_per_second"]) != job.rounds:
            raise ContestantError(f"{self.name}: {result} has not {job.rounds} rounds")
        return result


FLOWER = ("flwr", "ray")
CPU = {"PFL_PYTORCH_DEVICE": "cpu"}
OURSELVES = Contestant("FedSight", "fedsight_engine.py")
CONTESTANTS = (
    OURSELVES,
    Contestant("bare PyTorch", "bare.py"),
    Contestant("Flower", "flower.py", FLOWER, OFFLINE),
    Contestant("pfl, 2 processes", "pfl_backend.py", ("pfl",), CPU, TORCHRUN),
    Contestant("Flower, quickstart client", "flower.py", FLOWER, OFFLINE, (), "quickstart"),
    Contestant("pfl, 1 process", "pfl_backend.py", ("pfl",), CPU, quick=False),
)


@dataclass(frozen=True)
class Target:
    """FedSight's rate over the fastest of `peers`, next to it in time, is at least `factor`."""

    peers: str  # beginning of the contestants' names
    factor: float


@dataclass(frozen=True)
class Match:
    """A network, the cohort (a round takes FedSight 0.3 to 1 s on two cores), and the targets."""

    title: str
    model: str
    cohort: int
    rounds: int  # counted ones
    # The bare loop itself is 1.15 to 1.2 times as fast as pfl: there is no room for waste.
    targets: tuple[Target, ...] = (Target("bare", 0.90), Target("pfl, 2 processes", 1.0))


MATCHES = (
    Match("small CNN (20,538 parameters)", "small_cnn", 60, 8),
    Match("FedAvg paper's CNN (1,663,370 parameters)", "fedavg_cnn", 40, 6),
)


class Scores:
    """Steady rates by contestant and repeat, for one match."""

    def __init__(self, match: Match) -> None:
        self.match = match
        self.rates: dict[str, list[list[float]]] = {}  # contestant -> repeat -> steady rounds
        self.facts: dict[str, dict[str, Any]] = {}
        self.others: list[float] = []

    def add(self, name: str, result: Mapping[str, Any], others: float) -> None:
        """One run of a contestant; `others`: cores busy with other work just before."""
        self.others.append(others)
        self.rates.setdefault(name, []).append(list(result["images_per_second"][WARM_UP:]))
        self.facts[name] = {"note": result["note"], "accuracy": result["accuracy"]}

    def medians(self, name: str) -> list[float]:
        """The median round of each repeat."""
        return [median(rounds) for rounds in self.rates.get(name, [])]

    def verdicts(self) -> list[dict[str, Any]]:
        """For each target: the ratio in each repeat to the fastest of its peers in that repeat."""
        found = []
        ours = self.medians(OURSELVES.name)
        for target in self.match.targets:
            peers = [self.medians(name) for name in self.rates if name.startswith(target.peers)]
            complete = [rates for rates in peers if len(rates) == len(ours)]
            if not ours or not complete:
                found.append({"peer": target.peers, "target": target.factor, "ratio": None})
                continue
            each = ratios(ours, [max(column) for column in zip(*complete, strict=True)])
            met = median(each) >= target.factor
            found.append(
                {
                    "peer": target.peers,
                    "target": target.factor,
                    "ratio": round(median(each), 3),
                    "ratio_by_repeat": [round(value, 3) for value in each],
                    "met": met,
                }
            )
        return found

    def table(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "title": self.match.title,
            "model": self.match.model,
            "cohort": self.match.cohort,
            "cores_busy_with_other_work_before_runs": self.others,
            "contestants": {
                name: {
                    **self.facts[name],
                    "images_per_second": round(median(self.medians(name)), 1),
                    "images_per_second_by_repeat": [round(m, 1) for m in self.medians(name)],
                    "images_per_second_by_round": rounds,
                }
                for name, rounds in self.rates.items()
            },
            "targets": self.verdicts(),
        }

    def show(self) -> None:
        """Both tables."""
        ours = self.medians(OURSELVES.name)
        rows = []
        for name in self.rates:
            rates = self.medians(name)
            comparable = len(rates) == len(ours) > 0 and name != OURSELVES.name
            ratio = spread(ratios(ours, rates)) if comparable else "-"
            fact = self.facts[name]
            rows.append([name, spread(rates, 0), ratio, f"{fact['accuracy']:.3f}", fact["note"]])
        columns = ["", "images/s: median (repeats)", "FedSight is x times", "accuracy", "how"]
        print_table(f"{self.match.title}, {self.match.cohort} clients a round", columns, rows)
        for verdict in self.verdicts():
            ratio, target = verdict["ratio"], verdict["target"]
            outcome = "not measured" if ratio is None else "met" if verdict["met"] else "NOT MET"
            shown = "-" if ratio is None else f"{ratio:.2f}"
            print(f"  {verdict['peer']:16} ratio {shown:>5}, target {target:.2f}: {outcome}")
        if self.others and max(self.others) > NOISY:
            print(f"  noisy: other work kept up to {max(self.others):.2f} cores busy between runs")
        print()


def play(
    matches: Sequence[Match],
    contestants: Sequence[Contestant],
    repeats: int,
    quick: bool,
    patience: float,
    scratch: Path,
) -> tuple[list[Scores], list[str]]:
    """All matches, contestants next to one another (A B C D A B C D); scores and failures."""
    data = str(save_data(scratch))
    scores = [Scores(match) for match in matches]
    failures: list[str] = []
    began = time.monotonic()
    longest = 0.0
    for repeat in range(repeats):
        start = time.monotonic()
        if quick and start - began + longest > QUICK_BUDGET:
            print(f"{repeat} repeat(s) in the time of --quick")
            break
        for score in scores:
            match = score.match
            rounds = WARM_UP + (4 if quick else match.rounds)
            job = Job(match.model, data, rounds, match.cohort)
            for contestant in contestants:
                if any(contestant.name in failure for failure in failures):
                    continue
                others = await_quiet(patience)
                try:
                    result = contestant.measure(job, scratch)
                except ContestantError as error:
                    failures.append(f"{contestant.name}: {error}")
                    print(failures[-1])
                    continue
                score.add(contestant.name, result, others)
                rate = score.medians(contestant.name)[-1]
                print(f"{repeat + 1}/{repeats} {match.model} {contestant.name}: {rate:,.0f}/s")
        longest = max(longest, time.monotonic() - start)
    return scores, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under five minutes")
    parser.add_argument("--repeats", type=int, help="default: 5, or 2 with --quick")
    parser.add_argument("--cohort", type=int, help="clients per round, for both networks")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="beginnings of contestants")
    parser.add_argument(
        "--quiet", type=float, default=0.0, metavar="S", help="wait so long for others to pause"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "engine.json", help="results file")
    options = parser.parse_args()
    chosen = [c for c in CONTESTANTS if c.quick or not options.quick]
    if options.only is not None:
        chosen = [c for c in CONTESTANTS if c.name.lower().startswith(tuple(options.only))]
    absent = [c.name for c in chosen if c.missing()]
    for name in absent:
        print(f"{name} is not installed ('make peers' installs it): left out")
    present = [c for c in chosen if c.name not in absent]
    facts = machine()
    repeats = options.repeats or (2 if options.quick else 5)
    matches = [replace(match, cohort=options.cohort or match.cohort) for match in MATCHES]
    with tempfile.TemporaryDirectory(prefix="fedsight-benchmark-") as scratch:
        scores, failures = play(
            matches, present, repeats, options.quick, options.quiet, Path(scratch)
        )
    print()
    for score in scores:
        score.show()
    content = {
        "benchmark": "engine",
        "quick": options.quick,
        "machine": facts | {"peers": installed(PEERS, "flwr", "ray", "pfl", "torch", "numpy")},
        "warm_up_rounds": WARM_UP,
        "local_training": "1 epoch of 60 images, batch 10, SGD lr 0.05, float32",
        "matches": [score.table() for score in scores],
        "not_installed": absent,
        "failures": failures,
    }
    write_json(options.out, json.loads(json.dumps(content)))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
