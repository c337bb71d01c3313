"""The configs of the page on medical images are ones that the program takes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from fedsight.program.config import parse

PAGE = Path(__file__).parents[2] / "docs" / "medical.md"
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_config_of_the_page_is_taken(block: str, tmp_path: Path) -> None:
    program, _ = parse(tomllib.loads(block), base=tmp_path)
    missing = {"data.path"}  # the images are the reader's own
    assert {problem.where for problem in program.check()} <= missing


def test_there_are_some() -> None:
    assert len(BLOCKS) == 4
