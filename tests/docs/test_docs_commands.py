"""Every command and option that a page names exists."""

from __future__ import annotations

import pytest
from docpages import GROUPS, PAGES, commands, mentions


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_that_are_named_exist(page: str) -> None:
    known = commands()
    for mention in mentions(page):
        words = mention.split()
        while words and words[0].startswith("--"):  # before the command
            flag, *words = words
            assert flag in known[""], mention
            words = words[flag == "--lang" :]
        if not words or words in [[group] for group in GROUPS]:
            continue
        names = (" ".join(words[:length]) for length in (3, 2, 1))  # of a group in a group, first
        name = next((one for one in names if one in known), "")
        assert name, mention
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= known[name], mention
