"""`make gpu-check`: the tests of a GPU, and speed beside bare PyTorch and pfl, in eight minutes.

    python benchmarks/gpu.py                # on a machine with a GPU
    python benchmarks/gpu.py --quick        # the same code with tiny shapes, on the CPU

Writes JSON with the machine's facts after every step, so that what was measured stays if time ends.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import (
    HERE,
    OURS,
    RESULTS,
    ROOT,
    ContestantError,
    Process,
    installed,
    machine,
    print_table,
    run_contestant,
    write_json,
)

BUDGET = 480.0  # seconds for everything
LEAST = 10.0  # seconds below which no further step is begun
# FLUTE's published figure: 1,500 rounds of 10 clients with its CNN in 8 min 22 s.
FLUTE = 1500 * 10 / (8 * 60 + 22)  # clients a second


@dataclass(frozen=True)
class Step:
    """One measurement, in a process of its own."""

    shape: str
    who: str
    title: str
    seconds: float  # it may take
    speed: dict[str, Any] = field(default_factory=dict)


MIXED = {"precision": "bfloat16"}
STEPS = (
    Step("cifar", "fedsight", "FedSight", 60),
    Step("cifar", "fedsight", "FedSight, 8 workers", 60, {"workers": 8}),
    Step("cifar", "fedsight", "FedSight, 50 side by side", 60, {"together": 50}),
    Step("cifar", "pfl", "pfl-research", 60),
    Step("cifar", "bare", "bare loop", 40),
    Step("resnet", "fedsight", "FedSight", 90, MIXED),
    Step("resnet", "bare", "bare loop", 60, MIXED),
    Step("femnist", "fedsight", "FedSight", 60),
    Step("femnist", "fedsight", "FedSight, 10 side by side", 60, {"together": 10}),
    Step("femnist", "bare", "bare loop", 40),
)
# (shape, whose rate is the measure, the least ratio of FedSight's best to it)
TARGETS = (("cifar", "pfl-research", 5.0), ("resnet", "bare loop", 0.9))


def facts(device: str) -> dict[str, Any]:
    """The machine, and its GPU."""
    import torch

    found = machine() | {
        "python_executable": sys.version.split()[0],
        "packages": {
            name: version
            for name in ("torch", "torchvision", "timm", "numpy", "pfl")
            for version in installed(OURS, name).values()
        },
        "device": device,
    }
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": card.name,
            "memory_gib": round(card.total_memory / 2**30, 1),
            "capability": f"{card.major}.{card.minor}",
            "cards": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def tested(device: str, seconds: float) -> dict[str, Any]:
    """What the tests of tests/gpu say on this device."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "--accelerator", device, "-q"]
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    try:
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider", "--tb=short", "--durations=5"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        code, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        code, said = 124, (late.stdout or b"").decode(errors="replace")
    return {
        "passed": code == 0,
        "exit_code": code,
        "seconds": round(time.monotonic() - begun, 1),
        "said": said[-6000:].splitlines(),
    }


def measured(step: Step, device: str, quick: bool, seconds: float) -> dict[str, Any]:
    """The result of one step, or why there is none."""
    given = {
        "shape": step.shape,
        "who": step.who,
        "device": device,
        "quick": quick,
        "speed": {**step.speed, "workers": 2} if quick and "workers" in step.speed else step.speed,
    }
    if step.who == "pfl" and not installed(OURS, "pfl"):
        return {"missing": "pfl-research is not installed: carry what `make gpu-wheels` fetches"}
    script = HERE / "contestants" / "gpu_shapes.py"
    begun = time.monotonic()
    try:
        found = run_contestant(Process(OURS, script, [json.dumps(given)]), seconds)
    except ContestantError as error:
        found = {"error": str(error)[-2000:]}
    return {**found, "total_seconds": round(time.monotonic() - begun, 1)}


def verdicts(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """FedSight's best rate over its mark, for each target; None where one was not measured."""

    def rate(shape: str, title: str) -> float | None:
        rates = [
            float(found["clients_per_second"])
            for name, found in results.get(shape, {}).items()
            if name.startswith(title) and "clients_per_second" in found
        ]
        return max(rates, default=None)

    marks = [(shape, peer, rate(shape, peer), least) for shape, peer, least in TARGETS]
    marks.append(("femnist", "FLUTE's published figure", FLUTE, 1.0))
    found = {}
    for shape, peer, mark, least in marks:
        ours = rate(shape, "FedSight")
        ratio = round(ours / mark, 3) if ours and mark else None
        met = None if ratio is None else ratio >= least
        found[shape] = {"beside": peer, "ratio": ratio, "target": least, "met": met}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to prove the code")
    parser.add_argument("--device", help="default: cuda:0, or cpu with --quick")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    device = given.device or ("cpu" if given.quick else "cuda:0")
    out = given.out or (RESULTS / "gpu.json" if not given.quick else None)
    deadline: float = time.monotonic() + given.budget

    def left(most: float) -> float:
        return min(most, deadline - time.monotonic())

    results: dict[str, dict[str, Any]] = {}
    content: dict[str, Any] = {"machine": facts(device), "quick": given.quick}
    content["tests"] = tested(device, left(150.0 if not given.quick else given.budget))
    print("\n".join(content["tests"]["said"][-12:]), flush=True)
    for step in STEPS:
        if (most := left(given.budget if given.quick else step.seconds)) < LEAST:
            found: dict[str, Any] = {"error": "no time was left"}
        else:
            found = measured(step, device, given.quick, most)
        results.setdefault(step.shape, {})[step.title] = found
        content |= {"results": results, "verdicts": verdicts(results)}
        if out is not None:
            write_json(out, content)
    show(results, content["verdicts"])
    failed = [f for of in results.values() for f in of.values() if "error" in f]
    sys.exit(0 if content["tests"]["passed"] and not failed else 1)


def show(results: dict[str, dict[str, Any]], judged: dict[str, Any]) -> None:
    """A table of each shape, and the targets."""
    for shape, by_name in results.items():
        rows = [
            [
                name,
                *(str(found.get(key, "-")) for key in ("clients_per_second", "images_per_second")),
            ]
            for name, found in by_name.items()
        ]
        print_table(shape, ["", "clients/s", "images/s"], rows)
        for name, found in by_name.items():
            if reason := found.get("error", found.get("missing")):
                print(f"  {name}: {reason[-800:]}")
        one = judged[shape]
        outcome = {None: "not measured", True: "met", False: "NOT MET"}[one["met"]]
        print(f"  beside {one['beside']}: {one['ratio']}, target {one['target']}: {outcome}\n")


if __name__ == "__main__":
    main()
