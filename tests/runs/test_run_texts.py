"""Texts go through the same engine, and into the same report, as images."""

from __future__ import annotations

import json
from pathlib import Path

from fedsight.coordinator.store import RunStore
from fedsight.program import config
from fedsight.report.page import build
from fedsight.runs import lifecycle


def test_sites_learn_from_texts_and_the_report_shows_words(tmp_path: Path) -> None:
    rows = ["text,label,site"]
    for i in range(60):
        label, word = [("sea", "ship"), ("land", "horse")][i % 2]
        rows.append(f"a {word} came by in year {i},{label},{'xyz'[i % 3]}")
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    table = {
        "data": {"name": "texts", "path": "a.csv", "length": 8},
        "split": {"name": "natural"},
        "model": {"name": "text_bag", "buckets": 64, "width": 8, "hidden": 8},
        "train": {"lr": 1.0, "epochs": 3, "batch": 8},
        "rounds": {"rounds": 3},
        "speed": {"workers": 1},
    }
    program, speed = config.parse(table, tmp_path)
    config.check(program, speed)
    store = RunStore(tmp_path / "run")
    summary = lifecycle.start(lifecycle.Start(program, speed, store, "run"), [])
    assert summary["accuracy"] == 1.0  # one word tells
    shown = json.loads((store.folder / "evaluation.json").read_text())["samples"]
    assert all(sample["image"] is None for sample in shown)
    assert "came by in year" in shown[0]["text"]
    assert "a.csv, line " in shown[0]["name"]
    build([store.folder])
    assert "ship came by in year" in (store.folder / "report.html").read_text()
