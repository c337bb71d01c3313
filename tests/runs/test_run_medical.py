"""Federations on several labels per image and on grades, from a file to the report and predictions.

Medical images with labels are not to be had offline: the files have the form of MedMNIST's, and
bright quarters in noise stand for what is to be seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import done, read, refused, write_config
from PIL import Image

SIDE, HALF = 8, 4
LABELS = ("upper left", "upper right", "lower left", "lower right")


def lit(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise [n, h, w], brighter in the quarters whose label is 1."""
    images = rng.integers(0, 200, (len(labels), SIDE, SIDE))
    for number in range(4):
        row, column = divmod(number, 2)
        rows, columns = (
            slice(row * HALF, row * HALF + HALF),
            slice(column * HALF, column * HALF + HALF),
        )
        images[:, rows, columns] += 55 * labels[:, number, None, None]
    return images.astype(np.uint8)


def write(path: Path, grades: bool) -> Path:
    """Training and test images; a grade is how many quarters are lit."""
    rng, arrays = np.random.default_rng(5), {}
    for part, count in (("train", 160), ("val", 8), ("test", 60)):
        labels = (rng.random((count, 4)) < 0.5).astype(np.uint8)
        arrays[f"{part}_images"] = lit(labels, rng)
        arrays[f"{part}_labels"] = labels.sum(1, keepdims=True) if grades else labels
    np.savez(path, **arrays)
    return path


def program(home: Path, task: str, grades: bool, **data: Any) -> Path:
    name = "grades.npz" if grades else "several.npz"
    if not (home / name).exists():
        write(home / name, grades)
    return write_config(
        home,
        task,
        data={"name": "medmnist", "path": name, **data},
        split={"name": "iid", "sites": 3},
        task={"name": task},
        model={"name": "small_cnn", "width": 8, "blocks": 1},
        train={"epochs": 2, "lr": 0.1},
        rounds={"rounds": 4},
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("medical")


def test_several_labels(home: Path) -> None:
    run = home / "run"
    config = program(home, "multilabel", False, classes=list(LABELS))
    done("run", config, "--workers", "1", "--out", run)
    final = read(run)
    assert final["score"] == final["auc"] > 0.7
    evaluation = read(run, "evaluation.json")
    assert [line.split(" (")[0] for line in evaluation["curves"][0]["lines"]] == list(LABELS)
    table = evaluation["tables"][0]
    assert [row[0] for row in table["rows"]] == list(LABELS)
    assert np.mean([row[2] for row in table["rows"]]) == pytest.approx(final["auc"])
    page = (run / "report.html").read_text()
    assert "Mean AUC" in page
    assert "ROC by label" in page
    image = home / "lit.png"
    Image.fromarray(lit(np.array([[1, 0, 0, 1]]), np.random.default_rng(1))[0]).save(image)
    told = json.loads(done("predict", run, image, "--json").out)[0]
    assert set(told["probabilities"]) == set(LABELS)
    assert told["label"] == (", ".join(told["labels"]) or "none")


def test_grades(home: Path) -> None:
    run = home / "graded"
    done("run", program(home, "ordinal", True), "--workers", "1", "--out", run)
    final = read(run)
    assert final["score"] == final["kappa"] > 0.3
    assert final["mae"] < 1.2
    evaluation = read(run, "evaluation.json")
    assert np.array(evaluation["confusion"]).shape == (5, 5)
    assert "Quadratic weighted kappa" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("task", "grades", "cause"),
    [
        ("classify", False, "learns one label per image, but the data come with other targets"),
        ("ordinal", False, "learns one label per image, but the data come with other targets"),
        ("multilabel", True, "do not give 0 or 1 for every label"),
    ],
)
def test_a_task_that_does_not_suit_the_data_is_refused(
    home: Path, task: str, grades: bool, cause: str
) -> None:
    path = program(home, task, grades)
    assert cause in refused(2, "run", path, "--out", home / "none")
