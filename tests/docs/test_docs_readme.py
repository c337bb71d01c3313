"""Both READMEs list every command, show a valid config, and agree with each other."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from docpages import READMES, blocks, commands, mentions, prompts, text

from fedsight.program.config import parse


@pytest.mark.parametrize("readme", READMES)
def test_readme_lists_every_command_and_real_make_targets(readme: str) -> None:
    page = text(readme)
    for name in filter(None, commands()):
        assert f"| `fedsight {name}" in page
    makefile = text("Makefile")
    words = [line.split() for line in prompts(readme)]
    targets = {line[1] for line in words if line[0] == "make"}
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


@pytest.mark.parametrize("readme", READMES)
def test_the_first_screen_has_the_two_commands(readme: str) -> None:
    assert [line.split("#")[0].strip() for line in prompts(readme)[:2]] == ["make run", "make test"]
    assert text(readme).index("make test") < 1500


def test_both_readmes_say_the_same() -> None:
    english, chinese = READMES
    assert blocks(english, "toml") == blocks(chinese, "toml")
    code = [ast.dump(ast.parse("".join(blocks(page, "python")))) for page in READMES]
    assert code[0] == code[1]
    assert prompts(english) == prompts(chinese)
    assert sorted(mentions(english)) == sorted(mentions(chinese))
    assert text(english).count("\n#") == text(chinese).count("\n#")
    for pattern in (r"\d+(?:\.\d+)?\s?%",):
        assert sorted(re.findall(pattern, text(english))) == sorted(
            re.findall(pattern, text(chinese))
        )
    targets = [
        set(re.findall(r"\]\(((?!README|docs/tutorial|docs/zh-CN)[^)]+)\)", text(page)))
        for page in READMES
    ]
    assert targets[0] == targets[1]
