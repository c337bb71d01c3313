"""The package as others install it: a wheel works outside the checkout, and says the truth."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml
from docpages import ROOT, text
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import fedsight

QUIET = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
PIP = (sys.executable, "-m", "pip")
LATER = "language/zh/LC_MESSAGES/some.mo"  # a kind of file that there may be none of


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the checkout has of the package."""
    made = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, made)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", made / "src", ignore=ignored)
    later = made / "src/fedsight" / LATER
    later.parent.mkdir(parents=True, exist_ok=True)
    later.write_bytes(b"")
    return made


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` makes of the copy, in a folder of its own."""
    target = tmp_path_factory.mktemp("installed")
    subprocess.run([*PIP, "install", *QUIET, "--target", target, "."], check=True, cwd=source)
    return target


def files(folder: Path) -> set[str]:
    """The files of the package below a folder, without caches and what only translators need."""
    found = (path.relative_to(folder).as_posix() for path in (folder / "fedsight").rglob("*.*"))
    return {name for name in found if "__pycache__" not in name and not name.endswith(".po")}


def test_a_wheel_has_every_file_of_the_package(
    source: Path, installed: Path, tmp_path: Path
) -> None:
    subprocess.run([*PIP, "wheel", *QUIET, "--wheel-dir", tmp_path, "."], check=True, cwd=source)
    (wheel,) = tmp_path.glob("fedsight-*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("fedsight/")}
    assert f"fedsight/{LATER}" in names
    assert {"fedsight/py.typed", "fedsight/program/examples/fashion.toml"} <= names
    assert names == files(source / "src") == files(installed)


def alone(target: Path) -> Path:
    """A folder that hides every package that `pip install fedsight` would not have brought."""
    needed, left = {"fedsight"}, tomllib.loads(text("pyproject.toml"))["project"]["dependencies"]
    left = [Requirement(one) for one in left]
    while left:
        one = left.pop()
        wanted = [{"extra": extra} for extra in ("", *one.extras)]
        if one.name in needed or not (one.marker is None or one.marker.evaluate()):
            continue
        needed.add(canonicalize_name(one.name))
        for line in metadata.requires(one.name) or []:
            inner = Requirement(line)
            if inner.marker is None or any(inner.marker.evaluate(extra) for extra in wanted):
                left.append(inner)
    hidden = {
        module
        for module, owners in metadata.packages_distributions().items()
        if not needed & {canonicalize_name(owner) for owner in owners}
    }
    assert {"timm", "onnx", "nvflare", "pytest"} <= hidden
    assert not {"torch", "torchvision", "cryptography"} & hidden
    target.mkdir()
    (target / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "found = PathFinder.find_spec\n"
        f"hidden = {sorted(hidden)}\n"
        "PathFinder.find_spec = lambda name, *rest: (\n"
        "    None if name.partition('.')[0] in hidden else found(name, *rest))\n"
    )
    return target


COMMANDS = """
import contextlib, io, json, sys
from fedsight.cli import main
from fedsight.language.current import choose
answers = sys.stdout
for line in sys.stdin:
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["fedsight", *json.loads(line)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    choose(None)
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


class Place:
    """Runs commands in `folder` with `paths` before all that is installed, one after the other in
    one process: to start one for each would take longer than they do."""

    def __init__(self, folder: Path, *paths: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMANDS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        )

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def __call__(self, *words: str, code: int = 0) -> str:
        """What a command says."""
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        asked.write(json.dumps(words) + "\n")
        asked.flush()
        ended, out, err = json.loads(answers.readline())
        assert ended == code, err
        return out + err * (code > 0)


def test_an_installed_package_works_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    with Place(tmp_path, installed) as said:
        assert said("--version") == f"fedsight {fedsight.__version__}\n"
        assert "fashion is fine" in said("check", "--example", "fashion")
        assert "fashion 没有问题" in said("check", "--example", "fashion", "--lang", "zh")
        options = ("--rounds", "1", "--workers", "1", "--set", "train.epochs=1")
        assert "Report: " in said("run", "--example", "fashion", *options, "--out", "run")
    assert "</html>" in (tmp_path / "run" / "report.html").read_text()
    (facts,) = installed.glob("fedsight-*.dist-info")
    assert facts.name == f"fedsight-{fedsight.__version__}.dist-info"
    told = (facts / "METADATA").read_text()
    assert "Classifier: Typing :: Typed" in told
    assert "License-Expression: Apache-2.0" in told


def test_a_folder_of_images_needs_no_extra(installed: Path, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for name in ("good", "scratch"):
        folder = tmp_path / "parts" / name
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = draws.integers(0, 255, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    with Place(tmp_path, alone(tmp_path / "hiding"), installed) as said:
        said("init", "parts", "--yes")
        options = ("--rounds", "1", "--workers", "1", "--out", "run")
        assert "Report: " in said("run", "parts.toml", *options)
        assert "</html>" in (tmp_path / "run" / "report.html").read_text()
        data = '[data]\nname = "folder"\npath = "parts"\n'
        model = '[model]\nname = "timm"\narchitecture = "resnet18"\n'
        (tmp_path / "timm.toml").write_text(data + model)
        refused = said("check", "timm.toml", code=2)
        assert "model.name: networks of timm need the package 'timm'" in refused
        assert "pip install 'fedsight[timm]'" in refused
        for extra, command in (
            ("export", ("export", "run")),
            ("tensorboard", ("run", "parts.toml", *options[:-1], "other", "--log", "tensorboard")),
            ("privacy", ("check", "parts.toml", "--set", "privacy.name=central")),
            ("deploy", ("federation", "init", "wards")),
        ):
            code = {"export": 1, "tensorboard": 1, "privacy": 2, "deploy": 8}[extra]
            assert f"pip install 'fedsight[{extra}]'" in said(*command, code=code), extra
        assert "extra timm: missing (timm)" in said("doctor")
        picture = ("--sites", "2", "--picture", "split.svg")
        drawn = said("data", "split", "fashion-mnist-12k", *picture, code=3)
        assert "a picture of a split needs matplotlib" in drawn
        assert "pip install 'fedsight[plots]'" in drawn


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads(text("pyproject.toml"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "fedsight.__version__"}
    assert f"## [{fedsight.__version__}]" in text("CHANGELOG.md")
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["version"] == fedsight.__version__
    assert citation["license"] == project["project"]["license"]


def test_issue_templates_are_forms() -> None:
    paths = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert {"bug", "feature", "privacy"} <= {path.stem for path in paths}
    for path in paths:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name == "config.yml":
            assert form["blank_issues_enabled"] is True
            continue
        assert form["name"]
        assert form["description"]
        assert {item["type"] for item in form["body"]} <= {"markdown", "textarea", "checkboxes"}
    warned = yaml.safe_load(text(".github/ISSUE_TEMPLATE/privacy.yml"))["body"][0]["attributes"]
    assert "SECURITY.md says how to report it in private" in warned["value"]
    assert "Do not open a public issue" in text("SECURITY.md")
    assert re.search(r"threat-model\.md", text("SECURITY.md"))
