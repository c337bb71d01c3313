"""The operator's settings of the server (`server.toml`), which need not be there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsight.core.errors import ConfigError
from fedsight.core.settings import Settings
from fedsight.deploy.membership.retention import Keep
from fedsight.deploy.monitoring.settings import HookSettings, MonitoringSettings, check

SETTINGS_FILE = "server.toml"  # in the federation's folder
SECTIONS: dict[str, type[Settings]] = {
    "keep": Keep,
    "monitoring": MonitoringSettings,
    "hooks": HookSettings,
}


@dataclass(frozen=True)
class ServerSettings:
    """All of `server.toml`."""

    keep: Keep = field(default_factory=Keep)
    monitoring: MonitoringSettings = field(default_factory=MonitoringSettings)
    hooks: HookSettings = field(default_factory=HookSettings)


def read_server(folder: Path) -> ServerSettings:
    """The settings of the server of the federation in `folder`; ConfigError names each problem."""
    path = folder / SETTINGS_FILE
    if not path.exists():
        return ServerSettings()
    from fedsight.program import config  # needs PyTorch, which a server does without

    table = config.read(path)
    problems = config.unknown(table, list(SECTIONS), "")
    made: dict[str, Any] = {}
    for section, kind in SECTIONS.items():
        try:
            made[section] = config.section(section, kind, table.get(section, {}), folder)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    found = ServerSettings(**made)
    check("server", found.monitoring, found.hooks)
    return found
