"""A new algorithm, model, source, split, task, metric and codec: each one file from outside."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from command_line import cli, done, refused

import fedsight as fs
from fedsight.compression.pipeline import HEADER
from fedsight.program import plugins

PARTS = Path(__file__).parent / "parts"
PLAIN: dict[str, Any] = {
    "data": {"name": "fashion-mnist-12k"},
    "split": {"name": "iid", "sites": 2},
    "model": {"name": "small_cnn", "width": 4, "blocks": 1},
    "rounds": {"rounds": 1},
}
# The file, and what a program that uses its part says.
USE: dict[str, dict[str, Any]] = {
    "algorithm": {"algorithm": {"name": "shortened", "factor": 0.25}},
    "model": {"model": {"name": "one-layer"}},
    "source": {"data": {"name": "few-garments", "count": 160}},
    "split": {"split": {"name": "odd-even"}},
    "task": {"task": {"name": "squares"}},
    "metric": {"task": {"metrics": ["confidence"]}},
    "codec": {"codec": {"up": {"steps": ["bytes"]}}},
}


def sections(files: Iterable[str]) -> dict[str, Any]:
    """What a program that uses the parts in `files` says."""
    found: dict[str, Any] = {}
    for file in files:
        for section, values in USE[file].items():
            found[section] = {**found.get(section, {}), **values}
    return found


def config(folder: Path, *files: str) -> Path:
    """A config file that uses the parts in `files`, on few images."""
    table: dict[str, Any] = {"plugins": [str(PARTS / f"{file}.py") for file in files], **PLAIN}
    table |= sections(files)
    path = folder / "own.toml"
    path.write_text(tomli_w.dumps(table))
    return path


def copied(folder: Path, file: str) -> Path:
    """A copy of a plug-in that a test may change."""
    path = folder / f"{file}.py"
    path.write_text((PARTS / f"{file}.py").read_text())
    return path


@pytest.mark.parametrize("file", USE)
def test_a_part_in_one_file_is_found_by_the_command_line(file: str, tmp_path: Path) -> None:
    files = {"source", file}
    answer = done("check", config(tmp_path, *sorted(files)))
    assert "own is fine" in answer.out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all parts from the command line."""
    folder = tmp_path_factory.mktemp("outside")
    done("run", config(folder, *USE), "--out", folder / "run", "--workers", 2)
    return folder / "run"


def test_all_parts_together_train_on_worker_processes(trained: Path) -> None:
    facts = json.loads((trained / "run.json").read_text())
    assert facts["algorithm"] == "shortened"
    assert facts["model"]["name"] == "one-layer"
    assert [site["name"] for site in facts["sites"]] == ["odd", "even"]
    assert facts["data"]["train"] == 160
    summary = json.loads((trained / "summary.json").read_text())
    assert 0 < summary["confidence"] <= 1
    assert summary["bytes_up"] == 2 * (HEADER + 4 + facts["model"]["travelling"])


def test_python_and_the_command_line_train_the_same_model(trained: Path, tmp_path: Path) -> None:
    run = fs.run(
        plugins=[PARTS / f"{file}.py" for file in USE],
        rounds=1,
        name="own",
        out=tmp_path / "run",
        workers=1,
        **sections(USE),
    )
    summary = json.loads((trained / "summary.json").read_text())
    assert run.summary["fingerprint"] == summary["fingerprint"]
    assert run.summary["model_sha256"] == summary["model_sha256"]


def test_a_run_of_plugins_is_loaded_without_them_being_given(trained: Path) -> None:
    run = fs.load(trained)
    assert type(run.model).__name__ == "OneLayer"
    assert not run.model.training


def test_the_content_of_a_plugin_is_in_the_fingerprint_and_its_place_is_not(
    tmp_path: Path,
) -> None:
    from fedsight.program.keywords import read

    def fingerprint(path: Path) -> str:
        program, _ = read(None, {**PLAIN, "plugins": [path], "algorithm": "shortened"})
        assert plugins.hashes(program) == (program.plugins[0].sha256,)
        return program.fingerprint

    path = copied(tmp_path, "algorithm")
    before = fingerprint(path)
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / path.name)
    assert fingerprint(moved) == before
    moved.write_text(moved.read_text().replace("gt=0", "gt=0.1"))
    assert fingerprint(moved) != before


def test_a_plugin_that_changed_is_refused_on_resume_and_on_predict(tmp_path: Path) -> None:
    path = copied(tmp_path, "model")
    table = {**PLAIN, **USE["source"], **USE["model"]}
    table["plugins"] = ["model.py", str(PARTS / "source.py")]
    (tmp_path / "own.toml").write_text(tomli_w.dumps(table))
    run = tmp_path / "run"
    done("run", tmp_path / "own.toml", "--out", run, "--workers", 1)
    text = path.read_text()
    path.write_text(text + "\n# another content\n")
    plugins.parse([], tmp_path)
    plugins._IMPORTED.clear()  # a new process would not have the old content
    for command in (("resume", run), ("predict", run, path), ("export", run)):
        said = refused(2, *command)
        assert "model.py has changed since the run began" in said
        assert "restore the file as it was" in said
    # The same content elsewhere will do.
    (tmp_path / "kept.py").write_text(text)
    assert "federated" in done("resume", run, "--plugin", tmp_path / "kept.py").out


