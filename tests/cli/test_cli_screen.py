"""What a user sees: a line a round on a pipe, a bar on a terminal, a table at the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import federations
import pytest
from command_line import done, write_config
from hypothesis import given
from hypothesis import strategies as st

from fedsight.cli.screen import show_error, show_summary
from fedsight.coordinator.callbacks import (
    BaselineRoundEnded,
    BaselinesBegan,
    ReplyArrived,
    RoundEnded,
    RunBegan,
    RunEnded,
)
from fedsight.core.errors import ConfigError, DataError, FedSightError, Problem, StoreError
from fedsight.engines.base import Accepted
from fedsight.runs.progress import Screen, size

LINE: dict[str, Any] = {
    **{"round": 1, "score": 0.5, "loss": 1.25, "rejected": {}},
    **{"bytes_up": 1500, "bytes_down": 500},
}

REPLY = ReplyArrived(Accepted(0, "site-00", 1, 0.5))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (1_550_000, "1.6 MB"),
        (2.5e9, "2.5 GB"),
        (7e12, "7.0 TB"),
        (7e16, "70000 TB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


@given(count=st.integers(0, 10**15))
def test_a_size_is_near_what_it_stands_for(count: int) -> None:
    number, unit = size(count).split()
    factor = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert float(number) * factor == pytest.approx(
        count, abs=0.51 * factor if float(number) >= 100 else 0.051 * factor
    )


def test_a_line_a_round_on_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.on(RunBegan(federations.federation(rounds={"rounds": 3}), 1))
    screen.on(REPLY)
    screen.on(RoundEnded(LINE, None, False))
    screen.on(
        RoundEnded(
            {**LINE, "round": 2, "score": None, "loss": None, "rejected": {"a": "NaN"}}, None, False
        )
    )
    screen.on(BaselinesBegan(4))
    screen.on(BaselineRoundEnded())
    screen.on(RunEnded({}))
    screen.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "run: fedavg, 3 sites, 120 training images and 60 test images, 3 rounds, "
        "resumed after round 1",
        "round 1/3 accuracy 0.500 loss 1.250 2.0 kB",
        "round 2/3 4.0 kB 1 rejected",
        "For comparison: each site alone, and all images pooled",
    ]


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    screen.on(RunBegan(federations.federation(rounds={"cohort": 2}), 0))
    screen.on(REPLY)
    screen.on(REPLY)
    screen.on(RoundEnded(LINE, None, False))
    screen.on(BaselinesBegan(8))
    screen.on(BaselineRoundEnded())
    screen.close()
    err = capsys.readouterr().err
    assert "2/4" in err
    assert "round 1/2 accuracy 0.500 loss 1.250 2.0 kB" in err
    assert "alone, pooled" in err
    assert "1/8" in err


def test_what_is_said_meanwhile_stands_above_the_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    screen.on(RunBegan(federations.federation(rounds={"rounds": 2}), 0))
    screen.on(
        RoundEnded(LINE, None, False)
    )  # without a word of single replies, as where sites are elsewhere
    screen.say("waiting for [site-01]")
    screen.close()
    err = capsys.readouterr().err
    above, _, below = err.rpartition("waiting for [site-01]")
    assert "0/6" in above
    assert "3/6" in below


def test_a_reply_before_the_beginning_moves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().on(REPLY)
    assert capsys.readouterr().err == ""


SUMMARY: dict[str, Any] = {
    **{
        "headline": "Accuracy",
        "score": 0.8765,
        "worst_site": None,
        "bytes_up": 2_000_000,
        "bytes_down": 3_000,
    },
    **{"seconds": 12.34, "rounds": 20},
}


def test_the_summary(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    show_summary(SUMMARY, "runs/[a] :x:")
    out = capsys.readouterr().out
    assert "87.65% accuracy" in out
    assert "2.0 MB sent, 3.0 kB received by sites" in out
    assert "12.3 s for 20 rounds" in out
    assert "Report: runs/[a] :x:/report.html" in out
    assert "pooled" not in out
    assert "worst" not in out
    worst = {"name": "[ward] 3", "score": 0.5}
    compared = {"pooled": 0.9, "alone_mean": 0.4, "sites": 3, "sites_better": 2}
    show_summary({**SUMMARY, "worst_site": worst, **compared, "sites_worse": ["[ward] 3"]}, "r")
    out = capsys.readouterr().out
    assert "2 of 3 sites, with the model that they get, than alone" in out
    assert "beyond chance: [ward] 3" in out
    assert "[ward] 3 with 50.00%" in out
    assert "90.00% (all data at one place)" in out
    assert "40.00% (mean of the sites)" in out


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DataError("'[a]/:x:.png' is broken", "mend it"), "Error: '[a]/:x:.png' is broken\n  mend"),
        (StoreError("no cure"), "Error: no cure\n"),
        (FedSightError("w" * 300, "c"), "w" * 300),
        (
            ConfigError([Problem("train.lr", "[0] is bad", "try [1]"), Problem("b", "c", "d")]),
            "Error: 2 problems in the configuration\n  train.lr: [0] is bad\n      try [1]\n"
            "  b: c\n      d\n",
        ),
    ],
)
def test_errors(capsys: pytest.CaptureFixture[str], error: FedSightError, text: str) -> None:
    show_error(error)
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err


def test_a_run_prints_its_rounds_to_stderr_and_its_figures_to_stdout(tmp_path: Path) -> None:
    answer = done("run", write_config(tmp_path), "--out", tmp_path / "run", "--workers", 1)
    rounds = [line for line in answer.err.splitlines() if line.startswith("round ")]
    assert [line.split()[1] for line in rounds] == ["1/2", "2/2"]
    assert answer.err.splitlines()[0].startswith("tiny: fedavg, 3 sites, 200 training images")
    labels = [line.split("  ")[0].strip() for line in answer.out.splitlines()]
    # No worst site: they are as alike as chance makes them.
    assert labels[:4] == ["federated", "by class", "bytes", "time"]
    assert sys.stderr is not None


def test_figures_with_noise_are_shown_with_their_margin(
    capsys: pytest.CaptureFixture[str],
) -> None:
    worst = {"name": "oslo", "score": 0.7}
    errors = {"score": 0.83, "score_error": 0.014, "site_errors": {"oslo": 0.2}}
    show_summary({**SUMMARY, "worst_site": worst, **errors}, "r")
    shown = capsys.readouterr().out.replace("\u00a0", " ")
    assert "83 % ± 3 points" in shown
    assert "oslo with 70 % ± 39 points" in shown
