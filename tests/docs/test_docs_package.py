"""The package as others install it: a wheel works outside the checkout, and says the truth."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from docpages import ROOT, text

import fedsight


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout and installed into a folder of its own."""
    base = tmp_path_factory.mktemp("package")
    source, target = base / "source", base / "installed"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", ignore=ignored)
    quiet = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", *quiet, "--wheel-dir", base, source], check=True)
    (wheel,) = base.glob("fedsight-*.whl")
    subprocess.run([*pip, "install", *quiet, "--target", target, wheel], check=True)
    return target


def test_a_wheel_works_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    def said(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        made = subprocess.run(
            [sys.executable, "-m", "fedsight", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
        )
        assert made.returncode == 0, made.stderr
        return made.stdout

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


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads(text("pyproject.toml"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "fedsight.__version__"}
    assert f"## [{fedsight.__version__}]" in text("CHANGELOG.md")
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["version"] == fedsight.__version__
    assert citation["license"] == project["project"]["license"]


def test_issue_templates_are_forms() -> None:
    for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name == "config.yml":
            assert form["blank_issues_enabled"] is True
            continue
        assert form["name"]
        assert form["description"]
        assert {item["type"] for item in form["body"]} <= {"markdown", "textarea", "checkboxes"}
    assert re.search(r"threat-model\.md", text("SECURITY.md"))
