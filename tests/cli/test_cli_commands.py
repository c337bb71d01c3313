"""Every command: help with an example, no torch until it is needed, words that do not fit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import cli, done, refused, write_config

import fedsight
from fedsight.core import errors

COMMANDS = [
    *("init", "run", "compare", "check", "resume", "report", "predict", "export"),
    *("models", "algorithms", "tasks", "doctor"),
    *("data list", "data inspect", "data split"),
    *(f"federation {name}" for name in ("init", "admit", "revoke", "status", "history", "demo")),
    *("server start", "site init", "site start", "site log", "site ledger"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    answer = done(*command.split(), "--help")
    assert f"Example: fedsight {command}" in answer.out


def test_the_examples_in_the_help_can_be_read() -> None:
    """Their options exist."""
    for command in COMMANDS:
        text = done(*command.split(), "--help").out
        example = re.search(r"Example: fedsight ([^│\n]*)", text)
        assert example
        for option in re.findall(r"--[a-z]+", example[1]):
            assert len(re.findall(rf"{option}\b", text)) >= 2, (command, option)


def test_all_commands_are_listed() -> None:
    text = done("--help").out
    for command in COMMANDS:
        assert command.split()[0] in text
    assert "fedsight run --example fashion" in text
    assert cli().code == 2
    assert "Usage" in cli().said


def test_the_version() -> None:
    assert done("--version").out == f"fedsight {fedsight.__version__}\n"


def test_neither_the_package_nor_the_help_imports_torch() -> None:
    text = (
        "import sys, fedsight; heavy = {'torch', 'numpy', 'matplotlib', 'nvflare'};"
        "assert not heavy & set(sys.modules), 'import fedsight';"
        "sys.argv = ['fedsight', 'run', '--help'];"
        "from fedsight.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not heavy & set(sys.modules), 'fedsight --help'"
    )
    made = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


def test_a_real_shell_sees_code_and_message(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("fedsight")
    made = subprocess.run(
        [program, "check", tmp_path / "none.toml"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 2
    assert made.stdout == ""
    assert made.stderr.splitlines()[0] == "Error: 1 problem in the configuration"
    assert f"there is no config file {tmp_path}/none.toml" in made.stderr


def test_a_config_or_an_example_and_not_both(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    for command in ("run", "compare", "check"):
        for words in ([], [config, "--example", "fashion"]):
            text = refused(2, command, *words)
            assert "expected either a config file or --example NAME" in text
            assert "fedsight run --example fashion" in text
    assert "did you mean 'fashion'?" in refused(2, "run", "--example", "fashon")


@pytest.mark.parametrize(
    "words",
    [
        ["run", "a.toml", "--rounds", "0"],
        ["run", "a.toml", "--workers", "none"],
        ["run", "a.toml", "b.toml"],
        ["rnu"],
        ["export", "run", "--format", "jpeg"],
        ["resume"],
        ["predict", "run"],
        ["report"],
    ],
)
def test_words_that_do_not_fit_are_refused(words: list[str]) -> None:
    answer = cli(*words)
    assert answer.code == 2
    assert "Usage:" in answer.err
    assert "Traceback" not in answer.said


def test_options_are_short_for_settings(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    options = ("--rounds", 3, "--seed", 5, "--workers", 1, "--set", "train.lr=0.01")
    done("run", config, *options, "--out", tmp_path / "run")
    text = (tmp_path / "run" / "run.toml").read_text()
    for item in ("rounds = 3", "seed = 5", "workers = 1", "lr = 0.01"):
        assert item in text


def test_exit_codes_are_those_of_the_table() -> None:
    """The table in the module's docstring, which the reference shows."""
    rows = (errors.__doc__ or "").splitlines()
    table = dict(re.findall(r"(\w+) +(?:exit code )?(\d+)\b", "\n".join(rows)))
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    found = {
        kind.__name__: str(kind.exit_code)
        for kind in kinds
        if issubclass(kind, errors.FedSightError)
    }
    assert table == found
    for name in ("RefusedError", "HeldError"):
        assert found.pop(name) == found["SiteError"]  # of one family
    assert len(set(found.values())) == len(found) == 10
