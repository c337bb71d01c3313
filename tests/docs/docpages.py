"""The repository's Markdown pages, their code blocks and links, and the commands they show."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import command_line

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh-CN.md")
PAGES = (
    *READMES,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
)
GROUPS = ("data", "faces", "federation", "operator", "privacy", "runs", "server", "site", "tokens")


@cache
def text(name: str) -> str:
    """The content of a file, by its path in the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text(name), re.M | re.S)


def prose(name: str) -> str:
    """The page without its fenced code blocks."""
    return re.sub(r"^```.*?^```$", "", text(name), flags=re.M | re.S)


def prompts(name: str) -> list[str]:
    """The commands typed in console blocks, without prompt and comment."""
    lines = "".join(blocks(name, "console")).splitlines()
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ").partition("  # ")[0].strip() for line in lines]


def typed(name: str) -> list[list[str]]:
    """The words after `fedsight` of each typed command, in order."""
    lines = [shlex.split(line) for line in prompts(name)]
    assert {words[0] for words in lines} == {"fedsight"}
    return [words[1:] for words in lines]


def accept(words: list[str]) -> dict[str, Any]:
    """The parameters that the command line makes of `words`; click refuses what does not parse."""
    command: Any = command_line.commands()
    rest = list(words)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    found: dict[str, Any] = command.make_context("fedsight", rest).params
    return found


@cache
def commands() -> dict[str, set[str]]:
    """Every command with its options; under "", those of `fedsight` itself."""
    found: dict[str, set[str]] = {}

    def walk(group: Any, path: tuple[str, ...]) -> None:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                walk(command, (*path, name))
            else:
                flags = {flag for item in command.params for flag in item.opts}
                found[" ".join([*path, name])] = flags | {"--help"}

    whole: Any = command_line.commands()
    walk(whole, ())
    anywhere = {flag for item in whole.params for flag in item.opts}
    return {"": anywhere, **{name: flags | anywhere for name, flags in found.items()}}


def mentions(name: str) -> list[str]:
    """What the page says after `fedsight` in code, inline or in a block of commands."""
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(name))]
    lines = "".join(blocks(name, "console") + blocks(name, "bash")).splitlines()
    found = [*spans, *(line.removeprefix("$ ") for line in lines)]
    return [item.removeprefix("fedsight ") for item in found if item.startswith("fedsight ")]


def links(name: str) -> list[str]:
    """The targets of all links and pictures of the page."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(name))


@cache
def anchors(name: str) -> set[str]:
    """The anchors that GitHub gives the headings of the page."""
    found: list[str] = []
    for head in re.findall(r"^#+ (.+)$", prose(name), re.M):
        slug = re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return set(found)
