"""The command line in Chinese: no English sentence is left, and nothing but words changes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from command_line import Answer, cli, done, refused, write_config

from fedsight.cli.app import app
from fedsight.language.current import choose, current_language

SENTENCE = re.compile(r"(?:\b[A-Za-z][a-z']*[,:;]? ){3,}[a-z']+")  # four words or more
# What may be English: names in quotes, commands, sources in brackets, licences and credits.
NAMES = re.compile(
    r"'[^']*'|`[^`]*`|\[[^\]]*\]|\([a-z]+(?:, [a-z]+)+\)"
    r"|(?:示例：|许可证：|署名|论文：|数据源：|fedsight |pip install ).*"
)


def english(answer: Answer) -> list[str]:
    """The English sentences that a command printed, without the frames of tables and panels."""
    lines = re.sub(r"[│╭╰─╮╯]", "", answer.said).splitlines()
    text = "\n".join(NAMES.sub("", line) for line in lines)
    return SENTENCE.findall(text) and [found[0] for found in SENTENCE.finditer(text)]


def commands() -> Iterator[tuple[str, ...]]:
    """All commands and groups."""

    def visit(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        for name, below in getattr(command, "commands", {}).items():
            yield from visit(below, (*path, name))

    return visit(typer.main.get_command(app), ())


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("chinese"))


@pytest.fixture(scope="module")
def run(config: Path) -> Path:
    folder = config.parent / "run"
    done("run", config, "--out", folder)
    return folder


def chinese(*arguments: object) -> Answer:
    """A command in Chinese, which must succeed and print no English sentence."""
    answer = done("--lang", "zh", *arguments)
    assert english(answer) == []
    assert re.search("[一-鿿]", answer.said)
    return answer


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_help_is_chinese(path: tuple[str, ...]) -> None:
    answer = chinese(*path, "--help")
    assert "用法：" in answer.out
    assert "显示此帮助并退出。" in answer.out


def test_help_in_english_is_as_typer_prints_it() -> None:
    answer = done("run", "--help")
    assert "Usage: " in answer.out
    assert "Train one model over all sites." in answer.out


@pytest.mark.parametrize(
    "command",
    [
        ("models",),
        ("algorithms",),
        ("tasks",),
        ("data", "list"),
        ("data", "get"),
        ("data", "inspect", "fashion-mnist-12k"),
        ("data", "split", "fashion-mnist-12k", "--split", "dirichlet", "--set", "alpha=0.3"),
        (
            *("privacy", "plan", "--epsilon", "3", "--rounds", "20"),
            *("--population", "5000", "--cohort", "500"),
        ),
    ],
    ids=" ".join,
)
def test_listings_are_chinese(command: tuple[str, ...]) -> None:
    chinese(*command)


def test_the_doctor_is_chinese_and_its_json_is_not() -> None:
    answer = cli("--lang", "zh", "doctor")
    assert english(answer) == []
    assert "FedSight" in answer.out
    found, usual = (cli("doctor", "--json", *words).out for words in (("--lang", "zh"), ()))
    free = re.compile(r"\d+(\.\d+)? [kMGT]?B")  # what is free changes by itself
    assert free.sub("", found) == free.sub("", usual)


def test_a_run_is_chinese(config: Path, tmp_path: Path) -> None:
    answer = chinese("run", config, "--out", tmp_path / "run")
    assert "第 2/2 轮" in answer.err
    assert "联邦训练" in answer.out
    chinese("resume", tmp_path / "run")
    chinese("check", config)
    chinese("data", "inspect", config)
    chinese("compare", config, "--out", tmp_path / "compared")
    chinese("report", tmp_path / "run", "--out", tmp_path / "page.html")


def test_files_do_not_depend_on_the_language(config: Path, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    done("--lang", "zh", "run", config, "--out", other)
    timed = {"seconds", "created", "environment"}

    def plain(path: Path) -> Any:
        return {k: v for k, v in json.loads(path.read_text()).items() if k not in timed}

    for name in ("summary.json", "evaluation.json", "run.json"):
        assert plain(other / name) == plain(run / name)
    assert (other / "run.toml").read_bytes() == (run / "run.toml").read_bytes()


def test_json_does_not_depend_on_the_language(run: Path, tmp_path: Path) -> None:
    from PIL import Image

    image = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(image)
    for command in (
        ("predict", run, image, "--json"),
        ("models", "--json"),
        ("data", "inspect", "fashion-mnist-12k", "--json"),
    ):
        assert done(*command, "--lang", "zh").out == done(*command).out


WRONG = [
    ((), "应给出配置文件或 --example NAME（二者之一）"),
    (("nowhere.toml",), "没有配置文件 nowhere.toml"),
    (("--example", "fashin"), "没有示例 'fashin'"),
    (("CONFIG", "--set", "train.lr=high"), "应为数"),
    (("CONFIG", "--set", "rounds.rounds=0"), "应为不小于 1 的数"),
    (("CONFIG", "--set", "train.lrr=1"), "是不是 'lr'？"),
    (("CONFIG", "--set", "algorithm.name=fedavgg"), "没有算法 'fedavgg'"),
    (("CONFIG", "--set", "speed.device=gpu"), "请写 'auto'、'cpu'、'cuda'、'cuda:N' 或 'mps'"),
    (("CONFIG", "--set", "split.sites=4000"), "超过现有的 200 个训练样本"),
    (("CONFIG", "--set", "data.path=nowhere"), "改正路径，或创建它"),
    (("CONFIG", "--set", "model.name=resnet18"), "没有模型 'resnet18'"),
    (("CONFIG", "--set", "rounds.cohort=9"), "无法从 3 个站点中抽取 9 个"),
    (("CONFIG", "--set", "task.name=detect"), "任务 'detect'"),
    (("CONFIG", "--workers", "0"), "'--workers' 的值无效"),
]


@pytest.mark.parametrize(("arguments", "told"), WRONG, ids=lambda value: str(value)[:40])
def test_errors_of_a_first_run_are_chinese(
    arguments: tuple[str, ...], told: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    words = [str(config) if one == "CONFIG" else one for one in arguments]
    answer = (
        cli("--lang", "zh", "check", *words)
        if "--workers" not in words
        else cli("--lang", "zh", "run", *words)
    )
    assert answer.code in (2, 3), answer.said
    assert told in answer.err
    assert english(answer) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("rn",), "没有命令 'rn'：是不是 'run'？"),
        (("run", "--nothing"), "没有选项 '--nothing'"),
        (("resume",), "缺少参数 'RUN'。"),
        (("run", "--rounds"), "选项 '--rounds' 需要一个值。"),
        (("run", "a.toml", "b.toml"), "多余的参数"),
    ],
)
def test_usage_errors_are_chinese(arguments: tuple[str, ...], told: str) -> None:
    answer = cli(*arguments, "--lang", "zh")
    assert answer.code == 2
    assert told in answer.err
    assert "错误" in answer.err
    assert english(answer) == []


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("option", [("--lang", "zh"), ("--lang=zh",)])
def test_the_option_may_stand_anywhere(place: int, option: tuple[str, ...]) -> None:
    words = ["data", "get"]
    words[place:place] = option
    assert "数据集" in done(*words).out


def test_the_environment_decides_without_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_MESSAGES", "zh_CN.UTF-8")
    assert "数据集" in done("data", "get").out
    assert "data set" in done("data", "get", "--lang", "en").out


def test_the_option_holds_for_one_command() -> None:
    done("data", "get", "--lang", "zh")
    assert "data set" in done("data", "get").out


@pytest.mark.parametrize("arguments", [("--lang", "fr"), ("--lang=",), ("data", "get", "--lang")])
def test_another_language_is_refused(arguments: tuple[str, ...]) -> None:
    said = refused(2, *arguments)
    assert "is not a language of FedSight" in said
    assert "choose one of en, zh" in said


def test_what_follows_two_dashes_is_no_option() -> None:
    said = refused(2, "check", "--", "--lang")
    assert "there is no config file --lang" in said


def test_a_terminal_without_chinese_characters_gets_english(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LC_MESSAGES", "zh_CN")
    for encoding, language in (("ascii", "en"), ("latin-1", "en"), ("gbk", "zh"), ("utf-8", "zh")):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(SystemExit):
            app(["--version"])
        found = current_language()
        monkeypatch.undo()
        monkeypatch.setenv("LC_MESSAGES", "zh_CN")
        choose(None)
        assert found == language, encoding


def test_a_process_of_its_own_follows_its_locale() -> None:
    environment = {**os.environ, "LC_ALL": "zh_CN.UTF-8", "PYTHONIOENCODING": "utf-8"}
    found = subprocess.run(
        [sys.executable, "-m", "fedsight", "run"],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert found.returncode == 2
    assert found.stderr.decode().startswith("错误：配置中有 1 个问题")
