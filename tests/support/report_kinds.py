"""Turns the files of a classification run into those of another task, as the tasks write them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

Files = dict[str, Any]


def photograph(seed: int, width: int, height: int) -> str:
    """A smooth colour picture as base64 JPEG."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / 90
    waves = [np.sin(rows * rng.uniform(1, 3)) * np.cos(columns * rng.uniform(1, 3)) for _ in "rgb"]
    pixels = (120 + 80 * np.stack(waves, axis=2)).astype("uint8")
    return encoded(Image.fromarray(pixels), "JPEG")


def encoded(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def _pictures(files: Files, count: int, width: int, height: int) -> list[dict[str, Any]]:
    names = [site["name"] for site in files["run.json"]["sites"]]
    return [
        {
            "image": photograph(at, width, height),
            "width": width,
            "height": height,
            "name": f"images/plot-{at:03d}.jpg",
            "site": names[at % len(names)],
            "right": at >= count - 2,
        }
        for at in range(count)
    ]


def _headline(files: Files, title: str) -> None:
    files["run.json"]["headline"] = title
    files["evaluation.json"] |= {"confusion": None, "samples": []}


def detection(files: Files) -> None:
    """Two classes of objects; boxes found, missed and false."""
    _headline(files, "mAP")
    files["evaluation.json"]["site_test"] = "own images"
    samples = _pictures(files, 8, 640, 420)
    for at, sample in enumerate(samples):
        found = {"box": [40, 60, 180, 240], "label": "tree", "kind": "found", "score": 0.91}
        missed = {"box": [300, 80, 420, 210], "label": "tree", "kind": "missed"}
        false = {"box": [460, 220, 600, 400], "label": "shrub", "kind": "false", "score": 0.34}
        marks = [found] if sample["right"] else [found, missed, false][: 1 + at % 3 + (at % 3 == 0)]
        sample |= {
            "truth": "2 tree", "predicted": "tree", "probability": 0.5, "marks": marks,
            "full": [4000, 2625] if at == 0 else None,
        }  # fmt: skip
    curve = [[0.1 * at, 1 - 0.08 * at] for at in range(10)]
    lines = {"tree": curve, "shrub": [[x, y * 0.8] for x, y in curve]}
    names = [site["name"] for site in files["run.json"]["sites"]]
    files["evaluation.json"] |= {
        "samples": samples,
        "curves": [
            {"title": "Precision over recall, IoU 0.50", "x": "recall", "y": "precision",
             "lines": lines}
        ],
        "tables": [
            {
                "title": "Found, missed and false by class, at a score of 0.3",
                "columns": ["Class", "Found", "Missed", "False", "Precision", "Recall", "F1"],
                "rows": [
                    ["tree", 812.0, 120.0, 77.0, 0.913, 0.871, 0.892],
                    ["shrub", 90.0, 61.0, 40.0, 0.692, 0.596, 0.64],
                ],
            },
            {
                "title": "Average precision by class",
                "columns": ["Class", "Objects", "mAP", "AP, IoU 0.50"],
                "rows": [["tree", 932.0, 0.51, 0.84], ["shrub", 151.0, 0.31, None]],
            },
            {
                "title": "mAP by class at each site",
                "columns": ["Class", *names],
                "rows": [["tree", *[0.5] * len(names)], ["shrub", *[None] * len(names)]],
            },
        ],
    }  # fmt: skip


def faces(files: Files) -> None:
    """Pairs of faces, and thresholds."""
    _headline(files, "Verification AUC")
    files["evaluation.json"]["site_test"] = "own images"
    for site in files["run.json"]["sites"]:
        site["labels"] = []
    files["run.json"]["classes"] = [f"person {at}" for at in range(60)]
    files["evaluation.json"]["classes"] = files["run.json"]["classes"]
    samples = _pictures(files, 10, 184, 112)
    for at, sample in enumerate(samples):
        same = at % 2 == 0
        sample |= {
            "truth": "same person" if same else "two people",
            "predicted": "same person" if same == sample["right"] else "two people",
            "name": f"image {at}, image {at + 40}",
            "probability": 0.71,
        }
    files["evaluation.json"] |= {
        "samples": samples,
        "curves": [
            {
                "title": "Verification of people unseen in training",
                "x": "false accept rate",
                "y": "true accept rate",
                "lines": {
                    "this model": [[0, 0], [0.02, 0.8], [0.2, 0.95], [1, 1]],
                    "by chance": [[0, 0], [1, 1]],
                },
            }
        ],
        "tables": [
            {
                "title": "At thresholds chosen on other people",
                "columns": [
                    "wanted false accept rate", "reached on other people", "true accept rate",
                    "95 % from", "to", "threshold", "enrolled people found among strangers",
                ],
                "rows": [
                    ["0.01", 0.012, 0.81, 0.72, 0.88, 0.41, 0.77],
                    ["0.001", None, 0.6, 0.5, 0.7, 0.52, 0.5],
                ],
            },
            {
                "title": "Degraded images at a false accept rate of 0.01",
                "columns": [
                    "Compared with images that are", "AUC", "true accept rate", "95 % from", "to",
                ],
                "rows": [
                    ["as they are", 0.99, 0.81, 0.72, 0.88],
                    ["degraded in any of these ways, at one threshold", 0.97, 0.6, 0.5, 0.7],
                    ["a quarter covered", 0.96, 0.7, None, None],
                ],
            },
        ],
    }  # fmt: skip


def segmentation(files: Files) -> None:
    """Areas found, missed and false."""
    _headline(files, "Mean Dice")
    files["evaluation.json"]["site_test"] = "test part"
    for name in ("sites", "differ"):
        files["evaluation.json"][name] = {} if name == "sites" else None
    samples = _pictures(files, 6, 512, 512)
    tint = np.zeros((64, 64, 4), "uint8")
    tint[10:40, 10:40] = (0, 224, 160, 90)
    tint[40:50, 10:40] = (255, 210, 63, 230)
    tint[10:40, 40:48] = (255, 80, 70, 230)
    for sample in samples:
        sample |= {
            "truth": "lung", "predicted": "lung", "probability": 0.9,
            "overlap": 0.95 if sample["right"] else 0.71,
            "areas": {"image": encoded(Image.fromarray(tint), "PNG"), "box": [0, 0, 512, 512]},
        }  # fmt: skip
    files["evaluation.json"] |= {
        "samples": samples,
        "tables": [
            {
                "title": "By class, over all test pixels",
                "columns": ["Class", "Pixels", "Precision", "Recall", "Dice", "IoU"],
                "rows": [["background", 912345.0, 0.98, 0.97, 0.975, 0.951],
                         ["lung", 81234.0, 0.9, 0.88, 0.89, 0.801]],
            }
        ],
    }  # fmt: skip


def delivered(files: Files) -> None:
    """Sites have chosen what they get; the last one has too few images to choose by."""
    comparison = files["comparison.json"]
    kinds = ("corrected", "tuned", "shared", "alone")
    comparison["delivered"] = {}
    for at, (name, alone) in enumerate(comparison["alone"].items()):
        gain = 0.0 if kinds[at % 4] == "alone" else 0.06
        comparison["delivered"][name] = {
            "kind": kinds[at % 4],
            "settings": {"strength": 0.5},
            "held_out": 100,
            "by_kind": {kind: {"loss": 0.3, "figure": 0.9} for kind in kinds},
            "score": alone["own_score"] + gain,
            "tested": 180,
            "low": gain - 0.02,
            "high": gain + 0.02,
            "verdict": "better" if gain else "no difference shown",
        }
    comparison["delivered"][name]["held_out"] = 0


KINDS: dict[str, Callable[[Files], None]] = {
    "classification": lambda files: None,
    "delivered": delivered,
    "detection": detection,
    "faces": faces,
    "segmentation": segmentation,
}
