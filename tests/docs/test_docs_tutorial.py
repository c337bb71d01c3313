"""The tutorials work as written, in English and in Chinese."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import pytest
from docpages import accept, blocks, prompts, text, typed
from PIL import Image

from fedsight.core.errors import FedSightError
from fedsight.deploy.site.owner import parse_owner
from fedsight.program.config import parse

RUN = "docs/tutorial/first-run.md"
FEDERATION = "docs/tutorial/first-federation.md"
CHINESE = "docs/zh-CN/tutorial.md"
SITES = {"lyon": ("good", "scratch"), "oslo": ("good", "stain"), "turin": ("scratch", "stain")}


def write_images(root: Path) -> None:
    """Stripes, squares or nothing, in noise: learnable in a few rounds."""
    rng = np.random.default_rng(0)
    for site, classes in SITES.items():
        for name in classes:
            folder = root / site / name
            folder.mkdir(parents=True)
            for number in range(20):
                pixels = rng.integers(60, 120, (24, 24, 3))
                if name == "scratch":
                    pixels[number % 24] += 120
                elif name == "stain":
                    pixels[8:16, 8:16] -= 60
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / f"{number:03d}.png")


def test_the_first_run_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "my_images")
    (config,) = blocks(RUN, "toml")
    (tmp_path / "parts.toml").write_text(config)
    said = {}
    for line in prompts(RUN):
        program, *arguments = shlex.split(line)
        assert program == "fedsight"
        said[line] = command_line.done(*arguments).out
    compared = json.loads((tmp_path / "runs/compared/summary.json").read_text())
    assert compared["rounds"] == 5
    assert compared["by_site"].keys() == SITES.keys()
    for made in ("split.svg", "both.html", "parts.onnx", "runs/parts/report.html"):
        assert (tmp_path / made).stat().st_size > 1000
    answers = next(out for line, out in said.items() if line.endswith("--json"))
    assert len(json.loads(answers)) == 40
    check_files(tmp_path / "runs/compared", compared)


def check_files(run: Path, summary: dict[str, Any]) -> None:
    """The reference lists every file of a run folder and every figure in it."""
    reference = text("docs/reference/reference.md").partition("## Run folder")[2]
    line = json.loads((run / "history.jsonl").read_text().splitlines()[0])
    files = [path.name + "/" * path.is_dir() for path in run.iterdir()]
    for name in (*files, *line, *summary):
        assert f"| `{name}` |" in reference


def test_the_first_federation_can_be_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the processes, which `tests/conformance/` starts."""
    monkeypatch.chdir(tmp_path)
    (config,) = blocks(FEDERATION, "toml")
    (tmp_path / "plants.toml").write_text(config)
    for words in typed(FEDERATION):
        accept(words)
        if words[:2] == ["site", "start"]:
            folder = tmp_path / words[2]
            assert (folder / f"{folder.name}.signed.zip").is_file()
        elif words[0] in ("federation", "site", "check") and words[1] not in ("demo", "start"):
            command_line.done(*words)


def test_the_clause_that_the_tutorial_adds_refuses_its_program(tmp_path: Path) -> None:
    (config,) = blocks(FEDERATION, "toml")
    (clause,) = re.findall(r"`(rounds = \d+)` under\s+`\[contract\]`", text(FEDERATION))
    program, _ = parse(tomllib.loads(config), tmp_path)
    owner = f"[data]\nname = 'folder'\npath = 'x'\n[contract]\n{clause}\n"
    with pytest.raises(FedSightError, match="rounds"):
        parse_owner(tomllib.loads(owner), tmp_path).contract.check_program(program)


def test_the_chinese_tutorial_types_what_the_english_ones_type() -> None:
    """The English tutorials are run, so the commands of the Chinese one work too."""
    known = [*prompts(RUN), *prompts(FEDERATION)]
    shown = prompts(CHINESE)
    assert [line for line in shown if line not in known] == []
    assert [known.index(line) for line in shown] == sorted(known.index(line) for line in shown)
    configs = [tomllib.loads(block) for page in (RUN, FEDERATION) for block in blocks(page, "toml")]
    assert [tomllib.loads(block) for block in blocks(CHINESE, "toml")] == configs
