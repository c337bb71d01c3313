"""A run's folder: the fixed names, and the same bits whatever the number of workers."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federations
import pytest
import torch
from command_line import done, figures, history, read, refused, same, write_config, write_images
from safetensors.torch import load_file

from fedsight.coordinator.callbacks import Callback, Event, RoundEnded, RunBegan, RunEnded
from fedsight.coordinator.folders import claimed
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import Checkpoint, RunStore
from fedsight.core.errors import StoreError
from fedsight.engines.in_process import InProcessEngine
from fedsight.evaluation import conclusion
from fedsight.evaluation.conclusion import Conclusion
from fedsight.evaluation.description import describe
from fedsight.inference import saved
from fedsight.program.config import load
from fedsight.program.federation import federate
from fedsight.program.program import Program, Speed
from fedsight.report.page import build
from fedsight.runs import lifecycle
from fedsight.runs.extension import Extension


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("session")


@pytest.fixture(scope="module")
def compared(home: Path) -> Path:
    """The run folder of a comparison."""
    done("compare", write_config(home), "--workers", "2", "--out", home / "compared")
    return home / "compared"


def check_folder(run: Path, rounds: int) -> dict[str, Any]:
    """The names that scripts rely on."""
    summary = read(run)
    needed = {"score", "accuracy", "rounds", "seconds", "bytes_up", "bytes_down", "fingerprint"}
    assert needed <= set(summary)
    assert summary["rounds"] == rounds
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, rounds + 1))
    for key in ("seconds", "bytes_up", "bytes_down"):
        assert summary[key] == pytest.approx(sum(line[key] for line in lines))
    assert summary["accuracy"] == lines[-1]["accuracy"]
    model = (run / "model.safetensors").read_bytes()
    assert summary["model_sha256"] == hashlib.sha256(model).hexdigest()
    page = (run / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert not list(run.glob(".*"))
    return summary


def test_the_built_in_example(tmp_path: Path) -> None:
    run = tmp_path / "new" / "fashion"
    words = ("--example", "fashion", "--rounds", 1, "--workers", 1, "--seed", 3, "--out", run)
    changed = ("train.epochs=1", "train.batch=200", "rounds.validation=0")
    answer = done("run", *words, *(word for one in changed for word in ("--set", one)))
    summary = check_folder(run, 1)
    assert 0.1 < summary["accuracy"] < 1
    assert len(summary["by_site"]) == 10
    assert "alone_mean" not in summary
    facts = read(run, "run.json")
    assert facts["data"]["licence"] == "MIT"
    assert (facts["data"]["train"], facts["data"]["test"]) == (10000, 2000)
    assert "seed = 3" in (run / "run.toml").read_text()
    parameters = sum(value.numel() for value in load_file(run / "model.safetensors").values())
    assert facts["model"]["travelling"] == facts["model"]["parameters"] == parameters
    assert summary["bytes_up"] == 4 * 10 * parameters
    assert summary["bytes_down"] == 0, "sites build the first model themselves"
    assert "round 1/1 accuracy 0." in answer.err
    assert f"{summary['accuracy']:.2%} accuracy" in answer.out
    assert f"Report: {run}/report.html" in answer.out


def test_compare_adds_what_each_site_gets_alone(compared: Path) -> None:
    summary = check_folder(compared, 2)
    assert (
        set(summary["alone_by_site"])
        == set(summary["by_site"])
        == {*("site-00", "site-01", "site-02")}
    )
    mean = sum(summary["alone_by_site"].values()) / 3
    assert summary["alone_mean"] == pytest.approx(mean)
    assert summary["federated"] == summary["accuracy"]
    comparison = read(compared, "comparison.json")
    assert summary["pooled"] == comparison["pooled"]["accuracy"]
    assert set(comparison["pooled"]["by_site"]) == set(summary["by_site"])
    assert all(entry["own_score"] is not None for entry in comparison["alone"].values())
    assert "pooled" in done("report", compared).out + (compared / "report.html").read_text()


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "fedrep", "batchnorm"])
def test_one_worker_and_two_give_the_same_bits(home: Path, compared: Path, algorithm: str) -> None:
    if algorithm == "batchnorm":
        path = write_config(home, algorithm, model={"norm": "batch"})
    else:
        path = write_config(home, algorithm, algorithm={"name": algorithm})
    runs = [compared] if algorithm == "fedavg" else []
    for workers in (1, 2)[: 2 - len(runs)]:
        runs.append(home / f"{algorithm}-{workers}")
        done("run", path, "--workers", workers, "--out", runs[-1])
    assert history(runs[0]) == history(runs[1])
    assert len({read(run)["model_sha256"] for run in runs}) == 1
    assert read(runs[0])["by_site"] == read(runs[1])["by_site"]


def test_seeds_and_settings_change_the_model(home: Path, compared: Path) -> None:
    hashes = {read(compared)["model_sha256"]}
    for number, item in enumerate(("seed=1", "train.lr=0.06")):
        run = home / f"other-{number}"
        done("run", home / "tiny.toml", "--set", item, "--out", run, "--workers", 2)
        hashes.add(read(run)["model_sha256"])
    assert len(hashes) == 3


def test_resuming_what_is_finished_is_harmless(compared: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(compared, run)
    answer = done("resume", run, "--workers", 1)
    same(run, compared)
    assert read(run)["seconds"] == read(compared)["seconds"]
    assert "resumed after round 2" in answer.err
    (run / "summary.json").unlink()
    (run / "comparison.partial.json").unlink()
    done("resume", run)
    same(run, compared)


def test_from_another_folder_with_relative_paths(home: Path, monkeypatch, tmp_path: Path) -> None:
    write_config(home)
    monkeypatch.chdir(home.parent)
    done("run", f"{home.name}/tiny.toml", "--out", f"{home.name}/relative", "--workers", 2)
    monkeypatch.chdir(tmp_path)
    (home / "relative" / "checkpoint.safetensors").unlink()
    done("resume", home / "relative", "--workers", 2)
    done("report", home / "relative", "--out", "page.html")
    assert (tmp_path / "page.html").stat().st_size > 1000


def test_without_out_runs_get_folders_of_their_own(home: Path, monkeypatch, tmp_path: Path) -> None:
    path = write_config(home, rounds={"rounds": 1})
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        done("run", path, "--workers", 1)
    assert figures(Path("runs/tiny")) == figures(Path("runs/tiny-2"))


def test_check_says_what_there_is(home: Path) -> None:
    path = write_config(home)
    answer = done("check", path)
    assert "tiny is fine: 200 training images and 60 test images of 4 classes at 3" in answer.out
    assert not (home / "runs").exists()


def test_a_finished_run_is_replaced_only_by_force(home: Path, compared: Path) -> None:
    run = home / "again"
    shutil.copytree(compared, run)
    (run / ".history.jsonl.1.partial").write_text("torn")
    (run / "export.onnx").write_text("the user's")
    config = write_config(home)
    for words in ((), ("--seed", 9)):
        said = refused(7, "run", config, "--out", run, "--workers", 1, *words)
        assert "holds a run that is finished" in said
        assert "--force" in said
    assert read(run) == read(compared)
    assert (run / "comparison.json").read_bytes() == (compared / "comparison.json").read_bytes()
    done("run", config, "--out", run, "--workers", 1, "--force")
    assert not (run / "comparison.json").exists()
    assert not list(run.glob(".*"))
    assert (run / "export.onnx").exists()
    assert read(run)["model_sha256"] == read(compared)["model_sha256"]


# ---------------------------------------------------------------- what resume refuses


@pytest.fixture
def half(compared: Path, tmp_path: Path) -> Path:
    """A copy of the run whose images lie beside it."""
    folder = tmp_path / "half"
    config = write_config(folder)
    done("run", config, "--out", folder / "run", "--workers", 1, "--rounds", 1)
    return folder / "run"


def test_resume_refuses_another_program_or_other_images(half: Path) -> None:
    text = (half / "run.toml").read_text()
    (half / "run.toml").write_text(text.replace("lr = 0.05", "lr = 0.07"))
    assert "is not the program that this run started with" in refused(7, "resume", half)
    (half / "run.toml").write_text(text)
    write_images(half.parent / "images", train=120)
    said = refused(7, "resume", half)
    assert "training images and the training labels" in said
    write_images(half.parent / "images")
    done("resume", half)


@pytest.mark.parametrize(
    ("file", "said"),
    [("t10k-images-idx3", "the test images of"), ("train-labels", "the training labels of")],
)
def test_resume_refuses_a_replaced_picture_and_swapped_labels(
    half: Path, file: str, said: str
) -> None:
    [path] = (half.parent / "images").glob(f"{file}*")
    before = path.read_bytes()
    ends = before[-1:] + before[-2:-1]
    assert ends[0] != ends[1]
    path.write_bytes(before[:-2] + ends)  # the last two pixels, or the last two labels
    assert said in refused(7, "resume", half)
    path.write_bytes(before)
    done("resume", half)


# ---------------------------------------------------------------- longer than planned


def test_a_run_that_is_extended_ends_as_if_it_had_been_planned_so(
    home: Path, compared: Path, tmp_path: Path
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    shutil.copytree(compared, run)
    done("resume", run, "--rounds", 4, "--workers", 1)
    done("compare", write_config(home), "--rounds", 4, "--workers", 1, "--out", whole)
    same(run, whole)
    parent = read(run, "run.json")["parent"]
    assert parent["fingerprint"] == read(compared)["fingerprint"] != read(run)["fingerprint"]
    assert (parent["rounds"], parent["schedule"]) == (2, "continued")
    assert read(run)["fingerprint"] == read(whole)["fingerprint"]
    kept = run / "rounds-2"
    assert read(kept) == read(compared)
    assert (kept / "model.safetensors").read_bytes() == (
        compared / "model.safetensors"
    ).read_bytes()
    assert history(kept) == history(compared)
    done("resume", run, "--rounds", 5, "--workers", 1)
    assert [path.name for path in RunStore(run).earlier()] == ["rounds-2", "rounds-4"]
    check_folder(run, 5)


@pytest.mark.parametrize("restart", [False, True])
def test_the_schedule_goes_on_or_begins_again(home: Path, tmp_path: Path, restart: bool) -> None:
    run, words = tmp_path / "run", ("--set", "train.schedule=cosine", "--workers", 1)
    done("run", write_config(home), *words, "--out", run)
    done("resume", run, "--rounds", 4, *(["--restart-schedule"] if restart else []))
    rates = [line["lr"] for line in history(run)]
    first = [0.05, 0.025]
    rest = first if restart else [0.025, 0.05 * (1 + math.cos(0.75 * math.pi)) / 2]
    assert rates == pytest.approx([*first, *rest])


def test_an_extension_that_was_interrupted_is_completed(
    home: Path, compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(compared, run)

    def full(*_: Any) -> None:
        raise StoreError("the disk is full", "free some space")

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "write_program", full)
        with pytest.raises(StoreError, match="the disk is full"):
            lifecycle.resume(RunStore(run), 1, [], Extension(3))
    assert read(run / "rounds-2") == read(compared)
    done("resume", run, "--workers", 1)
    assert check_folder(run, 3)["fingerprint"] == read(run, "run.json")["fingerprint"]


def test_what_cannot_be_extended_is_refused_and_left_alone(home: Path, compared: Path) -> None:
    before = sorted(path.name for path in compared.iterdir())
    for rounds in (1, 2):
        said = refused(7, "resume", compared, "--rounds", rounds)
        assert f"has 2 rounds, so it cannot be extended to {rounds}" in said
    assert "only goes with --rounds" in refused(2, "resume", compared, "--restart-schedule")
    noisy = home / "noisy"
    privacy = {"name": "local", "epsilon": 50.0, "clip": 1.0}
    config = write_config(home, "noisy", privacy=privacy, rounds={"weighting": "uniform"})
    done("run", config, "--out", noisy, "--workers", 1)
    said = refused(7, "resume", noisy, "--rounds", 9)
    assert "was planned to spend epsilon 50 in 2 rounds" in said
    assert sorted(path.name for path in compared.iterdir()) == before


def test_two_at_once_in_one_folder(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with claimed(run):
        said = refused(7, "run", write_config(home), "--out", run)
        assert "another process is at work" in said
        (run / "mine").touch()
    assert [path.name for path in run.iterdir()] == ["mine"]


def test_a_start_that_fails_leaves_no_folder(home: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(2, "run", write_config(home), "--set", f"data.path={home}/nothing")
    refused(2, "run", write_config(home), "--set", "train.lr=-1")
    assert not list((tmp_path / "runs").glob("*"))


def test_resume_goes_on_when_the_images_were_moved(half: Path) -> None:
    """Skipped images are named by their paths, which are others now."""
    whole = half.parent / "whole"
    shutil.copytree(half, whole)
    done("resume", whole, "--workers", 1)
    home, facts = half.parent, read(half, "run.json")
    (home / "moved").mkdir()
    (home / "images").rename(home / "moved" / "images")
    text = (half / "run.toml").read_text()
    (half / "run.toml").write_text(text.replace(f"{home}/images", f"{home}/moved/images"))
    facts["data"]["skipped"] = [f"{home}/images/3.png"]
    (half / "run.json").write_text(json.dumps(facts))
    done("resume", half, "--workers", 1)
    assert (history(half), figures(half)) == (history(whole), figures(whole))


def test_resume_refuses_other_weights_under_the_same_name(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    done("run", config, "--out", tmp_path / "first", "--workers", 1)
    weights = tmp_path / "weights.safetensors"
    shutil.copy(tmp_path / "first" / "model.safetensors", weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    model = {"weights": str(weights), "sha256": digest[:8]}
    config = write_config(tmp_path, model=model)
    run = tmp_path / "run"
    done("run", config, "--out", run, "--workers", 1)
    facts = read(run, "run.json")
    assert facts["model"]["weights_sha256"] == digest
    facts["model"]["weights_sha256"] = digest[:8] + "0" * 56  # a file that begins with the same 8
    (run / "run.json").write_text(json.dumps(facts))
    assert "the model" in refused(7, "resume", run)


def test_a_folder_does_not_give_way_to_a_run_on_images_from_elsewhere(half: Path) -> None:
    shutil.copytree(half.parent / "images", half.parent / "others")
    words = ("--set", f"data.path={half.parent}/others", "--rounds", 1, "--out", half)
    text = refused(7, "run", half.parent / "tiny.toml", *words)
    assert "holds a run that is finished" in text
    assert (half / "summary.json").exists()


# ---------------------------------------------------------------- for other engines


class Listener(Callback):
    """Hears what happens, and may fail when it hears of a round."""

    def __init__(self, fails: int = 0) -> None:
        self.heard: list[str] = []
        self.fails = fails

    def on(self, event: Event) -> None:
        match event:
            case RunBegan():
                self.heard.append(f"begin {event.done}")
            case RoundEnded():
                if event.line["round"] == self.fails:
                    raise OSError("the screen is gone")
                self.heard.append(f"round {event.line['round']}")
            case RunEnded():
                self.heard.append("finish")


class Inline(InProcessEngine):
    """Tells whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True
        super().close()


