"""Scale: a round's time and the peak memory with a million clients and with a thousand."""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from common import (
    HERE,
    OURS,
    RESULTS,
    Process,
    await_quiet,
    machine,
    print_table,
    ratios,
    run_contestant,
    spread,
    write_json,
)
from contestants.task import Job, save_data

SMALL, LARGE = 1_000, 1_000_000
TARGET = 1.1  # the large population costs at most so many times what the small one does
WARM_UP = 2  # rounds whose time is not counted
PATIENCE = 600.0  # seconds a run may take
MIB = 2**20


@dataclass
class Memory:
    """Peak of the resident memory of a session's processes together, sampled."""

    page: int = field(default_factory=lambda: os.sysconf("SC_PAGE_SIZE"))
    peak: int = 0  # bytes; pages that processes share count once for each
    processes: int = 0  # seen at the peak

    def sample(self, session: int) -> None:
        """Look at every process of the session now."""
        resident = [self._resident(entry, session) for entry in Path("/proc").glob("[0-9]*")]
        found = [size for size in resident if size]
        if sum(found) > self.peak:
            self.peak, self.processes = sum(found), len(found)

    def _resident(self, entry: Path, session: int) -> int:
        """Bytes, 0 for a process of another session or one that ended meanwhile (`proc(5)`)."""
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return int(fields[21]) * self.page if int(fields[3]) == session else 0


@dataclass
class Scale:
    """What was measured with one population, by repeat."""

    population: int
    seconds: list[float] = field(default_factory=list)  # the median steady round
    memory: list[float] = field(default_factory=list)  # MiB, peak
    rounds: list[list[float]] = field(default_factory=list)  # seconds of each steady round
    processes: int = 0
    accuracy: float = 0.0

    def measure(self, job: Job) -> None:
        """One run in processes of its own."""
        memory = Memory()
        script = HERE / "contestants" / "fedsight_engine.py"
        result = run_contestant(Process(OURS, script, [job.text()]), PATIENCE, memory.sample)
        steady = [job.images_per_round / rate for rate in result["images_per_second"][WARM_UP:]]
        self.rounds.append([round(value, 4) for value in steady])
        self.seconds.append(median(steady))
        self.memory.append(memory.peak / MIB)
        self.processes = memory.processes
        self.accuracy = result["accuracy"]

    def table(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "population": self.population,
            "seconds_per_round": round(median(self.seconds), 4),
            "seconds_by_repeat": [round(value, 4) for value in self.seconds],
            "seconds_by_round": self.rounds,
            "peak_memory_mib": round(median(self.memory), 1),
            "peak_memory_mib_by_repeat": [round(value, 1) for value in self.memory],
            "processes": self.processes,
            "accuracy": self.accuracy,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 repeats of 6 rounds, not 5 of 12")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--cohort", type=int, default=120, help="clients per round (default 120)")
    parser.add_argument(
        "--quiet", type=float, default=0.0, metavar="S", help="wait so long for others to pause"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "population.json")
    options = parser.parse_args()
    facts = machine()
    scales = [Scale(SMALL), Scale(LARGE)]
    others = []
    with tempfile.TemporaryDirectory(prefix="fedsight-benchmark-") as scratch:
        data = str(save_data(Path(scratch)))
        for _ in range(options.repeats or (2 if options.quick else 5)):
            for scale in scales:
                others.append(await_quiet(options.quiet))
                rounds = WARM_UP + (6 if options.quick else 12)
                job = Job("small_cnn", data, rounds, options.cohort, scale.population)
                scale.measure(job)
                print(
                    f"{scale.population:,} clients: {scale.seconds[-1]:.3f} s a round, "
                    f"{scale.memory[-1]:,.0f} MiB at most"
                )
    small, large = scales
    time_ratio = ratios(large.seconds, small.seconds)
    memory_ratio = ratios(large.memory, small.memory)
    rows = [
        [f"{s.population:,}", spread(s.seconds, 3), spread(s.memory, 0), str(s.processes)]
        for s in scales
    ]
    rows.append(["ratio", spread(time_ratio, 3), spread(memory_ratio, 3), ""])
    title = f"small CNN, {options.cohort} clients of 60 images a round, two workers"
    print_table(title, ["clients", "seconds a round", "peak memory, MiB", "processes"], rows)
    met = max(median(time_ratio), median(memory_ratio)) <= TARGET
    print(f"  ratios at most {TARGET}: {'met' if met else 'NOT MET'}")
    content = {
        "benchmark": "population",
        "quick": options.quick,
        "machine": facts,
        "cohort": options.cohort,
        "cores_busy_with_other_work_before_runs": others,
        "populations": [scale.table() for scale in scales],
        "time_ratio": round(median(time_ratio), 4),
        "memory_ratio": round(median(memory_ratio), 4),
        "target": TARGET,
        "met": met,
    }
    write_json(options.out, content)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
