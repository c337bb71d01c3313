"""The option `--lang`, and help and usage errors in the current language.

`--lang` may stand anywhere in a command, so it is taken out of the arguments before they are read:
help is written, and most errors are found, while they are being read.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from rich.text import Text
from typer import rich_utils

from fedsight.cli.mistyped import Group, no_option
from fedsight.core.errors import ConfigError, Problem
from fedsight.language.current import (
    LANGUAGES,
    Language,
    choose,
    current_language,
    environment_language,
)
from fedsight.language.english import from_english
from fedsight.language.message import Text as Told
from fedsight.language.message import message

OPTION = "--lang"
# What Typer says in its own words, by the name that it has in `typer.rich_utils`.
_TYPERS = {
    "ARGUMENTS_PANEL_TITLE": message("Arguments"),
    "OPTIONS_PANEL_TITLE": message("Options"),
    "COMMANDS_PANEL_TITLE": message("Commands"),
    "ERRORS_PANEL_TITLE": message("Error"),
    "ABORTED_TEXT": message("Aborted."),
    "DEFAULT_STRING": message("[default: {{}}]"),
    "REQUIRED_LONG_STRING": message("[required]"),
    "RICH_HELP": message("Try [blue]'{{command_path}} {{help_option}}'[/] for help."),
}


class _FoldingText(Text):
    """A help text without blanks, as Chinese is, is broken into lines instead of being cut off."""

    @classmethod
    def from_markup(cls, text: str, **options: Any) -> Text:
        return super().from_markup(text, **{"overflow": "fold", **options})


_UsualFormatter: Any = typer.Context.formatter_class


class _Formatter(_UsualFormatter):  # type: ignore[misc]
    """Writes the line that says how a command is used."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, prefix or str(message("Usage: ")))


class _Context(typer.Context):
    formatter_class = _Formatter


class LocalisedGroup(Group):
    """The whole command line, in the language of `--lang` or of the environment."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, **options: Any
    ) -> Any:
        """Choose the language, then run the command."""
        choose(None)
        language, left = _taken(sys.argv[1:] if args is None else args)
        choose(language or _readable(environment_language(os.environ)))
        told = {name: str(text) for name, text in _TYPERS.items()}
        for name, value in {**told, "Text": _FoldingText}.items():
            setattr(rich_utils, name, value)
        _tell(self)
        return super().main(args=left, **options)

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """As Typer does it, with errors in the current language."""
        with _usage_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, context: Any) -> Any:
        """As Typer does it, with errors in the current language."""
        with _usage_errors():
            return super().invoke(context)


def _taken(arguments: Sequence[str]) -> tuple[Language | None, list[str]]:
    """The language asked for, and all other arguments.

    Raises:
        ConfigError: a language that there is not.
    """
    asked: str | None = None
    left: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            left += [word, *words]
        elif word == OPTION:
            asked = next(words, "")
        elif word.startswith(f"{OPTION}="):
            asked = word.removeprefix(f"{OPTION}=")
        else:
            left.append(word)
    if asked is None:
        return None, left
    for language in LANGUAGES:
        if asked == language:
            return language, left
    cause = f"'{asked}' is not a language of FedSight"
    raise ConfigError([Problem(OPTION, cause, f"choose one of {', '.join(LANGUAGES)}")])


def _readable(language: Language) -> Language:
    """English where the terminal's encoding has no Chinese characters."""
    try:
        "中".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (LookupError, UnicodeEncodeError):
        return "en"
    return language


def _tell(command: Any) -> None:
    """Put the help of a command, and of all below it, into the current language, once."""
    if current_language() == "en" or command.context_class is _Context:
        return
    command.context_class = _Context
    command.help = told_help(command.help)
    usual = command.get_help_option

    def get_help_option(context: Any) -> Any:
        option = usual(context)
        option.help = told_help(option.help)
        return option

    command.get_help_option = get_help_option
    for parameter in command.params:
        if getattr(parameter, "help", None):
            parameter.help = told_help(parameter.help)
    for below in getattr(command, "commands", {}).values():
        _tell(below)


def told_help(text: str | None) -> str:
    """A help text in the current language, paragraph by paragraph."""
    return "\n\n".join(str(_told(one)) for one in paragraphs(text or ""))


def _told(paragraph: str) -> Told:
    name, _, command = paragraph.partition(": ")
    if name == "Example":
        return message("Example: {command}", command=command)
    return from_english(paragraph)


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a help text, each as one line."""
    return [" ".join(one.split()) for one in text.split("\n\n") if one.strip()]


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Meanwhile, an error of Typer's tells its message in our words and the current language."""
    try:
        yield
    except Exception as error:
        told = getattr(error, "format_message", None)
        if told is not None:
            text = str(no_option(error) or from_english(told()))
            error.format_message = lambda: text  # type: ignore[attr-defined]
        raise
