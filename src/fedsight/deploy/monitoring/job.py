"""What the process that watches a server or a site is told: as little as its starter needs to know.

Whoever starts it need not import what it reads (PyTorch, for a start).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsight.deploy.monitoring.settings import LogFormat, Side

JOB = "FEDSIGHT_MONITOR"  # an environment variable: arguments could be read by every user


@dataclass(frozen=True)
class Job:
    """What is watched, and for whom."""

    side: Side
    home: str  # the folder of the federation, or of the site
    party: dict[str, str]  # the name of the federation or the site, a part of each line and object
    hooks: dict[str, Any]
    log: LogFormat
    began: float  # when the supervisor did, in seconds since 1970

    def encode(self) -> str:
        """As the process is given it."""
        return json.dumps(asdict(self))

    @property
    def state_folder(self) -> Path:
        """Where what was told is kept."""
        return Path(self.home) / "server" if self.side == "server" else Path(self.home)
