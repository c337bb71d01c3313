"""`fedsight console` without what keeps attackers out, for tests that attack it.

python weak_console.py console --runs DIR --port 0
"""

from __future__ import annotations

from typing import Any

from jinja2 import Environment
from starlette.datastructures import Headers

from fedsight.cli.app import app
from fedsight.console import access, server, shell
from fedsight.console.access import Guard
from fedsight.console.pages import Console
from fedsight.runs.listing import Listed, look

UNLIMITED = 1 << 40


def weaken() -> None:
    """No session, no origin and no limit is asked for; names are paths, and HTML."""
    Guard._refusal = lambda *_: None  # type: ignore[assignment, method-assign]
    server.MOST_CONNECTIONS = server.MOST_BYTES = UNLIMITED
    server.PATIENCE = float(UNLIMITED)
    access.cookie = cookie
    Console.run = run  # type: ignore[method-assign]
    shell.Environment = environment  # type: ignore[assignment, misc]


def environment(**given: Any) -> Environment:
    """Templates that take what they show for HTML."""
    return Environment(**{**given, "autoescape": False})


def cookie(headers: Headers, name: str) -> str:
    """A cookie, where all headers are believed to be well formed."""
    found = dict(part.split("=", 1) for part in headers.get("cookie", f"{name}=").split("; "))
    return found.get(name, "")


def run(console: Console, name: str) -> Listed | None:
    """Whatever folder a name leads to."""
    folder = console.root / name
    return look(folder) if (folder / "run.json").exists() else None


if __name__ == "__main__":
    weaken()
    app()
