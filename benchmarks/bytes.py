"""What codecs cost and save: error at equal bits, speed, and bytes until a test accuracy.

    python benchmarks/bytes.py [--quick] [--only errors training]

`errors`: a vector of 4 million values (most of them small, as those of an update are) is encoded
and decoded with four keys. Its squared error over its squared norm stands beside what theory says
for any vector after a rotation (Vargaftik et al. 2021 and 2022) and the speed of one core, in MB of
float32 a processor second; the best of the repeats, which other work on the machine disturbs least.

`training`: the built-in images among ten sites (Dirichlet 0.3), where only `[codec.up]` differs;
bytes that all sites sent until the test accuracy is 0.86, and the accuracy in the end, paired over
seeds.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import RESULTS, example, machine, print_table, write_json

import fedsight
from fedsight.compression.settings import Codecs

VALUES = 1 << 22
GOAL = 0.86
FASTEST = {"quantise": 400, "float16": 400, "sign": 400}  # MB/s that are asked; others 200
CODECS: dict[str, dict[str, Any]] = {
    "float16": {"steps": ["float16"]},
    "quantise, 8 bits": {"steps": [{"name": "quantise", "bits": 8}]},
    "quantise, 4 bits": {"steps": [{"name": "quantise", "bits": 4}]},
    "quantise, 2 bits": {"steps": [{"name": "quantise", "bits": 2}]},
    "rotate, quantise, 2 bits": {"steps": ["rotate", {"name": "quantise", "bits": 2}]},
    "eden, 4 bits": {"steps": [{"name": "eden", "bits": 4}]},
    "eden, 2 bits": {"steps": [{"name": "eden", "bits": 2}]},
    "eden, 1 bit": {"steps": ["eden"]},
    "eden, 1 bit, least, feedback": {
        "steps": [{"name": "eden", "scale": "least"}],
        "feedback": True,
    },
    "sign, feedback": {"steps": ["sign"], "feedback": True},
    "top-k 5 %, 4 bits, feedback": {
        "steps": [
            {"name": "top-k", "share": 0.05},
            {"name": "quantise", "bits": 4, "block": 128},
        ],
        "feedback": True,
    },
    "top-k 1 %, feedback": {"steps": [{"name": "top-k", "share": 0.01}], "feedback": True},
    "random-k 5 %": {"steps": [{"name": "random-k", "share": 0.05}]},
}
# Distortion of the best levels for normal values (Max 1960), and the error that follows.
THEORY = {
    "eden, 1 bit": math.pi / 2 - 1,
    "eden, 1 bit, least, feedback": 1 - 2 / math.pi,
    "eden, 2 bits": 1 / (1 - 0.1175) - 1,
    "eden, 4 bits": 1 / (1 - 0.009497) - 1,
    "random-k 5 %": 1 / 0.05 - 1,
}


def errors(quick: bool) -> list[dict[str, Any]]:
    """Bits, error and speed of each codec on one vector."""
    draws = torch.Generator().manual_seed(0)
    count = VALUES >> 4 if quick else VALUES
    values = torch.randn(count, generator=draws) * torch.rand(count, generator=draws) ** 4
    norm, found = float(values.double().square().sum()), []
    for name, up in CODECS.items():
        codec = Codecs.model_validate({"up": up}, strict=False).up.pipeline
        assert codec is not None
        squares, there, back = [], [], []
        for key in range(2 if quick else 4):
            began = time.process_time()
            sent = codec.encode(values, key)
            encoded = time.process_time()
            decoded = codec.decode(sent, count)
            there.append(encoded - began)
            back.append(time.process_time() - encoded)
            squares.append(float((decoded - values).double().square().sum()) / norm)
        found.append(
            {
                "codec": name,
                "bits": 8 * len(sent) / count,
                "error": fmean(squares),
                "theory": THEORY.get(name),
                "encode": 4 * count / min(there) / 1e6,
                "decode": 4 * count / min(back) / 1e6,
            }
        )
        print(found[-1], flush=True)
    return found


def training(quick: bool, seeds: int) -> list[dict[str, Any]]:
    """Bytes until the goal and accuracy in the end, by codec and seed."""
    found = []
    for seed in range(seeds):
        for name, up in {"float32": {}, **CODECS}.items():
            table = example("fashion") | {"seed": seed, "codec": {"up": up}}
            table["rounds"] = {"rounds": 2 if quick else 30}
            with tempfile.TemporaryDirectory(prefix="fedsight-bytes-") as folder:
                run = fedsight.run(table, out=Path(folder) / "run")
                lines, sent, reached = run.history, 0, None
                for line in lines:
                    sent += line["bytes_up"]
                    if reached is None and line["accuracy"] >= GOAL:
                        reached = sent
            found.append(
                {
                    "codec": name,
                    "seed": seed,
                    "bytes_until": reached,
                    "bytes": sent,
                    "accuracy": lines[-1]["accuracy"],
                }
            )
            print(found[-1], flush=True)
    return found


def show_errors(found: list[dict[str, Any]]) -> None:
    """The first table."""
    rows = [
        [
            one["codec"],
            f"{one['bits']:.3f}",
            f"{one['error']:.4f}",
            "" if one["theory"] is None else f"{one['theory']:.4f}",
            f"{one['encode']:.0f}",
            f"{one['decode']:.0f}",
        ]
        for one in found
    ]
    heads = ["codec", "bits", "squared error", "theory", "encode MB/s", "decode MB/s"]
    print_table("One vector, one core", heads, rows)


def show_training(found: list[dict[str, Any]]) -> None:
    """The second table; savings are those of the mean number of bytes over seeds."""
    plain = [one for one in found if one["codec"] == "float32"]
    rows = []
    for name in dict.fromkeys(one["codec"] for one in found):
        mine = [one for one in found if one["codec"] == name]
        points = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(mine, plain, strict=True)]
        there = [one["bytes_until"] for one in mine if one["bytes_until"] is not None]
        until = saved = ""
        if len(there) == len(mine) and all(one["bytes_until"] for one in plain):
            until = f"{fmean(there) / 1e6:.2f} MB"
            saved = f"{fmean(one['bytes_until'] for one in plain) / fmean(there):.1f}"
        accuracy = fmean(one["accuracy"] for one in mine)
        rows.append([name, until, saved, f"{accuracy:.4f}", f"{fmean(points):+.2f}"])
    heads = ["codec", f"sent until {GOAL}", "times fewer", "accuracy", "points to float32"]
    print_table("Ten sites, Dirichlet 0.3", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short vector, two rounds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=("errors", "training"))
    parser.add_argument("--out", type=Path, default=RESULTS / "bytes.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = options.only or ("errors", "training")
    content: dict[str, Any] = {"benchmark": "bytes", "quick": options.quick, "machine": machine()}
    if "errors" in parts:
        content["errors"] = errors(options.quick)
        show_errors(content["errors"])
    if "training" in parts:
        seeds = 1 if options.quick else options.seeds
        content["training"] = training(options.quick, seeds)
        show_training(content["training"])
    write_json(options.out, content)


if __name__ == "__main__":
    main()
