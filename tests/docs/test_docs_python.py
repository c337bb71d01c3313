"""The notebook and the how-to on own parts: their code runs as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import done

DOCS = Path(__file__).parents[2] / "docs"


def execute(code: str, folder: Path) -> str:
    """Run `code` as a script without a guard, as a notebook's cells would; what it printed."""
    (folder / "script.py").write_text(code)
    answer = subprocess.run(
        [sys.executable, "-W", "error", "script.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert "Traceback" not in answer.stderr
    assert "Warning" not in answer.stderr
    return answer.stdout


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(language, file, text) of each block of code on a page."""
    text = (DOCS / page).read_text()
    return re.findall(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```", text, re.M | re.S)


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    notebook = json.loads((DOCS / "notebooks/first-federation.ipynb").read_text())
    cells = ["".join(one["source"]) for one in notebook["cells"] if one["cell_type"] == "code"]
    assert not any(one.get("outputs") for one in notebook["cells"])  # none that could be stale
    said = execute("\n\n".join(cells), tmp_path)
    assert "round 2: accuracy" in said
    own = re.search(r"MyNet accuracy (\d\.\d+)", said)
    assert own is not None
    assert float(own[1]) > 0.3  # it learns
    assert "algorithm.name: there is no algorithm 'scafold'" in said
    assert "train.lr" in said
    figures = dict(re.findall(r"^(alone_mean|federated|pooled): (\d\.\d+)$", said, re.M))
    assert len(figures) == 3
    assert (tmp_path / "runs/compared/report.html").is_file()


def test_the_python_of_the_how_to_runs_in_its_order(tmp_path: Path) -> None:
    code = [text for language, file, text in blocks("how-to/own-parts.md")
            if language == "python" and not file]  # fmt: skip
    assert len(code) == 6
    said = execute("\n".join(code), tmp_path)
    assert "Among three 0." in said


def test_the_plugin_of_the_how_to_works_at_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks("how-to/own-parts.md")
    for _, file, text in found:
        if file:
            (tmp_path / file).write_text(text)
    (commands,) = [text for language, _, text in found if language == "sh"]
    for command in commands.splitlines():
        done(*command.split()[1:])
    assert (tmp_path / "runs/mine/export.safetensors").is_file()
