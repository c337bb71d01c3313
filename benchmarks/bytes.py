"""What codecs cost and save: error at equal bits, speed, and bytes until a test accuracy.

    fedsight data get efficientnet-lite0
    python benchmarks/bytes.py [--quick] [--only errors peers cost training] [--jobs garments]

`errors`: a vector of 4 million values (most of them small, as those of an update are) is encoded
and decoded with four keys. Its squared error over its squared norm stands beside what theory says
for any vector after a rotation (Vargaftik et al. 2021 and 2022) and the speed of one core, in MB of
float32 a processor second; the best of the repeats, which other work on the machine disturbs least.
`low-rank` sees the vector as one square matrix, which has no low rank: its error here says little.

`peers`: the codecs of OpenFL, FedLab and Flower on the same vector, where `make peers` has put
them. Their bytes are those of the arrays that they return, as they would be sent.

`cost`: the main job's first six rounds with codecs and without, in turn, all sites in one process:
how much more processor time they take as a whole, evaluation included.

`training`: the built-in images among ten sites (Dirichlet 0.3), where only `[codec]` differs;
bytes that all sites sent and received until the test accuracy is 0.86, and the accuracy in the end,
paired over seeds. There are two jobs: `garments` is the main one, with 30 rounds, and `finetune`
trains the last layers of EfficientNet-Lite0 and a new head on the same images at 96 pixels.
Finished runs are kept in the results file: the benchmark can be interrupted and started again, and
`--seeds`, `--jobs` and `--ways` add to it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy
import torch
from common import (
    HERE,
    PEERS,
    RESULTS,
    ContestantError,
    Process,
    example,
    installed,
    machine,
    print_table,
    run_contestant,
    write_json,
)

import fedsight
from fedsight.compression.settings import Codecs
from fedsight.coordinator import loop
from fedsight.coordinator.session import Session
from fedsight.core.layout import Entry, Kind, Layout
from fedsight.engines.in_process import InProcessEngine
from fedsight.evaluation.figures import Evaluator
from fedsight.program.config import parse
from fedsight.program.federation import federate

PARTS = ("errors", "peers", "cost", "training")
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
    "quantise, 8 bits, zstd": {"steps": [{"name": "quantise", "bits": 8}, "zstd"]},
    "low-rank 4, feedback": {"steps": [{"name": "low-rank", "rank": 4}], "feedback": True},
}
EDEN = {"steps": [{"name": "eden", "scale": "least"}]}
SPARSE = {
    "steps": [{"name": "top-k", "share": 0.05}, {"name": "quantise", "bits": 4, "block": 128}],
    "feedback": True,
}
# What differs from the example in `training`.
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float16 both": {"codec": {"up": CODECS["float16"], "down": CODECS["float16"]}},
    "8 bits both": {
        "codec": {way: {"steps": [{"name": "quantise", "bits": 8}]} for way in ("up", "down")}
    },
    "eden 1 bit up": {"codec": {"up": {**EDEN, "feedback": True}}},
    "eden 1 bit both": {"codec": {"up": {**EDEN, "feedback": True}, "down": EDEN}},
    "eden 1 bit unbiased up, eden 1 bit down": {"codec": {"up": {"steps": ["eden"]}, "down": EDEN}},
    "top-k up, eden 1 bit down": {"codec": {"up": SPARSE, "down": EDEN}},
    "top-k up, eden 2 bits down": {
        "codec": {"up": SPARSE, "down": {"steps": [{"name": "eden", "bits": 2}]}}
    },
    "top-k both": {
        "codec": {
            "up": SPARSE,
            "down": {
                "steps": [
                    {"name": "top-k", "share": 0.1},
                    {"name": "quantise", "bits": 4, "block": 128},
                ]
            },
        }
    },
    "8 bits and zstd both": {
        "codec": {
            way: {"steps": [{"name": "quantise", "bits": 8}, "zstd"]} for way in ("up", "down")
        }
    },
    "low-rank 4, 8 bits up, eden 1 bit down": {
        "codec": {
            "up": {
                "steps": [{"name": "low-rank", "rank": 4}, {"name": "quantise", "bits": 8}],
                "feedback": True,
            },
            "down": EDEN,
        }
    },
    # Rounded for masks as secure aggregation does: with `secagg` the same bits and the same bytes.
    "quantised": {"secure": {"name": "quantised"}},
    "quantised, rotate, 6 bits, eden 2 bits down": {
        "secure": {"name": "quantised", "bits": 6, "clip": 0.2},
        "codec": {
            "up": {"steps": [{"name": "rotate", "block": 1024}]},
            "down": {"steps": [{"name": "eden", "bits": 2}]},
        },
    },
    "quantised, half of it, 6 bits, eden 2 bits down": {
        "secure": {"name": "quantised", "bits": 6, "clip": 0.4},
        "codec": {
            "up": {
                "steps": [
                    {"name": "random-k", "share": 0.5, "scaled": False},
                    {"name": "rotate", "block": 1024},
                ],
                "feedback": True,
            },
            "down": {"steps": [{"name": "eden", "bits": 2}]},
        },
    },
}
# What differs from an example of the package, and how many rounds there are.
JOBS: dict[str, tuple[str, dict[str, Any], int]] = {
    "garments": ("fashion", {}, 30),
    "finetune": (
        "finetune",
        {
            "split": {"name": "dirichlet", "sites": 10, "alpha": 0.3},
            "model": {
                "name": "timm",
                "architecture": "tf_efficientnet_lite0",
                "weights": "efficientnet-lite0",
            },
            "algorithm": {"name": "fedavg"},
            # The last layers and a head that begins at random: without closed forms, which are
            # not sent through codecs.
            "start": None,
            "finish": None,
            "train": {
                "only": ["blocks.6", "conv_head", "bn2", "head"],
                "optimiser": "adamw",
                "lr": 0.0007,
                "epochs": 1,
                "batch": 32,
                "clip": 5.0,
                "schedule": "cosine",
            },
            "task": {"name": "classify", "label_smoothing": 0.1},
            "speed": {"cache_at": "blocks.6"},  # what is before it runs once for each image
        },
        16,
    ),
}
QUICK = (
    *("float32", "eden 1 bit both", "quantised"),
    "quantised, half of it, 6 bits, eden 2 bits down",
)
COSTED = ("8 bits both", "eden 1 bit both", "top-k up, eden 1 bit down")
PAIRS = 5
PATIENCE = 1800.0  # seconds for the codecs of all peers
# Distortion of the best levels for normal values (Max 1960), and the error that follows.
THEORY = {
    "eden, 1 bit": math.pi / 2 - 1,
    "eden, 1 bit, least, feedback": 1 - 2 / math.pi,
    "eden, 2 bits": 1 / (1 - 0.1175) - 1,
    "eden, 4 bits": 1 / (1 - 0.009497) - 1,
    "random-k 5 %": 1 / 0.05 - 1,
}


def vector(quick: bool) -> torch.Tensor:
    """What is encoded: a square number of values, most of them small."""
    draws = torch.Generator().manual_seed(0)
    count = VALUES >> 4 if quick else VALUES
    return torch.randn(count, generator=draws) * torch.rand(count, generator=draws) ** 4


def peers(quick: bool) -> dict[str, Any]:
    """What the peers' codecs make of the same vector: `codecs` as in `errors`, and why others are
    `missing`."""
    if not installed(PEERS, "openfl", "fedlab", "flwr"):
        print("OpenFL, FedLab and Flower are not installed ('make peers' installs them): left out")
        return {"codecs": [], "missing": {"all": "not installed"}}
    with tempfile.TemporaryDirectory(prefix="fedsight-bytes-") as folder:
        path = Path(folder) / "vector.npy"
        numpy.save(path, vector(quick).numpy())
        script = HERE / "contestants" / "codecs.py"
        process = Process(
            PEERS, script, [str(path), "2" if quick else "4"], {"OMP_NUM_THREADS": "1"}
        )
        try:
            return run_contestant(process, PATIENCE)
        except ContestantError as error:
            return {"codecs": [], "missing": {"all": str(error)}}


def errors(quick: bool) -> list[dict[str, Any]]:
    """Bits, error and speed of each codec on one vector."""
    values = vector(quick)
    count, side = len(values), math.isqrt(len(values))
    square = Layout((Entry("matrix", (side, side), Kind.SHARED, 0),))
    norm, found = float(values.double().square().sum()), []
    for name, up in CODECS.items():
        codec = Codecs.model_validate({"up": up}, strict=False).up.pipeline
        assert codec is not None
        codec = codec.fitted(square)
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


def cost(quick: bool) -> list[dict[str, Any]]:
    """The processor time of whole runs with each of some codecs, over that without, in pairs."""
    found = []
    for name in COSTED:
        pairs = []
        for _ in range(1 if quick else PAIRS):
            # The one without stands first and last, so that neither gains by its place.
            before, coded, after = map(seconds_of, ("float32", name, "float32"))
            pairs.append(2 * coded / (before + after) - 1)
        found.append({"way": name, "more": median(pairs), "pairs": pairs})
        print(found[-1], flush=True)
    return found


def seconds_of(way: str) -> float:
    """Processor seconds of the first rounds of the main job, measured as ever, in this process."""
    table = table_of("garments") | WAYS[way] | {"rounds": {"rounds": 6}}
    program, _ = parse(table, Path.cwd())
    federation = federate(program)
    engine, evaluator = InProcessEngine(federation), Evaluator(federation)
    began = time.process_time()
    loop.run(Session(federation), engine, lambda sums: evaluator.figures(sums).overall)
    seconds = time.process_time() - began
    engine.close()
    return seconds


def training(
    options: argparse.Namespace, known: list[dict[str, Any]], save: Callable[[Any], None]
) -> list[dict[str, Any]]:
    """Bytes until the goal and accuracy in the end, by job, way and seed; what is `known` stays.

    Kinds of processor differ in the last bits, so runs are repeated on another kind, and paired
    only with those on the same.
    """
    processor = machine()["processor"]
    ways = options.ways or ([*QUICK] if options.quick else [*WAYS])
    found = list(known)
    done = {(one["job"], one["way"], one["seed"], one["processor"]) for one in found}
    seeds = range(1 if options.quick else options.seeds)
    for job, seed, way in itertools.product(options.jobs, seeds, ways):
        if (job, way, seed, processor) in done:
            continue
        table, rounds = table_of(job), 2 if options.quick else JOBS[job][2]
        table |= WAYS[way] | {"seed": seed, "rounds": {"rounds": rounds}}
        told = {"job": job, "way": way, "seed": seed, "processor": processor}
        found.append(told | trained(table, options.workers))
        print({key: value for key, value in found[-1].items() if key != "rounds"}, flush=True)
        save(found)
    return found


def table_of(job: str) -> dict[str, Any]:
    """The config of a job; sections that are None there are left out."""
    name, changed, _ = JOBS[job]
    return {key: value for key, value in (example(name) | changed).items() if value is not None}


def trained(table: dict[str, Any], workers: int) -> dict[str, Any]:
    """One run: the bytes of all sites in both directions, and the accuracy on the test part.

    Every round is measured on the test part: none is chosen by that.
    """
    table["speed"] = {"workers": workers, **table.get("speed", {})}
    with tempfile.TemporaryDirectory(prefix="fedsight-bytes-") as folder:
        began = time.perf_counter()
        run = fedsight.run(table, out=Path(folder) / "run")
        lines, total, reached, rounds = run.history, 0, None, []
        for line in lines:
            total += line["bytes_up"] + line["bytes_down"]
            rounds.append({key: line[key] for key in ("accuracy", "bytes_up", "bytes_down")})
            if reached is None and line["accuracy"] >= GOAL:
                reached = total
    return {
        "bytes_until": reached,
        "bytes": total,
        "accuracy": lines[-1]["accuracy"],
        "seconds": round(time.perf_counter() - began, 1),
        "rounds": rounds,
    }


def show_errors(found: list[dict[str, Any]], title: str = "One vector, one core") -> None:
    """The first table, and that of the peers."""
    rows = [
        [
            one["codec"],
            f"{one['bits']:.3f}",
            f"{one['error']:.4f}",
            "" if one.get("theory") is None else f"{one['theory']:.4f}",
            f"{one['encode']:.0f}",
            f"{one['decode']:.0f}",
        ]
        for one in found
    ]
    heads = ["codec", "bits", "squared error", "theory", "encode MB/s", "decode MB/s"]
    print_table(title, heads, rows)


def show_training(job: str, found: list[dict[str, Any]]) -> None:
    """The table of a job: savings and points are paired over seeds, each way with the uncompressed
    run of its kind; accuracy is the mean."""
    rows = []
    found = [one for one in found if one["job"] == job]
    by = {(one["way"], one["seed"], one["processor"]): one for one in found}
    for name in dict.fromkeys(one["way"] for one in found):
        mine = [one for one in found if one["way"] == name]
        plain = "quantised" if WAYS[name].get("secure") else "float32"
        others = [by.get((plain, one["seed"], one["processor"])) for one in mine]
        pairs = [(a, b) for a, b in zip(mine, others, strict=True) if b is not None]
        points = [100 * (a["accuracy"] - b["accuracy"]) for a, b in pairs]
        times = [
            b["bytes_until"] / a["bytes_until"]
            for a, b in pairs
            if a["bytes_until"] and b["bytes_until"]
        ]
        there = [one["bytes_until"] for one in mine if one["bytes_until"]]
        rows.append(
            [
                name,
                f"{len(there)} of {len(mine)}",
                f"{fmean(there) / 1e6:.2f} MB" if there else "",
                f"{fmean(times):.1f} ({min(times):.1f})" if times else "",
                f"{100 * fmean(one['accuracy'] for one in mine):.2f}",
                f"{fmean(points):+.2f} ({min(points):+.2f})" if points else "",
            ]
        )
    heads = ["way", f"reached {GOAL}", "bytes until then", "times fewer (least)", "accuracy, %",
             "points to uncompressed (least)"]  # fmt: skip
    print_table(f"{job}: ten sites, Dirichlet 0.3, both directions", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short vector; one seed, two rounds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", nargs="+", choices=[*JOBS], default=[*JOBS], help="of training")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], help="of training; all")
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--out", type=Path, default=RESULTS / "bytes.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = options.only or PARTS
    content: dict[str, Any] = {"benchmark": "bytes", "quick": options.quick, "machine": machine()}
    content["training"] = []
    if options.out.exists():
        before = json.loads(options.out.read_text(encoding="utf-8"))
        # Finished runs are kept, so that an interrupted benchmark goes on where it stopped.
        kept = before["training"] if before["quick"] == options.quick else []
        content = {**before, **content, "training": kept}
    if "errors" in parts:
        content["errors"] = errors(options.quick)
        show_errors(content["errors"])
    if "peers" in parts:
        content["peers"] = peers(options.quick)
        if content["peers"]["codecs"]:
            show_errors(content["peers"]["codecs"], "Peers on the same vector")
    if "cost" in parts:
        content["cost"] = cost(options.quick)
        rows = [[one["way"], f"{100 * one['more']:+.1f} %"] for one in content["cost"]]
        print_table("Processor time of a whole run", ["way", "more than float32"], rows)
    if "training" in parts:

        def save(found: list[dict[str, Any]]) -> None:
            content["training"] = found
            write_json(options.out, content)

        content["training"] = training(options, content["training"], save)
        for job in options.jobs:
            show_training(job, content["training"])
    write_json(options.out, content)


if __name__ == "__main__":
    main()
