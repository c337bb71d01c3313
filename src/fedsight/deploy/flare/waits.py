"""How long FLARE waits before it looks again, where somebody waits for what it would see.

Before the first round it sleeps for half a second or a second some seven times in a row: until
there is a connection, an engine, a job to schedule, a coordinator that answers. To look takes it
microseconds, and a few milliseconds where it lists the jobs.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from nvflare.fuel.f3.mpm import MainProcessMonitor

from fedsight.deploy.flare.bounds import replace

_APP, _FED = "nvflare.private.fed.app", "nvflare.private.fed"
CLIENT_TRAIN = f"{_APP}.client.client_train"
_LISTENING = {"nvflare.fuel.f3.cellnet.connector_manager": {0.5: 0.05}}
# By the module that a process runs, and by module: how long FLARE sleeps there, and what becomes of
# it, in seconds. Other sleeps of a module stay as they are, such as those between heartbeats.
SHORTER: Mapping[str, Mapping[str, Mapping[float, float]]] = {
    CLIENT_TRAIN: {
        **_LISTENING,  # after it has begun to listen for the processes of its jobs
        CLIENT_TRAIN: {1.0: 0.2},  # until the site is connected; later, until it is stopped
        f"{_FED}.client.fed_client_base": {1.0: 0.05},  # until a first heartbeat can be sent
    },
    f"{_APP}.client.worker_process": {
        f"{_FED}.client.client_app_runner": {0.5: 0.05},  # until the site knows that it runs
        f"{_FED}.client.client_runner": {0.5: 0.05},  # until the coordinator answers
    },
    f"{_APP}.server.server_train": {
        **_LISTENING,
        f"{_FED}.server.job_runner": {1.0: 0.2},  # until a job is submitted, or has ended
    },
    f"{_APP}.server.runner_process": {
        f"{_FED}.server.server_engine": {1.0: 0.05},  # until it hears which sites take part
    },
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


def shorten(entry: str) -> None:
    """Have the process that runs the module `entry` look sooner.

    Raises AttributeError if one of FLARE's modules never sleeps in this version.
    """
    for name, shorter in SHORTER.get(entry, {}).items():
        replace(importlib.import_module(name), "time", Clock(shorter))
        if name == entry:
            _shorten_main(Clock(shorter))


def _shorten_main(clock: Clock) -> None:
    """The module that a process runs is executed once more, under another name: it sees `clock`
    from when its function `main` is called."""
    run: Callable[..., Any] = MainProcessMonitor.run

    def run_sooner(main_func: Any, *given: Any, **named: Any) -> Any:
        main_func.__globals__["time"] = clock
        return run(main_func, *given, **named)

    MainProcessMonitor.run = run_sooner
