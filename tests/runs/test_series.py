"""A series of seeds: each a run of its own, finished ones never repeated or overwritten."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from command_line import (
    Launched,
    cli,
    done,
    figures,
    read,
    refused,
    same,
    write_config,
    written,
)

import fedsight as fs
from fedsight.core.errors import StoreError

FIXED = {"model": {"seed": 0}, "train": {"seed": 0}}  # only the split follows the program's seed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    write_config(folder)
    return folder


@pytest.fixture(scope="module")
def series(home: Path) -> Path:
    """The folder of a finished series of two comparisons."""
    done("compare", home / "tiny.toml", "--workers", 1, "--seeds", 2, "--out", home / "series")
    return home / "series"


def test_each_seed_is_the_run_that_its_seed_alone_gives(series: Path, home: Path) -> None:
    config = home / "tiny.toml"
    done("compare", config, "--workers", 1, "--seed", 1, "--out", home / "single")
    same(series / "seed-1", home / "single")
    assert figures(series / "seed-0") != figures(series / "seed-1")


def test_the_series_says_mean_spread_and_paired_differences(series: Path) -> None:
    found = read(series, "series.json")
    runs = [read(series / f"seed-{seed}") for seed in (0, 1)]
    assert (found["seeds"], found["runs"]) == ([0, 1], ["seed-0", "seed-1"])
    federated = found["figures"]["federated"]
    assert federated["values"] == [run["score"] for run in runs]
    assert federated["low"] <= federated["mean"] <= federated["high"]
    gains = [run["score"] - run["alone_mean"] for run in runs]
    assert found["differences"]["federated_minus_alone"]["values"] == pytest.approx(gains)
    assert found["sites"] is None  # every seed has another split
    assert (series / "report.html").is_file()
    assert not list(series.glob(".*"))


def test_it_is_shown_on_the_screen(series: Path) -> None:
    said = done("resume", series).out
    assert "2 seeds (0 to 1), accuracy" in said
    mean = read(series, "series.json")["figures"]["federated"]["mean"]
    assert f"{mean:.2%}" in said
    assert "federated - alone" in said
    assert "95 % interval" in said


def test_a_finished_series_is_not_repeated_or_overwritten(series: Path, home: Path) -> None:
    before = written(series)
    done("resume", series)
    words = ("compare", home / "tiny.toml", "--workers", 1, "--seeds", 2, "--out", series)
    assert "finished" in refused(7, *words)
    assert "another program" in refused(7, *words, "--set", "train.lr=0.1")
    assert "holds a series of 2 seeds" not in refused(7, *words)
    assert written(series) == before


def test_more_seeds_continue_a_series_and_fewer_are_refused(series: Path, home: Path) -> None:
    folder = home / "longer"
    shutil.copytree(series, folder)
    before = written(folder)
    words = ("compare", home / "tiny.toml", "--workers", 1, "--out", folder, "--seeds")
    done(*words, 3)
    after = written(folder)
    assert {name: after[name] for name in before} == before
    assert len(read(folder, "series.json")["figures"]["federated"]["values"]) == 3
    assert "holds a series of 3 seeds" in refused(7, *words, 2)


def test_force_replaces_a_series_and_nothing_beside_it(series: Path, home: Path) -> None:
    folder = home / "forced"
    shutil.copytree(series, folder)
    (folder / "seed-7").mkdir()
    (folder / "seed-7" / "notes.txt").write_text("mine")
    words = ("run", home / "tiny.toml", "--workers", 1, "--seeds", 2, "--seed", 5, "--force")
    done(*words, "--out", folder)
    assert sorted(path.name for path in folder.glob("seed-*")) == ["seed-5", "seed-6", "seed-7"]
    assert (folder / "seed-7" / "notes.txt").read_text() == "mine"
    assert read(folder, "series.json")["command"] == "run"
    assert "alone" not in read(folder, "series.json")["figures"]


def test_a_killed_series_goes_on_where_it_was(series: Path, home: Path) -> None:
    """Killed in its second seed; the first is not touched again, and the bits are the same."""
    folder = home / "killed"
    words = ("compare", home / "tiny.toml", "--workers", 1, "--seeds", 2, "--out", folder)
    launched = Launched(home, *words)
    begun = folder / "seed-1" / "history.jsonl"
    launched.wait_until(lambda: begun.is_file() and begun.stat().st_size > 0, "the second seed")
    launched.kill()
    assert not (folder / "seed-1" / "summary.json").exists()
    before = {name: at for name, at in written(folder).items() if name.startswith("seed-0")}
    done("resume", folder)
    after = written(folder)
    assert {name: after[name] for name in before} == before
    for seed in ("seed-0", "seed-1"):
        same(folder / seed, series / seed)
    assert read(folder, "series.json") == read(series, "series.json")


def test_ctrl_c_says_how_to_go_on_and_so_does_the_same_call(home: Path) -> None:
    config, folder = home / "tiny.toml", home / "stopped"
    words = ("--workers", 1, "--set", "rounds.rounds=30", "--seeds", 2, "--out", folder)
    launched = Launched(home, "run", config, *words)
    begun = folder / "seed-1" / "history.jsonl"
    launched.wait_until(lambda: begun.is_file() and begun.stat().st_size > 0, "the second seed")
    assert launched.kill(how=signal.SIGINT) == 130
    said = launched.said.read_text()
    assert "1 of 2 seeds are finished" in said
    assert f"continue with: fedsight resume {folder}" in said
    before = {name: at for name, at in written(folder).items() if name.startswith("seed-0")}
    found = fs.run(config, workers=1, seeds=2, out=folder, rounds=30)
    after = written(folder)
    assert {name: after[name] for name in before} == before
    assert len(found.runs[1].history) == 30


def test_pooled_training_that_depends_on_no_seed_is_done_once(home: Path) -> None:
    config = write_config(home, "fixed", **FIXED)
    folder = home / "once"
    said = done("compare", config, "--workers", 1, "--seeds", 2, "--out", folder)
    first, second = (read(folder / f"seed-{seed}", "comparison.json") for seed in (0, 1))
    assert "shared" not in first["pooled"]
    assert second["pooled"]["shared"]
    assert first["alone"] != second["alone"]
    found = read(folder, "series.json")["figures"]["pooled"]
    assert (found["deviation"], found["low"]) == (None, None)
    assert "trained once" in said.out
    # The same figures as where it is trained again.
    done("compare", config, "--workers", 1, "--seed", 1, "--out", home / "again")
    again = read(home / "again", "comparison.json")["pooled"]
    assert {**again, "shared": True} == second["pooled"]


def test_sites_are_shown_where_the_split_is_held(home: Path) -> None:
    config = write_config(home, "held", split={"seed": 4})
    done("compare", config, "--workers", 1, "--seeds", 2, "--out", home / "held")
    sites = read(home / "held", "series.json")["sites"]
    assert set(sites) == {"site-00", "site-01", "site-02"}
    assert len(sites["site-00"]["federated_minus_alone"]["values"]) == 2


def test_what_cannot_be_repeated_is_refused_before_anything_is_written(home: Path) -> None:
    config = write_config(home, "still", split={"seed": 0}, **FIXED)
    folder = home / "refused"
    words = ("--workers", 1, "--out", folder, "--seeds")
    assert "cannot show a spread" in refused(2, "compare", home / "tiny.toml", *words, 1)
    assert "the same with every seed" in refused(2, "compare", config, *words, 2)
    broken = write_config(home, "broken", data={"name": "idx", "path": "nowhere"})
    refused(2, "compare", broken, *words, 2)
    crowded = write_config(home, "crowded", split={"name": "iid", "sites": 500})
    refused(cli("run", crowded, "--out", folder).code, "run", crowded, *words, 2)
    assert not folder.exists()


def test_other_folders_are_left_alone(series: Path, home: Path) -> None:
    config = home / "tiny.toml"
    assert "not a series" in refused(7, "run", config, "--seeds", 2, "--out", series / "seed-0")
    single = refused(7, "run", config, "--out", series)
    assert "not empty and not a run" in single
    assert "a series of seeds, not a run" in refused(2, "resume", series, "--rounds", 9)
    with pytest.raises(StoreError, match="a series of seeds, not a run"):
        fs.resume(series)


def test_a_foreign_run_among_the_seeds_is_refused(series: Path, home: Path) -> None:
    folder = home / "foreign"
    shutil.copytree(series, folder)
    facts = read(folder / "seed-1", "run.json")
    (folder / "seed-1" / "run.json").write_text(json.dumps({**facts, "fingerprint": "0" * 64}))
    (folder / "series.json").write_text(
        json.dumps({k: v for k, v in read(folder, "series.json").items() if k != "figures"})
    )
    assert "is not of the program that belongs there" in refused(7, "resume", folder)


def test_seeds_that_saw_other_images_are_refused(tmp_path: Path) -> None:
    config, folder = write_config(tmp_path), tmp_path / "out"
    done("run", config, "--workers", 1, "--seeds", 2, "--out", folder)
    labels = tmp_path / "images" / "train-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[8] = (content[8] + 1) % 4
    labels.write_bytes(bytes(content))
    said = refused(7, "run", config, "--workers", 1, "--seeds", 3, "--out", folder)
    assert "the data have changed" in said
    assert "figures" not in read(folder, "series.json")


def test_from_python(home: Path) -> None:
    found = fs.run(home / "tiny.toml", workers=1, seeds=2, out=home / "python", train={"lr": 0.1})
    assert [run.summary["score"] for run in found.runs] == found.figures["federated"]["values"]
    assert found.seeds == (0, 1)
    assert found.differences == {}
    assert found.sites is None
    assert "2 seeds, Accuracy" in repr(found)
    assert fs.Series(os.fspath(home / "python")).figures == found.figures
    with pytest.raises(StoreError, match=r"series\.json"):
        fs.Series(home / "python" / "seed-0")
