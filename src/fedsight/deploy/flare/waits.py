"""How long FLARE waits before it looks again, where somebody waits for what it would see.

Before the first round it sleeps for half a second or a second some six times in a row: until there
is a connection, an engine, a job to schedule, a coordinator that answers. To look takes it
microseconds, and a few milliseconds where it lists the jobs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from nvflare.fuel.f3.cellnet import connector_manager
from nvflare.private.fed.app.client import client_train
from nvflare.private.fed.client import client_app_runner, client_runner, fed_client_base
from nvflare.private.fed.server import job_runner

from fedsight.deploy.flare.bounds import replace

# By module: how long FLARE sleeps there, and what becomes of it, in seconds. Other sleeps of the
# module stay as they are, such as those between heartbeats.
SHORTER: Mapping[ModuleType, Mapping[float, float]] = {
    connector_manager: {0.5: 0.05},  # after it has begun to listen for the processes of its jobs
    client_train: {1.0: 0.2},  # until a site is connected; later, until it is stopped
    fed_client_base: {1.0: 0.05},  # until a site's first heartbeat can be sent
    job_runner: {1.0: 0.2},  # until a job is submitted, or has ended
    client_app_runner: {0.5: 0.05},  # until a site knows that its job's process runs
    client_runner: {0.5: 0.05},  # until the job's coordinator answers
}


class Clock:
    """Python's module `time`, with shorter sleeps."""

    def __init__(self, shorter: Mapping[float, float]) -> None:
        """`shorter`: by seconds to sleep, how many it sleeps instead."""
        self._shorter = shorter

    def sleep(self, seconds: float) -> None:
        """Sleep that long, or shorter."""
        time.sleep(self._shorter.get(seconds, seconds))

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def shorten() -> None:
    """Have FLARE look sooner; AttributeError if a module of this version never sleeps."""
    for module, shorter in SHORTER.items():
        replace(module, "time", Clock(shorter))
