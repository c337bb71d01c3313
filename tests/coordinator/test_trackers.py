"""The figures of each round in the formats of other tools."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import federations
import pytest
from command_line import cli, done, refused, write_config

from fedsight.coordinator.callbacks import BaselinesBegan, Callback, RoundEnded, RunBegan, RunEnded
from fedsight.coordinator.trackers import MLflow, open_log
from fedsight.core.errors import FedSightError
from fedsight.tasks.classification import Classification


def line(round: int, **values: Any) -> dict[str, Any]:
    return {"round": round, **values}


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard itself reads from the folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: {event.step: event.value for event in found.Scalars(tag)}
        for tag in found.Tags()["scalars"]
    }


def test_tensorboard_reads_the_history(tmp_path: Path) -> None:
    config = write_config(tmp_path, rounds={"rounds": 3, "evaluate_every": 2})
    run = tmp_path / "run"
    done("run", config, "--out", run, "--workers", 1, "--log", "tensorboard")
    lines = [json.loads(text) for text in (run / "history.jsonl").read_text().splitlines()]
    found = scalars(run)
    shown = {*Classification.figures, "train_loss", "lr", "bytes_up", "bytes_down", "seconds"}
    assert set(found) == shown
    for name in shown:
        wanted = {entry["round"]: entry[name] for entry in lines if entry.get(name) is not None}
        assert found[name] == pytest.approx(wanted)
    assert set(found["accuracy"]) == {2, 3}


def test_tensorboard_after_a_crash_hides_what_is_run_again(tmp_path: Path) -> None:
    federation = federations.federation()
    for done_before, rounds, loss in ((0, (1, 2, 3), 9.0), (1, (2, 3), 4.0)):
        log = open_log("tensorboard", tmp_path, print)
        log.begin(federation, done_before)
        for round in rounds:
            log.round(line(round, loss=loss))
        if done_before:
            log.finish()
            log.close()
        else:  # killed: nothing is closed, and yet nothing is lost
            assert scalars(tmp_path)["loss"] == {1: 9.0, 2: 9.0, 3: 9.0}
            log.close()
    assert scalars(tmp_path)["loss"] == {1: 9.0, 2: 4.0, 3: 4.0}


def test_mlflow_has_a_run_with_every_round(tmp_path: Path, monkeypatch) -> None:
    # MLflow's own deprecations are not ours to mend.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow

        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.chdir(tmp_path)  # where MLflow keeps its default store
        monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
        config = write_config(tmp_path)
        done("run", config, "--out", tmp_path / "run", "--workers", 1, "--log", "mlflow")
        client = mlflow.MlflowClient()
        assert (tmp_path / "mlflow.db").is_file()
        [found] = client.search_runs(["0"])
        assert found.info.status == "FINISHED"
        assert found.info.run_name == "tiny"
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert found.data.tags["fedsight.fingerprint"] == summary["fingerprint"]
        history = client.get_metric_history(found.info.run_id, "accuracy")
        assert [metric.step for metric in history] == [1, 2]
        assert history[-1].value == summary["accuracy"]
        log = open_log("mlflow", tmp_path, print)
        log.close()  # never begun
        log.begin(federations.federation(), 0)
        log.close()  # begun, but not finished
        statuses = [found.info.status for found in client.search_runs(["0"])]
        assert sorted(statuses) == ["FINISHED", "KILLED"]


@pytest.mark.parametrize(
    "where", ["http://127.0.0.1:9", "sqlite:////dev/null/all.db", "ftp://nobody"]
)
def test_a_run_goes_on_when_mlflow_cannot_be_written(
    tmp_path: Path, monkeypatch, where: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", where)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = done(
            "run", write_config(tmp_path), "--out", run, "--workers", 1, "--log", "mlflow"
        )
    assert answer.err.count("MLflow's log cannot be written") == 1
    assert "Traceback" not in answer.said
    assert (run / "summary.json").is_file()


@pytest.mark.parametrize("step", ["begin", "round", "end"])
def test_a_tracker_that_fails_is_reported_once(tmp_path: Path, monkeypatch, step: str) -> None:
    said: list[str] = []
    log = open_log("tensorboard", tmp_path, said.append)

    def fail(*_: Any) -> None:
        raise RuntimeError(f"no {step}\ntoday")

    monkeypatch.setattr(log, step, fail)
    log.on(RunBegan(federations.federation(), 0))
    for number in (1, 2):
        log.on(RoundEnded(line(number, loss=1.0), None, number == 2))
    log.on(RunEnded({}))
    log.close()
    cause = f"no {step} today"
    assert said == [f"TensorBoard's log cannot be written ({cause}); the run goes on without it"]


@pytest.mark.parametrize(
    ("kind", "module"), [("mlflow", "mlflow"), ("tensorboard", "torch.utils.tensorboard")]
)
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch, kind: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FedSightError, match=f"--log {kind} needs a package") as caught:
        open_log(kind, tmp_path, print)
    assert caught.value.cure == f"pip install 'fedsight[{kind}]'"
    out = tmp_path / "run"
    said = refused(1, "run", write_config(tmp_path), "--out", out, "--log", kind)
    assert f"fedsight[{kind}]" in said
    assert not out.exists()


def test_an_unknown_log_is_refused_by_the_command_line(tmp_path: Path) -> None:
    answer = cli("run", write_config(tmp_path), "--log", "paper")
    assert answer.code == 2
    assert "'tensorboard', 'mlflow'" in answer.err


def test_a_reporter_hears_everything_and_minds_nothing() -> None:
    one = Callback()
    one.on(RunBegan(federations.federation(), 0))
    one.on(RoundEnded({}, None, False))
    one.on(BaselinesBegan(3))
    one.on(RunEnded({}))
    one.close()
    assert issubclass(MLflow, Callback)
