"""`fedsight privacy plan`, and what protected runs say on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import command_line
import pytest

from fedsight.privacy import event
from fedsight.privacy.accounting import spent

PLAN: dict[str, Any] = {"epsilon": 3, "rounds": 200, "population": 5000, "cohort": 500}


def options(**changes: Any) -> list[str]:
    return [f"--{key}={value}" for key, value in {**PLAN, **changes}.items()]


def test_the_plan_names_a_noise_that_meets_its_target() -> None:
    said = command_line.done("privacy", "plan", *options()).out
    noise = float(said.split("noise_multiplier = ")[1].split()[0])
    assert 2.9 < spent([(event.poisson(noise, 0.1), 200)], 1e-5) < 3.003
    assert "20,538 parameters" in said


def test_a_larger_cohort_buys_less_noise_for_each_client() -> None:
    said = command_line.done("privacy", "plan", *options(parameters=10_000)).out
    rows = [line.split() for line in said.splitlines() if line.rstrip().endswith("%")]
    assert [row[0] for row in rows] == ["500", "1,000", "2,000", "4,000", "5,000"]
    beside = [float(row[2]) for row in rows]
    assert beside == sorted(beside, reverse=True)
    noises = [float(row[1]) for row in rows]
    assert noises == sorted(noises)
    assert beside[0] == pytest.approx(noises[0] * 100 / 500, rel=0.01)


def test_the_size_can_come_from_a_config(tmp_path: Path) -> None:
    path = command_line.write_config(tmp_path)
    assert "parameters" in command_line.done("privacy", "plan", *options(config=path)).out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epsilon": 0}, "--epsilon"),
        ({"epsilon": -3}, "--epsilon"),
        ({"epsilon": "nan"}, "--epsilon"),
        ({"epsilon": "inf"}, "--epsilon"),
        ({"delta": 0}, "--delta"),
        ({"delta": 1}, "--delta"),
        ({"delta": 0.01}, "--delta"),
        ({"cohort": 6000}, "--cohort"),
        ({"parameters": 3, "config": "x.toml"}, "--parameters"),
    ],
)
def test_values_out_of_range_are_named(change: dict[str, Any], named: str) -> None:
    assert named in command_line.refused(2, "privacy", "plan", *options(**change))


def protected(folder: Path, **privacy: Any) -> Path:
    return command_line.write_config(
        folder,
        privacy={"name": "local", **privacy},
        rounds={"rounds": 5, "weighting": "uniform"},
    )


def test_a_run_that_stops_early_says_so_and_keeps_its_target(tmp_path: Path) -> None:
    config = protected(tmp_path, epsilon=5.0, noise_multiplier=3.5)
    said = command_line.done("run", config, "--out", tmp_path / "run", "--workers", 1).said
    told = command_line.read(tmp_path / "run")["privacy"]
    assert 0 < told["rounds"] < 5
    assert told["stopped"]
    assert f"stopped after {told['rounds']} of 5 rounds" in said
    assert told["epsilon"] <= 5.0
    assert told["neighbours"] == "replace_one"
    lines = command_line.history(tmp_path / "run")
    assert len(lines) == told["rounds"]
    assert lines[-1]["epsilon"] == told["epsilon"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "stopped" in page
    assert "Privacy" in page
    again = command_line.done("resume", tmp_path / "run").said
    assert "stopped after" in again


def test_a_target_too_small_for_one_round_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    config = protected(tmp_path, epsilon=0.1, noise_multiplier=1.0)
    said = command_line.refused(2, "run", config, "--out", tmp_path / "run")
    assert "not one round stays within epsilon 0.1" in said
    assert not (tmp_path / "run").exists()


def test_check_names_what_is_unsound(tmp_path: Path) -> None:
    config = protected(tmp_path, epsilon=3.0)
    sets = ["--set", "rounds.weighting=samples", "--set", "model.norm=batch"]
    said = command_line.refused(2, "check", config, *sets)
    assert "rounds.weighting" in said
    assert "model.norm" in said


def test_the_report_says_that_baselines_are_not_protected(tmp_path: Path) -> None:
    config = protected(tmp_path, epsilon=8.0)
    command_line.done("compare", config, "--out", tmp_path / "run", "--workers", 1)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "not protected" in page


@pytest.mark.parametrize(
    ("privacy", "split", "code", "why"),
    [
        ({"epsilon": 0.1, "noise_multiplier": 1.0}, {}, 2, "not one round stays within epsilon"),
        ({"noise_multiplier": 1e9}, {}, 1, "with noise 1e+09 does not fit 32 bits"),
        ({"epsilon": 3.0}, {"sites": 2}, 2, "secure aggregation over 2 sites hides nothing"),
    ],
)
def test_check_says_what_no_round_could_keep_to(
    tmp_path: Path, privacy: dict[str, Any], split: dict[str, Any], code: int, why: str
) -> None:
    tables = {"secure": {"name": "secagg"}, "split": {"name": "iid", "sites": 4, **split}}
    config = command_line.write_config(
        tmp_path,
        privacy={"name": "distributed", **privacy},
        rounds={"rounds": 2, "weighting": "uniform"},
        **tables,
    )
    assert why in " ".join(command_line.refused(code, "check", config).split())
    fine = ["--set", "privacy.noise_multiplier=1.0", "--set", "split.sites=4"]
    if "epsilon" in privacy:
        fine += ["--set", "privacy.epsilon=50.0"]
    command_line.done("check", config, *fine)
