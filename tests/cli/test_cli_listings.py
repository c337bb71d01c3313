"""`fedsight models`, `algorithms`, `tasks` and `doctor`: a line each, as text and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import cli, done

import fedsight
from fedsight.algorithms.base import algorithms
from fedsight.cli import doctor
from fedsight.cli.complete import run_folders
from fedsight.core.registry import LOG
from fedsight.models.base import models
from fedsight.program import plugins
from fedsight.tasks.base import tasks


@pytest.mark.parametrize(
    ("command", "registry"), [("models", models), ("algorithms", algorithms), ("tasks", tasks)]
)
def test_every_part_has_a_line(command: str, registry: object) -> None:
    lines = done(command).out.splitlines()
    rows = json.loads(done(command, "--json").out)
    names = registry.names()  # type: ignore[attr-defined]
    assert [line.split(":")[0] for line in lines] == names == [row["name"] for row in rows]
    for row, line in zip(rows, lines, strict=True):
        assert row["about"].rstrip(".") in line
        assert row["source"] in line
        assert set(row["settings"]) == set(registry.get(row["name"]).model_fields)  # type: ignore[attr-defined]


def test_parts_of_ones_own_are_listed_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import fedsight as fs\n"
        "@fs.register('my_average', paper='Me 2026')\n"
        "class Mine(fs.Algorithm):\n"
        '    """The mean of my own."""\n'
        "    strength: float = 2.0\n"
    )
    try:
        lines = done("algorithms", "--plugin", file).out.splitlines()
    finally:
        plugins.parse([], Path.cwd())
        for added in [one for one in LOG if not one.cls.__module__.startswith("fedsight.")]:
            added.registry.remove(added.name)
            LOG.remove(added)
    (line,) = [line for line in lines if line.startswith("my_average:")]
    assert line.startswith("my_average: The mean of my own; [Me 2026]; settings: ")
    assert "strength=2.0" in line


def test_the_doctor_finds_this_machine_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = json.loads(done("doctor", "--json").out)
    assert told["usable"]
    found = {one["what"]: one for one in told["findings"]}
    assert found["FedSight"]["value"] == fedsight.__version__
    assert found["torch"]["state"] == "ok"
    assert {f"extra {name}" for name in doctor.EXTRAS} <= set(found)
    said = done("doctor").out
    assert "FedSight can be used here." in said
    assert all(one["what"] in said for one in told["findings"])
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_knows_every_extra_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {*doctor.EXTRAS, "all", "dev"} == set(project["optional-dependencies"])


def test_the_doctor_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(doctor.EXTRAS, "export", ("no_such_module",))
    said = done("doctor").out
    assert "missing (no_such_module)" in said
    assert "pip install 'fedsight[export]'" in said
    monkeypatch.setattr(os, "access", lambda *_: False)
    answer = cli("doctor")
    assert answer.code == 1
    assert "PROBLEM  folder of the runs" in answer.out
    assert "cannot be used here" in answer.out


ONE_BY_ONE = """
import contextlib, json, sys
from fedsight.cli import main
for words, code in json.loads(sys.argv[1]):
    sys.argv = ["fedsight", *words]
    try:
        main()
        ended = 0
    except SystemExit as end:
        ended = end.code or 0
    assert ended == code, (words, ended)
"""


def test_a_terminal_that_knows_ascii_alone_is_enough(tmp_path: Path) -> None:
    """One process for all commands: to start one takes longer than they do."""
    fine = (["models"], ["doctor"], ["data", "list"], ["--help"])
    asked = [*((words, 0) for words in fine), (["init", "Bilder-äöü-图"], 3)]
    made = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE, json.dumps(asked)],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "LANG": "C"},
    )
    assert made.returncode == 0, made.stderr
    assert b"Bilder-" in made.stderr
    assert (made.stdout + made.stderr).isascii()
    assert b"Traceback" not in made.stderr


def test_the_tab_key_offers_run_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_folders("") == []
    for name in ("runs/one", "runs/two", "other/three", "runs/none"):
        (tmp_path / name).mkdir(parents=True)
        if name != "runs/none":
            (tmp_path / name / "run.toml").touch()
    assert run_folders("") == ["runs/one", "runs/two"]
    assert run_folders("runs/t") == ["runs/two"]
    assert run_folders("other/") == ["other/three"]
    assert run_folders("nowhere/x") == []


def test_the_shell_completes_commands_examples_and_runs(tmp_path: Path) -> None:
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/run.toml").touch()

    def offered(line: str) -> str:
        asked = {"_FEDSIGHT_COMPLETE": "complete_bash", "COMP_WORDS": line}
        text = "import sys; sys.argv = ['fedsight']; from fedsight.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", text],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, **asked, "COMP_CWORD": str(len(line.split(" ")) - 1)},
        ).stdout

    assert "doctor" in offered("fedsight do").split()
    assert "fashion" in offered("fedsight run --example fa").split()
    assert "runs/mine" in offered("fedsight resume ").split()