def begun(folder: Path, program: Program) -> tuple[Session, RunStore]:
    session, store = Session(federate(program)), RunStore(folder)
    store.create(program, Speed(), describe(session, "run"))
    return session, store


def test_any_engine_can_be_run_and_stays_open(tmp_path: Path) -> None:
    session, store = begun(tmp_path / "run", federations.program())
    engine, listener = Inline(session.federation, store.memory), Listener()
    summary = lifecycle.go(Conclusion(session, Speed(), store, "run", [listener]), engine, None)
    assert not engine.closed
    engine.close()
    assert listener.heard == ["begin 0", "round 1", "round 2", "finish"]
    assert read(store.folder) == summary
    assert read(store.folder, "evaluation.json")["samples"]
    lifecycle.start(
        lifecycle.Start(
            federations.program(), Speed(workers=2), RunStore(tmp_path / "embedded"), "run"
        ),
        [],
    )
    same(store.folder, tmp_path / "embedded")


def test_without_pictures_a_run_and_its_report_are_whole(tmp_path: Path) -> None:
    session, store = begun(tmp_path / "run", federations.program())
    engine = InProcessEngine(session.federation, store.memory)
    lifecycle.go(Conclusion(session, Speed(), store, "run", [], False), engine, None)
    engine.close()
    evaluation = read(store.folder, "evaluation.json")
    assert evaluation["samples"] == []
    assert len(evaluation["confusion"]) == 10
    page = build([store.folder]).read_text()
    assert "Confusion matrix" in page
    assert "data:image/png" not in page


