"""A run folder as `fedsight compare` writes it: ten sites, twenty rounds, numbers that differ."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsight.core.intervals import wilson

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CONFIG = """name = "{name}"
seed = 7

[data]
source = "fashion"

[split]
name = "dirichlet"
alpha = {alpha}

[train]
lr = 0.05
"""

Maker = Callable[..., Path]


def png(seed: int, side: int = 28) -> str:
    """A small grey test picture as base64 PNG."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:side, 0:side] / side
    wave = np.sin(rows * rng.uniform(2, 9) + rng.uniform(0, 3)) * np.cos(columns * 7)
    buffer = io.BytesIO()
    Image.fromarray((127 + 127 * wave).astype("uint8")).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def history(rounds: int, top: float) -> list[dict[str, Any]]:
    lines = []
    for at in range(1, rounds + 1):
        accuracy = top - 0.5 * math.exp(-at / 4) + 0.004 * math.sin(3 * at)
        lines.append(
            {
                "round": at,
                "score": accuracy,
                "loss": 2.1 * math.exp(-at / 5) + 0.33 + 0.01 * math.cos(2 * at),
                "train_loss": 1.7 * math.exp(-at / 4) + 0.21,
                "lr": 0.05,
                "cohort": 10,
                "replies": 9 if at == 3 else 10,
                "rejected": {"site-04": "the update is not finite"} if at == 3 else {},
                "weight": 10_000,
                "bytes_up": 1_046_640 + at,
                "bytes_down": 1_046_704,
                "seconds": 4.25 + 0.01 * at,
            }
        )
    return lines


