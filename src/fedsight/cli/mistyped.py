"""Commands and options that do not exist: the near name, in the words of every other error."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from fedsight.core.registry import closest
from fedsight.language.message import Text, message

# What other tools call these commands.
_ELSEWHERE = {
    **dict.fromkeys(("train", "fit", "start", "simulate"), "run"),
    **dict.fromkeys(("test", "infer", "classify", "detect", "segment"), "predict"),
    **dict.fromkeys(("validate", "lint", "verify"), "check"),
    **dict.fromkeys(("continue", "restart"), "resume"),
    **dict.fromkeys(("create", "new", "setup"), "init"),
    **dict.fromkeys(("inspect", "download"), "data"),
}


class Group(TyperGroup):
    """Commands of which a mistyped one is told the near name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As Typer does it, with an error in our words."""
        name = args[0] if args else "-"
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            ctx.fail(str(_no_command(name, list(self.commands))))
        return super().resolve_command(ctx, args)


def _no_command(name: str, commands: list[str]) -> Text:
    if name.endswith(".toml") and "run" in commands:
        whole = f"run {name}"
        return message("no such command '{name}': did you mean '{near}'?", name=name, near=whole)
    known = {word: to for word, to in _ELSEWHERE.items() if to in commands}
    near = closest(name, [*commands, *known])
    if near is None:
        listed = ", ".join(sorted(commands))
        return message("no such command '{name}'; known: {commands}", name=name, commands=listed)
    near = known.get(near, near)
    return message("no such command '{name}': did you mean '{near}'?", name=name, near=near)


def no_option(error: Any) -> Text | None:
    """What to say of an error of Typer's if it is about an option that does not exist.

    The command's help lists all options, and the error points at it, so they are named only if one
    is near.
    """
    name = getattr(error, "option_name", None)
    if type(error).__name__ != "NoSuchOption" or not isinstance(name, str):
        return None
    near = _near_option(name, _options(error.ctx))
    if near is None:
        return message("no such option '{name}'", name=name)
    return message("no such option '{name}': did you mean '{near}'?", name=name, near=near)


def _near_option(name: str, options: list[str]) -> str | None:
    """The option that `name` is nearly the name of; for a letter, the shortest that begins so."""
    if len(name) == 2:
        return min((one for one in options if one.startswith(f"-{name}")), key=len, default=None)
    return closest(name, options)


def _options(context: Any) -> list[str]:
    """The names of all options of a command, and that of the language."""
    if context is None:
        return []
    names = [one for each in context.command.params for one in each.opts if one.startswith("--")]
    return sorted({*names, "--help", "--lang"})