@pytest.mark.parametrize("every", [1, 5])
def test_a_reporter_that_fails_leaves_a_run_that_can_be_resumed(tmp_path: Path, every: int) -> None:
    config = write_config(tmp_path, rounds={"rounds": 4}, speed={"checkpoint_every": every})
    done("run", config, "--out", tmp_path / "whole", "--workers", 1)
    program, speed = load(config)
    store = RunStore(tmp_path / "run")
    with pytest.raises(OSError, match="the screen is gone"):
        lifecycle.start(lifecycle.Start(program, speed, store, "run"), [Listener(fails=2)])
    found = store.load_checkpoint()
    assert (found.round if found else 0) == (2 if every == 1 else 0)
    assert [line["round"] for line in history(store.folder)] == [1, 2]
    listener = Listener()
    lifecycle.resume(store, 1, [listener])
    assert listener.heard[:2] == (["begin 2", "round 3"] if every == 1 else ["begin 0", "round 1"])
    same(store.folder, tmp_path / "whole")


def test_a_folder_is_rewound_to_its_checkpoint(tmp_path: Path) -> None:
    _, store = begun(tmp_path / "run", federations.program())
    store.append_history({"round": 1})
    assert lifecycle.rewound(store) is None
    assert store.history() == []
    checkpoint = Checkpoint(2, torch.zeros(1), {})
    store.save_checkpoint(checkpoint)
    for round in (1, 2, 3):
        store.append_history({"round": round})
    (store.folder / ".run.json.7.partial").write_text("{")
    found = lifecycle.rewound(store)
    assert found is not None
    assert found.round == 2
    assert [line["round"] for line in store.history()] == [1, 2]
    assert not list(store.folder.glob(".*"))