def contents(
    name: str = "fashion",
    sites: int = 10,
    classes: tuple[str, ...] = CLASSES,
    top: float = 0.881,
    alpha: float = 0.3,
    site: str = "site-{:02d}",
    rounds: int = 20,
) -> dict[str, Any]:
    """Every file's content; the tests change what they need and write it."""
    rng = np.random.default_rng(sites + len(classes))
    k = len(classes)
    names = [site.format(at) for at in range(1, sites + 1)]
    held = rng.dirichlet([alpha] * sites, k).T * 10_000 / k
    labels = held.astype(int).tolist()
    alone = {n: round(0.38 + 0.34 * rng.random(), 4) for n in names}
    own = {n: round(0.62 + 0.33 * rng.random(), 4) for n in names}
    by_site = {n: round(0.80 + 0.15 * rng.random(), 4) for n in names}
    pooled_by = {n: round(v + 0.02 * rng.random() - 0.005, 4) for n, v in by_site.items()}
    worst = min(by_site, key=lambda n: by_site[n])
    lines = history(rounds, top)
    wrong = rng.integers(0, 9, (k, k))
    confusion = wrong + np.diag(200 - wrong.sum(1))
    samples = []
    for at in range(24):
        truth, said = classes[at % k], classes[(at * 3 + 1) % k if at < 12 else at % k]
        sure = round(float(0.99 - 0.02 * at), 3)
        samples.append(
            {
                "image": png(at),
                "width": 28,
                "height": 28,
                "name": f"test/{at:05d}",
                "site": names[at % sites],
                "truth": truth,
                "predicted": said,
                "right": truth == said,
                "probability": sure,
                "truth_probability": round(1 - sure, 3) if truth != said else sure,
            }
        )
    mean = sum(alone.values()) / sites
    return {
        "run.toml": CONFIG.format(name=name, alpha=alpha),
        "run.json": {
            "command": "compare",
            "name": name,
            "fingerprint": "5f0c9b1e77a2",
            "fedsight": "0.1.0",
            "created": "2025-11-21T05:40:00+00:00",
            "environment": {"python": "3.11.2", "torch": "2.15.0", "cores": 2},
            "data": {
                "title": "Fashion-MNIST, 12,000 images",
                "licence": "MIT",
                "credit": "Zalando SE",
                "train": 10_000,
                "test": 2_000,
                "skipped": ["torn/0012.png"],
            },
            "classes": list(classes),
            "model": {"name": "cnn", "parameters": 26_090, "travelling": 26_090},
            "algorithm": "fedavg",
            "sites": [
                {"name": n, "samples": sum(row), "labels": row}
                for n, row in zip(names, labels, strict=True)
            ],
            "population": sites,
        },
        "history.jsonl": lines,
        "summary.json": {
            "name": name,
            "score": top,
            "loss": 0.3391,
            "rounds": rounds,
            "seconds": 87.4,
            "bytes_up": sum(line["bytes_up"] for line in lines),
            "bytes_down": sum(line["bytes_down"] for line in lines),
            "fingerprint": "5f0c9b1e77a2",
            "model_sha256": "9d" * 32,
            "worst_site": {"name": worst, "score": by_site[worst]},
            "by_site": {
                n: {"score": v, "loss": 0.4, "balanced_accuracy": v - 0.04, "macro_f1": v - 0.05}
                for n, v in by_site.items()
            },
            "kept": {
                "round": rounds - 4,
                "keep": "best",
                "by": "balanced_accuracy",
                "best": rounds - 4,
                "value": 0.8712,
                "stopped": "patience",
            },
            "federated": top,
            "pooled": top + 0.0031,
            "alone_mean": mean,
            "alone_by_site": alone,
        },
        "evaluation.json": {
            "classes": list(classes),
            "confusion": confusion.tolist(),
            "site_test": "label mix",
            "personal": False,
            "sites": {
                n: {"score": v, "low": v - 0.06, "high": min(1.0, v + 0.05), "tested": 180}
                for n, v in by_site.items()
            },
            "figures": {
                "accuracy": {"value": top, "low": top - 0.014, "high": top + 0.013},
                "balanced_accuracy": {"value": 0.874, "low": 0.859, "high": 0.888},
                "macro_f1": {"value": 0.8735, "low": 0.858, "high": 0.887},
                "top_5": {"value": 0.9971, "low": 0.994, "high": 0.999},
                "brier": {"value": 0.1712, "low": None, "high": None},
            },
            "differ": 0.0004,
            "samples": samples,
        },
        "comparison.json": {
            "alone": {n: {"score": alone[n], "loss": 1.3, "own_score": own[n]} for n in names},
            "sites": {n: gained(by_site[n] - own[n]) for n in names},
            "pooled": {"score": top + 0.0031, "loss": 0.33, "by_site": pooled_by},
            "federated": {"score": top, "loss": 0.3391, "by_site": by_site},
        },
    }


def gained(difference: float) -> dict[str, Any]:
    """What `comparison.json` says of a site's gain, with an interval of 5 points to each side."""
    low, high = difference - 0.05, difference + 0.05
    verdict = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
    return {"tested": 180, "low": low, "high": high, "verdict": verdict}


def write(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name == "history.jsonl":
            content = "".join(json.dumps(line) + "\n" for line in content)
        elif not isinstance(content, str):
            content = json.dumps(content)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def add_interval(files: dict[str, Any]) -> None:
    """The interval of the main figure, as a run writes that of an accuracy."""
    evaluation, summary = files["evaluation.json"], files["summary.json"]
    plain = files["run.json"].get("headline", "Accuracy") == "Accuracy"
    if plain and summary.get("score") is not None and not evaluation.get("personal"):
        summary["score_interval"] = wilson(summary["score"], files["run.json"]["data"]["test"])


@pytest.fixture
def make_run(tmp_path: Path) -> Maker:
    """Writes a run folder: `make_run("folder", without=[...], change=f, **contents)`."""

    def make(
        folder: str = "run",
        without: tuple[str, ...] = (),
        change: Callable[[dict[str, Any]], None] | None = None,
        **settings: Any,
    ) -> Path:
        files = contents(**settings)
        if change is not None:
            change(files)
        add_interval(files)
        return write(tmp_path / folder, {k: v for k, v in files.items() if k not in without})

    return make
