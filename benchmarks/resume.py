"""Determinism: the same model with one and two workers, and however often a run is killed."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, machine, print_table, write_json

KILLS = 10
LONGEST = 7.0  # seconds from a start to a kill, at most


def command(*words: str) -> list[str]:
    """A FedSight command of this environment."""
    return [sys.executable, "-c", "from fedsight.cli import main; main()", *words]


def whole(folder: Path, rounds: int, workers: int) -> dict[str, Any]:
    """The summary of an undisturbed run."""
    train = ["run", "--example", "fashion", "--rounds", str(rounds), "--workers", str(workers)]
    subprocess.run(command(*train, "--out", str(folder)), check=True, capture_output=True)
    return summary(folder)


def killed(folder: Path, rounds: int, draws: random.Random) -> tuple[dict[str, Any], list[str]]:
    """The summary of a run whose process group is killed ten times, and what each kill hit."""
    words = ["run", "--example", "fashion", "--rounds", str(rounds), "--out", str(folder)]
    hits: list[str] = []
    while len(hits) < KILLS:
        workers = str(draws.choice([1, 2]))
        process = subprocess.Popen(
            command(*words, "--workers", workers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not (folder / "run.json").exists():  # before that there is nothing to resume
            time.sleep(0.01)
        time.sleep(draws.uniform(0.5, LONGEST))
        if process.poll() is not None:  # it was faster than the kill
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        history = folder / "history.jsonl"
        done = len(history.read_text().splitlines()) if history.exists() else 0
        hits.append(f"after round {done}, {workers} worker(s)")
        words = ["resume", str(folder)]
    if not (folder / "summary.json").exists():
        subprocess.run(command("resume", str(folder)), check=True, capture_output=True)
    return summary(folder), hits


def summary(folder: Path) -> dict[str, Any]:
    """The final figures of a run."""
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--out", type=Path, default=RESULTS / "resume.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        one = whole(Path(place) / "one", given.rounds, 1)
        two = whole(Path(place) / "two", given.rounds, 2)
        hit, hits = killed(Path(place) / "killed", given.rounds, random.Random(given.seed))
    found = {"one worker": one, "two workers": two, f"killed {len(hits)} times": hit}
    rows = [
        [how, each["model_sha256"][:16], f"{each['accuracy']:.4f}"] for how, each in found.items()
    ]
    print_table("The model's SHA-256", ["run", "sha256", "accuracy"], rows)
    print("kills: " + "; ".join(hits))
    same = len({each["model_sha256"] for each in found.values()}) == 1
    print("all the same" if same else "NOT THE SAME")
    shas = {how: each["model_sha256"] for how, each in found.items()}
    write_json(given.out, {"machine": machine(), "sha256": shas, "kills": hits, "same": same})
    sys.exit(not same)


if __name__ == "__main__":
    main()