def test_a_figure_that_nobody_could_measure_is_null(home: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        conclusion, "_summarise", lambda *_: {"score": float("nan"), "worst_site": None}
    )
    store = RunStore(home / "nan")
    config = federations.program(rounds={"rounds": 1})
    lifecycle.start(lifecycle.Start(config, Speed(workers=1), store, "run"), [])
    assert read(home / "nan")["score"] is None


# ---------------------------------------------------------------- the saved model


def test_a_shared_model_is_the_same_for_all(compared: Path) -> None:
    one = saved.load(compared)
    assert one.classes == ("0", "1", "2", "3")
    assert not one.module.training
    assert one.preprocess.height == 8
    with pytest.raises(StoreError, match="share one model"):
        saved.load(compared, "site-00")


def test_each_site_has_a_model_of_its_own(home: Path) -> None:
    run = home / "personal"
    path = write_config(home, "personal", algorithm={"name": "fedrep"})
    done("run", path, "--out", run, "--workers", 1)
    summary = read(run)
    assert read(run, "evaluation.json")["personal"]
    assert read(run, "evaluation.json")["site_test"] == "whole test part"
    assert len(summary["by_site"]) == 3
    heads = {
        site: dict(saved.load(run, site).module.named_parameters())["head.weight"][0, 0].item()
        for site in summary["by_site"]
    }
    assert len(set(heads.values())) == 3
    with pytest.raises(StoreError, match="its own part of the model") as caught:
        saved.load(run)
    assert ": site-00, site-01, site-02" in caught.value.cure
    with pytest.raises(StoreError, match="no model for site 'north'"):
        saved.load(run, "north")


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda run: (run / "model.safetensors").unlink(), "is not finished"),
        (lambda run: (run / "model.safetensors").write_bytes(b"x" * 99), "is broken"),
        (lambda run: (run / "run.json").write_text("{}"), "run.json is broken"),
        (lambda run: (run / "run.json").write_text("[]"), "not a JSON object"),
        (lambda run: (run / "run.json").unlink(), "No such file"),
        (lambda run: (run / "run.toml").unlink(), "not a run folder"),
    ],
)
def test_a_broken_run_has_no_model(
    compared: Path, tmp_path: Path, spoil: Callable[[Path], Any], cause: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(compared, run)
    spoil(run)
    with pytest.raises(StoreError, match=cause) as caught:
        saved.load(run)
    assert caught.value.cure
    assert cause in refused(7, "predict", run, tmp_path)
    assert cause in refused(7, "export", run, "--format", "safetensors")


def test_history_does_not_depend_on_how_often_checkpoints_are_written(
    home: Path, compared: Path
) -> None:
    run = home / "rarely"
    done("run", write_config(home), "--set", "speed.checkpoint_every=5", "--out", run)
    assert history(run) == history(compared)
