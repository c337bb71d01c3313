"""The deployment of an earlier commit beside this one's, in turn on one machine.

Each commit is measured by its own `benchmarks/deploy.py`, in a worktree of its own and with the
same environment, and by the demo, as somebody starts it. Both codes are measured next to each
other; which comes first changes from pair to pair. Pairs are repeated while there is time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from common import RESULTS, ROOT, TIDY, machine, others, print_table, ratios, spread, write_json

EARLIER = "e88feea1"  # the last commit of 22 November 2026
LIMIT = 0.7  # of the earlier code's figures, at most
DEMO = "demo"
DEMO_SITES, DEMO_ROUNDS = 4, 8
LOOK = 0.02
PATIENCE = 400.0  # seconds for one measurement
ENDING = 60.0  # seconds for a demo to end when it is stopped
FIGURES = {  # by the name in the results: what it is, in seconds
    "overhead": "overhead of a round",
    "start_to_first_round": "to the end of the first round",
}


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A worktree of that commit, removed in the end."""
    with tempfile.TemporaryDirectory(prefix="fedsight-before-") as scratch:
        place = Path(scratch) / "code"
        git = ["git", "-C", str(ROOT), "worktree"]
        words = ["add", "--quiet", "--detach", str(place), commit]
        subprocess.run([*git, *words], check=True)
        try:
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


def environment(code: Path) -> dict[str, str]:
    """This process's environment, for the code in that folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(TIDY)}
    return {**kept, "PYTHONPATH": str(code / "src")}


def deployed(code: Path, sites: int, rounds: int, scratch: Path) -> dict[str, float]:
    """What the code's own benchmark says of a federation with a million parameters."""
    out = scratch / "deploy.json"
    script = [sys.executable, str(code / "benchmarks" / "deploy.py"), "--no-peers"]
    sizes = ["--sites", str(sites), "--parameters", "1", "--rounds", str(rounds)]
    done = subprocess.run(
        [*script, *sizes, "--out", str(out)],
        cwd=code,
        env=environment(code),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    found = json.loads(out.read_text())["deployments"] if out.exists() else []
    if done.returncode or not found:
        raise RuntimeError(f"{code}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    out.unlink()
    names = ("overhead", "round", "slowest_training", "start_to_connected", "start_to_first_round")
    return {name: found[0][name] for name in names}


def demonstrated(code: Path, scratch: Path) -> dict[str, float]:
    """Seconds from starting `fedsight federation demo`, keys included, to its first round."""
    kept = scratch / "kept"
    words = ["federation", "demo", "--sites", str(DEMO_SITES), "--rounds", str(DEMO_ROUNDS)]
    history = kept / "demo" / "runs" / "demo" / "history.jsonl"
    with tempfile.TemporaryFile("w+") as said:
        began, first = time.monotonic(), 0.0
        process = subprocess.Popen(
            [sys.executable, "-m", "fedsight", *words, "--keep", str(kept)],
            cwd=scratch,
            env=environment(code),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        try:
            while not first and process.poll() is None and time.monotonic() < began + PATIENCE:
                if history.exists() and b"\n" in history.read_bytes():
                    first = time.monotonic() - began
                time.sleep(LOOK)
        finally:
            process.send_signal(signal.SIGINT)  # it ends its server and its sites
            process.wait(ENDING)
        said.seek(0)
        if not first:
            raise RuntimeError(f"{code}: the demo failed: {said.read()[-1000:]}")
    return {"start_to_first_round": round(first, 2)}


def measure(case: str, code: Path, rounds: int) -> dict[str, Any]:
    """One figure of one code: a federation of so many sites, or the demo."""
    busy = round(others(), 2)
    with tempfile.TemporaryDirectory(prefix="fedsight-benchmark-") as scratch:
        if case == DEMO:
            found = demonstrated(code, Path(scratch))
        else:
            found = deployed(code, int(case), rounds, Path(scratch))
    return {**found, "cores_busy_with_other_work_before": busy}


def in_turn(
    codes: Mapping[str, Path], cases: Sequence[str], rounds: int, minutes: float
) -> dict[str, list[dict[str, Any]]]:
    """By case, as many pairs as there is time for: one measurement of each code."""
    until = time.monotonic() + 60 * minutes
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    took: dict[str, float] = {}
    number = 0
    while True:
        for case in cases:
            if number and time.monotonic() + took[case] > until:
                continue
            began = time.monotonic()
            order = list(codes)[:: -1 if number % 2 else 1]
            pair = {name: measure(case, codes[name], rounds) for name in order}
            took[case] = time.monotonic() - began
            found[case].append(pair)
            told = ", ".join(
                f"{what} {pair['before'][key]:.2f} and {pair['after'][key]:.2f} s"
                for key, what in FIGURES.items()
                if key in pair["after"]
            )
            name = case if case == DEMO else f"{case} sites"
            print(f"{name}: before and after: {told} ({took[case]:.0f} s)", flush=True)
        number += 1
        if all(time.monotonic() + seconds > until for seconds in took.values()):
            return found


def compared(pairs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By figure: each code's values, and the ratio after / before, by pair and its median."""
    found = {}
    for key in FIGURES:
        if key in pairs[0]["after"]:
            each = {name: [pair[name][key] for pair in pairs] for name in ("before", "after")}
            by_pair = [round(value, 3) for value in ratios(each["after"], each["before"])]
            found[key] = {**each, "ratio_by_pair": by_pair, "ratio": round(median(by_pair), 3)}
    return found


def show(found: Mapping[str, Mapping[str, Any]]) -> None:
    """The table."""
    rows = []
    for case, figures in found.items():
        name = f"demo, {DEMO_SITES} sites" if case == DEMO else f"{case} sites x 1 million"
        for key, one in figures.items():
            good = "" if one["ratio"] <= LIMIT else " (!)"
            values = [spread(one[code]) for code in ("before", "after")]
            ratio = f"{spread(one['ratio_by_pair'])}{good}"
            rows.append([f"{name}: {FIGURES[key]}", *values, ratio, str(len(one["before"]))])
    columns = ["seconds", "before", "after", "after / before, by pair", "pairs"]
    print_table("Two commits in turn: medians, and the range of all pairs", columns, rows)
    print(f"  (!): more than {LIMIT:g} of the earlier code's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", default=EARLIER, metavar="COMMIT", help="default: %(default)s")
    parser.add_argument("--cases", default=f"4,10,{DEMO}", help="default: %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=16, help="the first and the last do not count"
    )
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="each case is measured once at least"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "deploy_before_after.json")
    options = parser.parse_args()
    facts = machine()
    with checked_out(options.before) as earlier:
        codes = {"before": earlier, "after": ROOT}
        pairs = in_turn(codes, options.cases.split(","), options.rounds, options.minutes)
    results = {case: compared(of) for case, of in pairs.items()}
    content = {
        "benchmark": "deploy_before_after",
        "machine": facts,
        "before": options.before,
        "after": facts["commit"],
        "rounds": options.rounds,
        "limit": LIMIT,
        "results": results,
        "pairs": pairs,
    }
    write_json(options.out, content)
    show(results)
    print(f"wrote {options.out}")
    sys.exit(any(one["ratio"] > LIMIT for of in results.values() for one in of.values()))


if __name__ == "__main__":
    main()
