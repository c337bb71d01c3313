"""The operator's settings of the server (`server.toml`), which need not be there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedsight.core.errors import ConfigError
from fedsight.deploy.membership.retention import Keep
from fedsight.program import config

SETTINGS_FILE = "server.toml"  # in the federation's folder


@dataclass(frozen=True)
class ServerSettings:
    """All of `server.toml`."""

    keep: Keep = field(default_factory=Keep)


def read_server(folder: Path) -> ServerSettings:
    """The settings of the server of the federation in `folder`; ConfigError names each problem."""
    path = folder / SETTINGS_FILE
    table = config.read(path) if path.exists() else {}
    problems = config.unknown(table, ["keep"], "")
    keep = Keep()
    try:
        made = config.section("keep", Keep, table.get("keep", {}), folder)
        assert isinstance(made, Keep)
        keep = made
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return ServerSettings(keep)
