"""What the documents tell a reader to type works as written."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tinyrun
import typer
from PIL import Image

from fedsight.algorithms.base import algorithms
from fedsight.cli.app import app
from fedsight.core.registry import Registry
from fedsight.data.base import sources
from fedsight.data.partition import splits
from fedsight.models.base import models
from fedsight.program.config import parse
from fedsight.tasks.base import tasks

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh-CN.md")
PAGES = (
    *READMES,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{name}.md" for name in ("tutorial", "reference", "architecture")),
    "docs/how-it-is-measured.md",
    "docs/data.md",
    "docs/federation.md",
    "docs/threat-model.md",
)
GROUPS = ("data", "faces", "federation", "privacy", "server", "site")
SITES = {"lyon": ("good", "scratch"), "oslo": ("good", "stain"), "turin": ("scratch", "stain")}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text(name), re.M | re.S)


def prompts(name: str) -> list[str]:
    """The lines typed in console blocks."""
    lines = "".join(blocks(name, "console")).splitlines()
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ").partition("  # ")[0].strip() for line in lines]


def write_images(root: Path) -> None:
    """Stripes, dots or nothing, in noise: enough to be learnt in a few rounds."""
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


def test_the_tutorial_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "my_images")
    (config,) = blocks("docs/tutorial.md", "toml")
    (tmp_path / "parts.toml").write_text(config)
    said = {}
    for line in prompts("docs/tutorial.md"):
        program, *arguments = shlex.split(line)
        assert program == "fedsight"
        said[line] = tinyrun.done(*arguments).out
    compared = json.loads((tmp_path / "runs/compared/summary.json").read_text())
    assert compared["rounds"] == 5
    assert compared["by_site"].keys() == SITES.keys()
    for made in ("split.svg", "both.html", "parts.onnx", "runs/parts/report.html"):
        assert (tmp_path / made).stat().st_size > 1000
    told = next(out for line, out in said.items() if line.endswith("--json"))
    assert len(json.loads(told)) == 40
    check_files(tmp_path / "runs/compared", compared)


def check_files(run: Path, summary: dict[str, Any]) -> None:
    """The reference lists every file of a run folder and every figure in it."""
    reference = text("docs/reference.md").partition("## Run folder")[2]
    line = json.loads((run / "history.jsonl").read_text().splitlines()[0])
    files = [path.name + "/" * path.is_dir() for path in run.iterdir()]
    for name in (*files, *line, *summary):
        assert f"| `{name}` |" in reference


def commands() -> dict[str, set[str]]:
    """Every command with its options."""
    found: dict[str, set[str]] = {}

    def walk(group: Any, path: tuple[str, ...]) -> None:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                walk(command, (*path, name))
            else:
                flags = {flag for item in command.params for flag in item.opts}
                found[" ".join([*path, name])] = flags | {"--help"}

    walk(typer.main.get_command(app), ())
    return found


def mentions(name: str) -> list[str]:
    """What the page says after `fedsight`, in code."""
    code = re.sub(r"^```.*?^```$", "", text(name), flags=re.M | re.S)
    spans = re.findall(r"`([^`]+)`", code)
    lines = "".join(blocks(name, "console") + blocks(name, "bash")).splitlines()
    found = [*spans, *(line.removeprefix("$ ") for line in lines)]
    return [item.removeprefix("fedsight ") for item in found if item.startswith("fedsight ")]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_that_are_named_exist(page: str) -> None:
    known = commands()
    for mention in mentions(page):
        words = mention.split()
        if words in [[group] for group in GROUPS]:
            continue
        name = " ".join(words[: 2 if words[0] in GROUPS else 1])
        assert name in known, mention
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= known[name], mention


@pytest.mark.parametrize("readme", READMES)
def test_readme_lists_every_command_and_real_make_targets(readme: str) -> None:
    page = text(readme)
    for name in commands():
        assert f"| `fedsight {name}" in page
    makefile = text("Makefile")
    typed = [line.split() for line in prompts(readme)]
    targets = {words[1] for words in typed if words[0] == "make"}
    targets |= set(re.findall(r"`make (\w+)`", page))
    assert {"run", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("readme", READMES)
def test_readme_config_is_a_program(readme: str, tmp_path: Path) -> None:
    (config,) = blocks(readme, "toml")
    program, _ = parse(tomllib.loads(config), tmp_path)
    (tmp_path / "my_images").mkdir()
    assert program.check() == []


def test_both_readmes_say_the_same() -> None:
    english, chinese = READMES
    assert blocks(english, "toml") == blocks(chinese, "toml")
    assert prompts(english) == prompts(chinese)
    assert sorted(mentions(english)) == sorted(mentions(chinese))
    assert text(english).count("\n#") == text(chinese).count("\n#")
    for pattern in (r"\d+(?:\.\d+)?\s?%", r"\{\{\w+\}\}", r"\]\(((?!README)[^)]+)\)"):
        assert sorted(re.findall(pattern, text(english))) == sorted(
            re.findall(pattern, text(chinese))
        )


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if path.endswith(".png") and "{{" in text(page):
            continue  # the picture comes with the measured figures
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, target


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test registers is forgotten afterwards."""
    registries: tuple[Registry[Any], ...] = (sources, splits, models, tasks, algorithms)
    for registry in registries:
        registry.names()
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
        monkeypatch.setattr(registry, "_facts", dict(registry._facts))


@pytest.mark.usefixtures("own_registries")
def test_the_examples_for_contributors_work(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "contributed"}
    algorithm = blocks("CONTRIBUTING.md", "python")[0]
    assert len(algorithm.splitlines()) < 60
    for code in blocks("CONTRIBUTING.md", "python"):
        exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
    for part, count in (("train", 30), ("test", 10)):
        np.save(tmp_path / f"{part}_images.npy", np.zeros((count, 8, 8), np.uint8))
        np.save(tmp_path / f"{part}_labels.npy", np.arange(count) % 3)
    opened = names["Npy"](path=tmp_path).open()
    assert opened.classes == ("0", "1", "2")
    partition = names["Sorted"](sites=3).divide(opened.train, 3, 0)
    assert [partition.size(site) for site in range(3)] == [10, 10, 10]
    plain = tiny.learn(tiny.federation(model={"name": "linear"}))
    focal = tiny.federation(model={"name": "linear"}, task={"name": "focal", "gamma": 0.0})
    assert (tiny.learn(focal).vector - plain.vector).abs().max() < 1e-6
