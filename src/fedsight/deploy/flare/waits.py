"""How long FLARE waits before it looks again, where somebody waits for what it would see.

Before the first round it sleeps for half a second or a second some seven times in a row: until
there is a connection, an engine, a job to schedule, a coordinator that answers. To look takes it
microseconds, and a few milliseconds where it lists the jobs.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nvflare.fuel.f3.mpm import MainProcessMonitor

from fedsight.deploy.flare.bounds import replace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wait:
    """How long FLARE sleeps somewhere, and how long it sleeps instead, both in seconds."""

    usual: float
    shorter: float
    times: int | None = 20  # the first so many times in a process; None: always


_APP, _FED = "nvflare.private.fed.app", "nvflare.private.fed"
CLIENT_TRAIN = f"{_APP}.client.client_train"
_LISTENING = {"nvflare.fuel.f3.cellnet.connector_manager": Wait(0.5, 0.05)}
# By the module that a process runs, and by module. Other sleeps of a module stay as they are, such
# as those between heartbeats. What a process asks another one is asked as seldom as ever where it
# is not answered soon: many sites would ask at once.
SHORTER: Mapping[str, Mapping[str, Wait]] = {
    CLIENT_TRAIN: {
        **_LISTENING,  # after it has begun to listen for the processes of its jobs
        CLIENT_TRAIN: Wait(1.0, 0.1),  # until the site is connected; later, until it is stopped
        f"{_FED}.client.fed_client_base": Wait(1.0, 0.05),  # until a first heartbeat can be sent
    },
    f"{_APP}.client.worker_process": {
        f"{_FED}.client.client_app_runner": Wait(0.5, 0.05),  # until the site knows that it runs
        f"{_FED}.client.client_runner": Wait(0.5, 0.1, 10),  # until the coordinator answers
    },
    f"{_APP}.server.server_train": {
        **_LISTENING,
        # until a job is submitted, or has ended; an end that cannot be recorded is logged as often
        f"{_FED}.server.job_runner": Wait(1.0, 0.2, None),
    },
    f"{_APP}.server.runner_process": {
        f"{_FED}.server.server_engine": Wait(1.0, 0.05),  # until it hears which sites take part
    },
}


class Clock:
    """Python's module `time`, with shorter sleeps."""

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self._slept = 0  # how many shorter sleeps there were

    def sleep(self, seconds: float) -> None:
        """Sleep that long, or shorter."""
        wait = self._wait
        if seconds == wait.usual and (wait.times is None or self._slept < wait.times):
            self._slept += 1
            seconds = wait.shorter
        time.sleep(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def shorten(entry: str) -> None:
    """Have the process that runs the module `entry` look sooner.

    Where a version of FLARE has no such module any more, or one that does not sleep, it waits as
    long as it does.
    """
    for name, wait in SHORTER.get(entry, {}).items():
        clock = Clock(wait)
        try:
            replace(importlib.import_module(name), "time", clock)
        except (ImportError, AttributeError) as error:
            log.warning("FLARE waits as long as ever: %s", error)
            continue
        if name == entry:
            _shorten_main(clock)


def _shorten_main(clock: Clock) -> None:
    """The module that a process runs is executed once more, under another name: it sees `clock`
    from when its function `main` is called."""
    run: Callable[..., Any] = MainProcessMonitor.run

    def run_sooner(main_func: Any, *given: Any, **named: Any) -> Any:
        main_func.__globals__["time"] = clock
        return run(main_func, *given, **named)

    MainProcessMonitor.run = run_sooner
