"""`fedsight models`, `fedsight algorithms` and `fedsight tasks`: a line for each part there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsight.cli.output import echo
from fedsight.cli.plugin_files import PluginFiles, import_plugins
from fedsight.language.english import from_english
from fedsight.language.message import message

if TYPE_CHECKING:
    from fedsight.core.registry import Registry
    from fedsight.core.settings import Settings

_SOURCES = ("paper", "source")  # facts that say where a part is from
_COMMON = frozenset({"norm", "weights", "sha256"})  # settings of every model
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _listing(find: Callable[[], Registry[Any]], about: str) -> Callable[..., None]:
    """A command that lists the parts of a registry, those of plug-ins and packages included."""

    def listing_command(as_json: AsJson = False, plugin: PluginFiles = None) -> None:
        import_plugins(plugin)
        registry = find()
        rows = [entry(registry, name) for name in registry.names()]
        if as_json:
            echo(json.dumps(rows, indent=2, ensure_ascii=False, default=str))
            return
        for row in rows:
            echo(line(row))

    listing_command.__doc__ = about
    return listing_command


def entry(registry: Registry[Any], name: str) -> dict[str, Any]:
    """What is known of one part: its name, what it is, where it is from, and its settings."""
    cls, facts = registry.get(name), dict(registry.facts(name))
    about = facts.pop("about")
    origin = "; ".join(facts.pop(key) for key in _SOURCES if key in facts)
    return {"name": name, "about": about, "source": origin, **facts, "settings": _settings(cls)}


def line(row: dict[str, Any]) -> str:
    """One line for a part, its main settings last."""
    settings = [
        key if value == "(required)" else f"{key}={_shown(value)}"
        for key, value in row["settings"].items()
        if key not in _COMMON
    ]
    about = str(from_english(row["about"]))
    parts = [f"{row['name']}: {about.rstrip('.。')}"]
    parts += [f"[{row['source']}]"] if row["source"] else []
    parts += [str(message("settings: {all}", all=", ".join(settings)))] if settings else []
    return "; ".join(parts)


def _settings(cls: type[Settings]) -> dict[str, Any]:
    """The default of each setting."""
    return {
        name: "(required)" if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in cls.model_fields.items()
    }


def _shown(value: Any) -> str:
    if value is None:
        return str(message("none"))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _models() -> Registry[Any]:
    from fedsight.models.base import models

    return models


def _algorithms() -> Registry[Any]:
    from fedsight.algorithms.base import algorithms

    return algorithms


def _tasks() -> Registry[Any]:
    from fedsight.tasks.base import tasks

    return tasks


models_command = _listing(
    _models,
    """List the models: name, what it is, where it is from, and its settings.

    With --plugin, those of your own file are listed too.

    Example: fedsight models
    """,
)
algorithms_command = _listing(
    _algorithms,
    """List the algorithms: name, what it is, its paper, and its settings.

    With --plugin, those of your own file are listed too.

    Example: fedsight algorithms
    """,
)
tasks_command = _listing(
    _tasks,
    """List the tasks: name, what it is, where its measures are from, and its settings.

    With --plugin, those of your own file are listed too.

    Example: fedsight tasks
    """,
)
