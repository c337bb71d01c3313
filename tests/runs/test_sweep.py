"""A sweep: each cell is the run that it would be alone, finished ones are never run again."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from command_line import (
    Launched,
    cli,
    done,
    figures,
    history,
    lines,
    read,
    refused,
    write_config,
    write_images,
    written,
)
from PIL import Image

import fedsight as fs
from fedsight.coordinator.folders import claimed
from fedsight.core.errors import ConfigError, StoreError
from fedsight.program.config import example
from fedsight.program.program import Speed
from fedsight.runs.sweeps.jobs import Share
from fedsight.runs.sweeps.plan import Cell

GRID = ("--set", "algorithm.name=fedavg,fedavgm", "--set", "train.lr=0.05", "--seeds", "0-1")
PLACES = ["fedavg/seed-0", "fedavg/seed-1", "fedavgm/seed-0", "fedavgm/seed-1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_config(folder)
    return folder


@pytest.fixture(scope="module")
def swept(home: Path) -> Path:
    """The folder of a finished sweep of two configurations with two seeds."""
    done("sweep", home / "tiny.toml", *GRID, "--jobs", 2, "--out", home / "swept")
    return home / "swept"


def unnamed(run: Path) -> dict[str, Any]:
    """The summary without the name, which a sweep gives to its runs."""
    return {key: value for key, value in figures(run).items() if key != "name"}


def equal(one: Path, other: Path) -> None:
    """Assert that two runs are the same training, bit for bit."""
    assert history(one) == history(other)
    assert unnamed(one) == unnamed(other)
    assert read(one, "evaluation.json") == read(other, "evaluation.json")


def test_a_cell_is_the_run_that_its_settings_give_alone(swept: Path, home: Path) -> None:
    single = home / "single"
    words = ("--set", "algorithm.name=fedavgm", "--set", "train.lr=0.05", "--seed", 1)
    done("run", home / "tiny.toml", *words, "--workers", 2, "--out", single)
    equal(swept / "fedavgm" / "seed-1", single)
    assert unnamed(swept / "fedavg" / "seed-1") != unnamed(single)


def test_it_says_figures_costs_and_paired_differences(swept: Path) -> None:
    found = read(swept, "sweep.json")
    assert [cell["run"] for cell in found["cells"]] == PLACES
    assert (found["finished"], found["failed"]) == (4, [])
    scores = {place: read(swept / place)["score"] for place in PLACES}
    one, other = found["configurations"]
    assert one["label"] == "fedavg"
    assert one["settings"] == {"algorithm.name": "fedavg"}
    assert one["figure"]["values"] == [scores["fedavg/seed-0"], scores["fedavg/seed-1"]]
    assert one["bytes_up"] == read(swept / "fedavg" / "seed-0")["bytes_up"]
    seconds = [read(swept / "fedavg" / f"seed-{seed}")["seconds"] for seed in (0, 1)]
    assert one["seconds"] == pytest.approx(sum(seconds) / 2)
    (pair,) = found["differences"]
    means = [sum(arm["figure"]["values"]) / 2 for arm in (one, other)]
    assert pair["mean"] == pytest.approx(means[0] - means[1])
    assert found["best"] == ("fedavg" if means[0] >= means[1] else "fedavgm")
    assert not list(swept.rglob(".*"))


def test_the_table_is_shown_again_and_json_is_what_the_file_says(swept: Path, home: Path) -> None:
    before = written(swept)
    said = done("resume", swept)
    mean = read(swept, "sweep.json")["configurations"][0]["figure"]["mean"]
    assert f"{mean:.2%}" in said.out
    assert "Figure: accuracy" in said.out
    assert "paired t test" in said.out
    words = ("sweep", home / "tiny.toml", *GRID, "--out", swept)
    again = done(*words, "--json")
    assert json.loads(again.out) == read(swept, "sweep.json")
    assert "4 finished before" in again.err
    assert written(swept) == before  # no cell was run again


def test_the_report_groups_seeds_and_names_configurations(home: Path, swept: Path) -> None:
    from fedsight.report import page

    page.build([swept / place for place in PLACES], home / "page.html", "en")
    text = (home / "page.html").read_text()
    assert "2 programs, 4 runs" in text
    assert text.count("2 seeds: 0, 1") == 2
    assert ">fedavgm</a>" in text
    assert "algorithm.name" in text
    assert "speed.workers" not in text.split('id="differences"')[1].split("</section>")[0]


def test_more_values_and_seeds_continue_a_sweep(home: Path, swept: Path) -> None:
    folder = home / "grown"
    shutil.copytree(swept, folder)
    before = written(folder)
    words = ("sweep", home / "tiny.toml", "--set", "algorithm.name=fedexp,fedavg,fedavgm")
    done(*words, "--set", "train.lr=0.05", "--seeds", 2, "--out", folder)
    after = written(folder)
    assert {name: after[name] for name in before} == before
    assert len(read(folder, "sweep.json")["configurations"]) == 3
    assert (folder / "fedexp" / "seed-1" / "summary.json").is_file()


def test_a_changed_sweep_is_refused_by_what_has_changed(home: Path, swept: Path) -> None:
    before = written(swept)
    words = ("sweep", home / "tiny.toml", "--out", swept)
    said = refused(7, *words, *GRID, "--set", "train.epochs=2")
    assert "train.epochs was 1 and is now 2" in said
    said = refused(7, *words, *GRID, "--set", "speed.threads=2")  # it changes the rounding
    assert "speed.threads was 1 and is now 2" in said
    said = refused(7, *words, "--set", "algorithm.name=fedavg,fedexp", "--seeds", "0-1")
    assert "'fedavgm/seed-0', which this one lacks" in said
    assert "'fedavg/seed-1'" in refused(7, *words, *GRID[:4], "--seeds", "0,2")
    assert written(swept) == before
    assert "not empty and not a sweep" in refused(7, *words[:2], *GRID, "--out", swept / "fedavg")
    assert "is a sweep, not a run" in refused(2, "resume", swept, "--rounds", 9)
    assert "--log" in refused(2, "resume", swept, "--log", "mlflow")


def test_force_replaces_a_sweep_and_nothing_beside_it(home: Path, swept: Path) -> None:
    folder = home / "forced"
    shutil.copytree(swept, folder)
    (folder / "fedavg" / "notes.txt").write_text("mine")
    words = ("--set", "train.lr=0.05,0.1", "--seeds", "5-6", "--force")
    done("sweep", home / "tiny.toml", *words, "--out", folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "fedavg", "lr=0.05", "lr=0.1", "report.html", "sweep.json",
    ]  # fmt: skip
    assert [path.name for path in (folder / "fedavg").iterdir()] == ["notes.txt"]


def test_two_sweeps_at_once_are_refused(home: Path, swept: Path) -> None:
    words = ("sweep", home / "tiny.toml", *GRID, "--out", swept)
    with claimed(swept):
        assert "another process is at work" in refused(7, *words)


def test_a_killed_sweep_goes_on_from_its_checkpoints(home: Path) -> None:
    """Killed while two cells train: they resume, finished ones are left alone, same bits."""
    words = (
        "sweep",
        home / "tiny.toml",
        "--set",
        "algorithm.name=fedavg,fedavgm",
        "--seeds",
        "0-1",
    )
    words = (*words, "--set", "rounds.rounds=40", "--jobs", 2)
    done(*words, "--out", home / "whole")
    folder = home / "killed"
    launched = Launched(home, *words, "--out", folder)
    late = [folder / place for place in PLACES[2:]]
    launched.wait_until(lambda: min(map(lines, late)) > 2, "both cells of fedavgm")
    launched.kill()
    before = {name: at for name, at in written(folder).items() if name.startswith("fedavg/")}
    assert not any((run / "summary.json").exists() for run in late)
    said = done("resume", folder)  # waits for the cells, which notice that they are alone
    assert "fedavgm, seed 1: resumed after round" in said.err
    after = written(folder)
    assert {name: after[name] for name in before} == before
    for place in PLACES:
        equal(folder / place, home / "whole" / place)


def test_ctrl_c_ends_all_cells_and_the_same_call_goes_on(home: Path) -> None:
    config, folder = home / "tiny.toml", home / "stopped"
    grid = ("--set", "train.lr=0.05,0.1", "--set", "rounds.rounds=60", "--jobs", 2)
    launched = Launched(home, "sweep", config, *grid, "--out", folder)
    runs = [folder / f"lr={lr}" / "seed-0" for lr in ("0.05", "0.1")]
    launched.wait_until(lambda: min(map(lines, runs)) > 1, "both runs")
    assert launched.kill(how=signal.SIGINT) == 130
    said = launched.said.read_text()
    assert "0 of 2 runs are finished" in said
    assert f"continue with: fedsight resume {folder}" in said
    assert "Traceback" not in said
    for run in runs:  # the cells have ended: nobody holds their folders
        with claimed(run):
            assert (run / "checkpoint.safetensors").is_file()
    trained = [lines(run) for run in runs]
    assert max(trained) < 60
    found = fs.sweep(config, {"train.lr": [0.05, 0.1]}, rounds=60, out=folder)
    assert [len(run.history) for run in found.runs.values()] == [60, 60]


def test_a_failed_cell_is_counted_and_stops_no_other(home: Path) -> None:
    """At a learning rate of 1e20 no site has an update that counts, so the run fails."""
    folder = home / "failing"
    words = ("sweep", home / "tiny.toml", "--set", "train.lr=1e20,0.05,0.1", "--out", folder)
    answer = cli(*words)
    assert answer.code == 1
    assert "1 of 3 runs failed: lr=1e+20/seed-0" in answer.err
    assert answer.err.count("Error:") == 1
    assert "lr=1e+20, seed 0 failed" in answer.err
    found = read(folder, "sweep.json")
    assert found["finished"] == 2
    (failed,) = found["failed"]
    assert failed["run"] == "lr=1e+20/seed-0"
    assert failed["cause"]
    by_label = {one["label"]: one["figure"] for one in found["configurations"]}
    assert by_label["lr=1e+20"] is None
    assert by_label["lr=0.05"]["mean"] > 0
    before = {name: at for name, at in written(folder).items() if "1e+20" not in name}
    again = cli(*words, "--json")
    assert again.code == 1
    assert [one["run"] for one in json.loads(again.out)["failed"]] == [failed["run"]]
    assert {name: at for name, at in written(folder).items() if "1e+20" not in name} == before


def test_a_cell_whose_process_is_killed_is_a_failed_one(home: Path, tmp_path: Path) -> None:
    """The other one finishes, and the killed one resumes by the next call."""
    (tmp_path / "mortal.py").write_text(
        "import os, pathlib, signal\n"
        "import fedsight as fs\n"
        "from fedsight.algorithms.fedavg import FedAvg\n"
        "@fs.register('mortal')\n"
        "class Mortal(FedAvg):\n"
        "    dies: bool = False\n"
        "    def step(self, vector, state, mean, round):\n"
        f"        mark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
        "        if self.dies and round == 2 and not mark.exists():\n"
        "            mark.touch()\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().step(vector, state, mean, round)\n"
    )
    words = ("sweep", home / "tiny.toml", "--plugin", tmp_path / "mortal.py", "--jobs", 2)
    words = (*words, "--set", "algorithm.name=mortal", "--set", "algorithm.dies=true,false")
    folder = tmp_path / "out"
    answer = cli(*words, "--out", folder)
    assert answer.code == 1
    assert "killed by signal 9" in answer.err
    assert (folder / "dies=false" / "seed-0" / "summary.json").is_file()
    assert lines(folder / "dies=true" / "seed-0") == 1
    done(*words, "--out", folder)
    assert read(folder, "sweep.json")["failed"] == []


def test_a_figure_that_is_not_a_number_is_a_failed_cell(tmp_path: Path) -> None:
    """No pixel of a test image has a label; the run is finished, and is never run again."""
    rows = ["path,mask,split"]
    for number in range(8):
        tested = number > 5
        Image.new("L", (16, 16), 30 * number).save(tmp_path / f"i{number}.png")
        Image.new("L", (16, 16), 255 if tested else number % 2).save(tmp_path / f"m{number}.png")
        rows.append(f"i{number}.png,m{number}.png,{'test' if tested else 'train'}")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    data = {"name": "masks", "path": "m.csv", "channels": 1, "classes": ["a", "b"], "size": 16}
    table = {
        "data": {**data, "missing": "allow", "ignored": [255]},
        "split": {"name": "iid", "sites": 2},
        "model": {"name": "unet", "width": 4},
        "task": {"name": "segment"},
        "train": {"batch": 4},
        "rounds": {"rounds": 1},
    }
    (tmp_path / "masks.toml").write_text(tomli_w.dumps(table))
    words = ("sweep", tmp_path / "masks.toml", "--seeds", "0-1", "--out", tmp_path / "out")
    answer = cli(*words)
    assert answer.code == 1
    assert "2 of 2 runs failed: seed-0, seed-1" in answer.err
    assert "is not a number" in answer.out
    found = read(tmp_path / "out", "sweep.json")
    assert found["configurations"][0]["figure"] is None
    assert (found["best"], found["differences"], found["finished"]) == (None, [], 2)
    before = written(tmp_path / "out")
    assert cli(*words).code == 1
    assert written(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("jobs", "threads", "wanted"),
    [(1, 1, 8), (2, 1, 4), (3, 1, 2), (2, 2, 2), (8, 1, 1), (9, 2, 1)],
)
def test_a_run_has_its_share_of_the_cores(jobs: int, threads: int, wanted: int) -> None:
    program, _ = example("fashion")
    cell = Cell("", {}, "seed-0", program, Speed(threads=threads, device="cpu"))
    assert Share(jobs, 8).speed(cell).workers == wanted
    own = replace(cell, speed=Speed(workers=3, device="cpu"))
    assert Share(jobs, 8).speed(own).workers == 3


def test_every_problem_of_every_cell_is_told_before_anything_is_written(home: Path) -> None:
    folder = home / "refused"
    words = ("sweep", home / "tiny.toml", "--out", folder)
    said = refused(
        2, *words, "--set", "algorithm.name=fedavg,scafold", "--set", "trian.lr=0.1,0.2",
        "--set", "train.batch=4,x",
    )  # fmt: skip
    assert "did you mean 'scaffold'?" in said
    assert "did you mean 'train'?" in said
    assert "in 4 of 8 configurations" in said
    assert "'x' does not fit" in said
    said = refused(2, *words, "--set", "train.lr=0.1,,", "--seeds", "3-1")
    assert "an empty value" in said
    assert "write 1-3" in said
    both = ("--set", "algorithm.name=scaffold,scafold", "--set", "train.momentum=0.9")
    said = refused(2, *words, *both, "--seeds", 1)
    assert "did you mean 'scaffold'?" in said
    assert "plain local SGD" in said
    assert "cannot show a spread" in said
    # What only `check` sees, and what only the data show.
    said = refused(
        2, *words, "--set", "algorithm.name=fedavg,scaffold", "--set", "train.momentum=0.9"
    )
    assert "in 1 of 2 configurations of the grid: scaffold" in said
    said = refused(2, *words, "--set", "split.sites=3,500,600", "--seeds", "0-1")
    assert "500 sites" in said
    assert "600 sites" in said
    assert "single run" in refused(2, *words, "--set", "train.lr=0.1")
    assert "single run" in refused(2, *words)
    assert "cannot show a spread" in refused(2, *words, "--seeds", "1")
    assert "neither a seed nor a range" in refused(2, *words, "--seeds", "0-")
    assert "given twice" in refused(2, *words, "--set", "seed=3", "--seeds", "0-1")
    assert "same program" in refused(
        2, *words, "--set", "train.lr=0.05,0.1", "--set", "train={},{lr=0.1}"
    )
    assert "an empty value" in refused(2, *words, "--set", "train.lr=")
    fixed = ("--set", "split.seed=0", "--set", "model.seed=0", "--set", "train.seed=0")
    assert "the same with every seed" in refused(2, *words, *fixed, "--seeds", "0-1")
    assert not folder.exists()


def test_data_that_cannot_be_opened_are_the_error_that_run_has(home: Path) -> None:
    config = write_config(home, "broken", data={"name": "idx", "path": "nowhere"})
    code = cli("run", config, "--out", home / "broken").code
    refused(code, "sweep", config, *GRID, "--out", home / "broken")
    assert not (home / "broken").exists()


def test_cells_that_saw_other_images_are_refused(tmp_path: Path) -> None:
    config, folder = write_config(tmp_path), tmp_path / "out"
    words = ("sweep", config, "--set", "train.lr=0.05,0.1", "--out", folder)
    done(*words)
    shutil.rmtree(tmp_path / "images")
    write_images(tmp_path / "images", train=160)
    assert "the data have changed" in refused(7, *words, "--seeds", "0-1")
    assert "differences" not in read(folder, "sweep.json")


def test_a_run_that_was_extended_is_no_cell_any_more(home: Path, swept: Path) -> None:
    folder = home / "extended"
    shutil.copytree(swept, folder)
    done("resume", folder / "fedavg" / "seed-0", "--rounds", 3, "--workers", 1)
    words = ("sweep", home / "tiny.toml", *GRID, "--out", folder)
    said = refused(7, *words)
    assert "fedavg/seed-0 is not of the program that belongs there" in said


def test_a_plan_reaches_no_folder_but_its_own(home: Path, swept: Path) -> None:
    folder = home / "reaching"
    shutil.copytree(swept, folder)
    plan = read(folder, "sweep.json")
    plan["cells"][0]["run"] = "../swept/fedavg/seed-0"
    (folder / "sweep.json").write_text(json.dumps(plan))
    words = ("sweep", home / "tiny.toml", *GRID, "--out", folder, "--force")
    assert "is not in the sweep's folder" in refused(7, *words)
    assert (swept / "fedavg" / "seed-0" / "summary.json").is_file()


def test_a_broken_plan_is_named(tmp_path: Path) -> None:
    config, folder = write_config(tmp_path), tmp_path / "out"
    words = ("sweep", config, "--set", "train.lr=0.05,0.1", "--out", folder)
    done(*words)
    whole = read(folder, "sweep.json")
    whole["cells"][0]["fingerprint"] = "0" * 64
    (folder / "sweep.json").write_text(json.dumps(whole))
    assert "is not the one that was started" in refused(7, *words)
    (folder / "sweep.json").write_text("{}")
    assert "sweep.json is broken" in refused(7, *words)
    (folder / "sweep.json").write_text("no JSON")
    assert "sweep.json" in refused(7, "resume", folder)


@pytest.mark.processes
def test_from_python_with_parts_and_objects_of_ones_own(home: Path) -> None:
    import torch

    class Small(torch.nn.Module):
        def __init__(self, channels: int, height: int, width: int, classes: int) -> None:
            super().__init__()
            self.flat, self.head = torch.nn.Flatten(), torch.nn.Linear(height * width, classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.flat(x))

    grid = {"model": ["small_cnn", Small], "algorithm": [{"name": "fedprox", "mu": 0.1}]}
    found = fs.sweep(home / "tiny.toml", grid, seeds=2, out=home / "python", train={"lr": 0.1})
    assert [one["label"] for one in found.configurations] == ["small_cnn", "Small"]
    assert set(found.runs) == {(name, seed) for name in ("small_cnn", "Small") for seed in (0, 1)}
    assert found.failed == []
    assert "2 configurations, 4 of 4 runs" in repr(found)
    assert fs.Sweep(home / "python").best == found.best
    run = found.runs["Small", 1]
    assert run.summary["score"] == found.configurations[1]["figure"]["values"][1]
    assert isinstance(run.model, torch.nn.Module)
    before = written(home / "python")
    again = fs.sweep(home / "tiny.toml", grid, seeds=2, out=home / "python", train={"lr": 0.1})
    assert again.configurations == found.configurations
    assert written(home / "python") == before
    with pytest.raises(StoreError, match=r"train\.lr was 0\.1 and is now 0\.05"):
        fs.sweep(home / "tiny.toml", grid, seeds=2, out=home / "python")
    with pytest.raises(ConfigError, match="expected a list of values"):
        fs.sweep(home / "tiny.toml", {"train.lr": 0.1})
    with pytest.raises(ConfigError, match="neither a seed"):
        fs.sweep(home / "tiny.toml", {"train.lr": [0.1]}, seeds="0-")
    for seeds in ([], [0.5], [1, 1], 1):
        with pytest.raises(ConfigError, match="--seeds"):
            fs.sweep(home / "tiny.toml", {"train.lr": [0.1]}, seeds=seeds)
    with pytest.raises(ConfigError, match="expected a number of runs from 1"):
        fs.sweep(home / "tiny.toml", {"train.lr": [0.1, 0.2]}, jobs=0, out=home / "none")
    with pytest.raises(StoreError, match=r"sweep\.json"):
        fs.Sweep(home)