WRONG = {
    "does not import": ("import nothing_of_that_name", "ModuleNotFoundError", "line 1"),
    "no Python": ("\n\ndef (", "SyntaxError", "line 3"),
    "fails": ("x = 1\ny = x / 0\n", "ZeroDivisionError", "line 2"),
    "leaves": ("import sys\nsys.exit(3)\n", "SystemExit", "line 2"),
    "no part": ("x = 1\n", "registers no part", '@fedsight.register("my-name")'),
    "twice": (
        "import fedsight as fs\n"
        "class A(fs.Algorithm): 'A.'\n"
        "class B(fs.Algorithm): 'B.'\n"
        "fs.register('twice')(A)\nfs.register('twice')(B)\n",
        "two algorithms are called 'twice'",
        "give one of them another name",
    ),
    "the same class name": (
        "import fedsight as fs\n"
        "@fs.register('again')\nclass A(fs.Algorithm): 'A.'\n"
        "@fs.register('again')\nclass A(fs.Algorithm): 'A.'\n",
        "registers the algorithm 'again' twice",
        "give one of them another name",
    ),
    "built in": (
        "import fedsight as fs\n@fs.register('fedavg')\nclass A(fs.Algorithm): 'A.'\n",
        "two algorithms are called 'fedavg'",
        "line 2",
    ),
    "not a part": (
        "import fedsight as fs\nfs.register('what')(3)\n",
        "3 is not a class or function",
        "register a part",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_plugin_that_is_wrong_is_one_clear_message(wrong: str, tmp_path: Path) -> None:
    source, cause, detail = WRONG[wrong]
    (tmp_path / "bad.py").write_text(source)
    said = refused(2, "run", config(tmp_path), "--plugin", tmp_path / "bad.py")
    assert "plugins" in said
    assert str(tmp_path / "bad.py") in said
    assert cause in said
    assert detail in said
    names = [name for name in ("twice", "again", "what") if name in _algorithms()]
    assert names == []  # nothing of it stays
    assert "fedavg" in _algorithms()


def _algorithms() -> list[str]:
    from fedsight.algorithms.base import algorithms

    return algorithms.names()


def test_a_plugin_that_is_not_there_and_a_list_that_is_none(tmp_path: Path) -> None:
    said = refused(2, "check", config(tmp_path), "--plugin", tmp_path / "no.py")
    assert "no.py: No such file" in said
    path = tmp_path / "own.toml"
    path.write_text('plugins = "parts.py"\n' + path.read_text().replace("plugins = []", ""))
    assert "expected a list of files" in refused(2, "check", path)


def test_an_edited_plugin_replaces_its_older_self_in_a_notebook(tmp_path: Path) -> None:
    path = copied(tmp_path, "algorithm")
    table: dict[str, Any] = {**PLAIN, "plugins": [path]}
    assert fs.check(algorithm="shortened", **{**table, "data": "fashion-mnist-12k"}) == []
    path.write_text(path.read_text().replace("shortened", "shorter"))
    (problem,) = fs.check(**{**table, "algorithm": "shortened"})
    assert "there is no algorithm 'shortened'" in problem.cause
    assert "shorter" in problem.cure


def test_a_part_of_the_notebook_stays_that_has_the_name_of_an_earlier_plugin_s() -> None:
    table = {**PLAIN, "plugins": [PARTS / "algorithm.py"]}
    assert fs.check(**{**table, "algorithm": "shortened"}) == []
    assert fs.check(**PLAIN) == []  # the plug-in's parts are gone by now

    @fs.register("shortened", paper="a notebook")
    class Own(fs.Algorithm):
        """The mean update."""

    for _ in range(2):  # each time the parts of plug-ins go
        assert fs.check(**PLAIN, algorithm="shortened") == []
    (problem,) = fs.check(**{**table, "algorithm": "shortened"})
    assert "two algorithms are called 'shortened'" in problem.cause


# -- installed packages ----------------------------------------------------------------------------


def test_installed_packages_register_parts_and_a_broken_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsight.algorithms.base import algorithms
    from fedsight.core import registry

    for name, source in (
        ("good", (PARTS / "algorithm.py").read_text().replace("shortened", "from-a-package")),
        ("bad", "raise RuntimeError('it is out of date')\n"),
    ):
        (tmp_path / f"fedsight_{name}.py").write_text(source)
        info = tmp_path / f"fedsight_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: fedsight-{name}\nVersion: 1\n"
        )
        (info / "entry_points.txt").write_text(f"[fedsight.parts]\n{name} = fedsight_{name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_entry_points_loaded", [])
    monkeypatch.setattr(registry, "BROKEN", {})
    monkeypatch.setattr(algorithms, "_loaded", False)
    try:
        assert "from-a-package" in algorithms.names()
        with pytest.raises(fs.ConfigError) as caught:
            algorithms.get("from-a-pckage")
        assert "fedsight-bad (bad): RuntimeError: it is out of date" in str(caught.value)
        assert "did you mean 'from-a-package'?" in str(caught.value)
        assert cli("check", config(tmp_path)).code == 0
    finally:
        algorithms.remove("from-a-package")
