"""Parts at the command line: `check` and `run` say them; what is not measured is no figure."""

from __future__ import annotations

import json
from pathlib import Path

import tomli_w
from command_line import cli, done
from PIL import Image

import fedsight as fs


def write_config(folder: Path, **data: object) -> Path:
    masks = data.get("name") == "masks"
    table = {
        "data": {"size": 16, **data},
        "split": {"name": "iid", "sites": 2},
        "model": {"name": "unet", "width": 4} if masks else {"name": "mlp"},
        "task": {"name": "segment" if masks else "classify"},
        "train": {"batch": 4},
        "rounds": {"rounds": 1},
        "speed": {"workers": 1},
    }
    path = folder / "parts.toml"
    path.write_text(tomli_w.dumps(table))
    return path


def test_check_and_run_say_which_part_is_which(tmp_path: Path) -> None:
    for part, count in (("Train", 4), ("Valid", 3), ("Test", 2)):
        for label in ("cat", "dog"):
            (tmp_path / "pets" / part / label).mkdir(parents=True)
            for number in range(count):
                image = Image.new("L", (16, 16), 30 * number)
                image.save(tmp_path / "pets" / part / label / f"{number}.png")
    path = write_config(tmp_path, name="folder", path="pets", channels=1)
    counts = "8 training images, 6 validation images and 4 test images"
    note = "folders of parts: 'Test' (test), 'Train' (training), 'Valid' (validation)"
    answer = done("check", path)
    assert counts in answer.out
    assert note in answer.out
    answer = done("run", path, "--out", tmp_path / "run")
    assert answer.err.count(counts) == answer.err.count(note) == 1
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert [facts[part] for part in ("train", "validation", "test")] == [8, 6, 4]
    assert note in facts["notes"]


def test_a_final_figure_that_is_not_a_number_is_an_error(tmp_path: Path) -> None:
    rows = ["path,mask,split"]
    for number in range(8):
        Image.new("L", (16, 16), 30 * number).save(tmp_path / f"i{number}.png")
        ignored = number > 5  # 255: no pixel of a test image has a label
        Image.new("L", (16, 16), 255 if ignored else number % 2).save(tmp_path / f"m{number}.png")
        rows.append(f"i{number}.png,m{number}.png,{'test' if ignored else 'train'}")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    path = write_config(
        tmp_path,
        name="masks",
        path="m.csv",
        channels=1,
        classes=["a", "b"],
        missing="allow",
        ignored=[255],
    )
    answer = cli("run", path, "--out", tmp_path / "run")
    assert answer.code == 3
    assert "its final figure (Mean Dice) is not a number" in answer.err
    assert "label test images" in answer.err
    assert "nan" not in answer.out
    for name in ("model.safetensors", "summary.json", "history.jsonl", "report.html"):
        assert (tmp_path / "run" / name).is_file()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["score"] is None
    assert cli("resume", tmp_path / "run").code == 3
    assert fs.load(tmp_path / "run").summary["unmeasured"]
