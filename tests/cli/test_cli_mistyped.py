"""Mistyped commands and options are told the near name, in both languages."""

from __future__ import annotations

import pytest
from command_line import cli


def said(*words: str) -> str:
    answer = cli(*words)
    assert answer.code == 2
    assert "Traceback" not in answer.said
    return " ".join(answer.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["rnu"], "run"),
        (["trian"], "run"),  # what other tools call it
        (["train"], "run"),
        (["comapre"], "compare"),
        (["validat", "a.toml"], "check"),
        (["data", "inspct"], "inspect"),
        (["federation", "stauts"], "status"),
        (["site", "strat"], "start"),
        (["my.toml"], "run my.toml"),
    ],
)
def test_a_mistyped_command(words: list[str], near: str) -> None:
    name = words[-1] if words[-1] in ("inspct", "stauts", "strat", "my.toml") else words[0]
    assert f"no such command '{name}': did you mean '{near}'?" in said(*words)


def test_a_command_that_is_near_to_none_lists_them() -> None:
    text = said("data", "zzz")
    assert "no such command 'zzz'; known: get, inspect, list, split" in text
    assert "known: algorithms, check, compare" in said("zzz")
    assert "没有命令 'zzz'；可用：get, inspect, list, split" in said("data", "zzz", "--lang", "zh")


@pytest.mark.parametrize(
    ("words", "name", "near"),
    [
        (["run", "--exmaple", "fashion"], "--exmaple", "--example"),
        (["run", "--sed=3", "a.toml"], "--sed", "--seed"),
        (["run", "-o", "x", "a.toml"], "-o", "--out"),
        (["data", "inspect", "a", "--jsno"], "--jsno", "--json"),
        (["--versoin"], "--versoin", "--version"),
        (["run", "--hlep"], "--hlep", "--help"),
        (["models", "--langg", "zh"], "--langg", "--lang"),
    ],
)
def test_a_mistyped_option(words: list[str], name: str, near: str) -> None:
    assert f"no such option '{name}': did you mean '{near}'?" in said(*words)


def test_an_option_that_is_near_to_none_points_at_the_help() -> None:
    text = said("run", "--zzz")
    assert "no such option '--zzz'" in text
    assert "did you mean" not in text
    assert "run --help" in text


def test_the_same_in_chinese() -> None:
    assert "没有命令 'inspct'：是不是 'inspect'？" in said("data", "inspct", "--lang", "zh")
    assert "没有选项 '--exmaple'：是不是 '--example'？" in said("run", "--exmaple", "--lang", "zh")
