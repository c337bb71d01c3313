"""What the server's TLS connections have carried for the sites of a run, in all."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from fedsight.coordinator.callbacks import Callback, Event, RoundEnded
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import StoreError
from fedsight.core.files import content, parse_json

COUNTED = "traffic.json"  # in the folder of the server, and in the run's
PATIENCE = 3.0  # seconds for the server's process to write down what it has counted last


class Carried(Callback):
    """Writes `traffic.json` into a run's folder after each round: for each site the bytes that the
    server has received from it and sent to it during the jobs of the run.

    It adds what this job has carried to what is there of earlier ones. All of a site's connections
    count: its heartbeats, and the job's code, keys and messages, encrypted and framed.
    """

    def __init__(self, folder: Path, store: RunStore, sites: Sequence[str]) -> None:
        """`folder`: that of the server, into which its process writes."""
        self._path, self._store, self._sites = folder / COUNTED, store, sites
        earlier = _read(store.folder / COUNTED, _Carried)
        self._earlier = {} if earlier is None else earlier.sites
        self._begin = _read(self._path, _Counted)

    def on(self, event: Event) -> None:
        """Write after a round."""
        if isinstance(event, RoundEnded):
            self.write(event.last)

    def write(self, wait: bool = True) -> None:
        """Write what was carried so far; with `wait`, including the last second."""
        asked = time.time()
        now = _read(self._path, _Counted)
        while wait and now and now.time < asked and time.time() < asked + PATIENCE:
            time.sleep(0.1)
            now = _read(self._path, _Counted)
        if now is None:
            return  # the system does not count
        same = self._begin is not None and self._begin.run == now.run
        begin = self._begin.sites if self._begin is not None and same else {}
        found = dict(self._earlier)
        for site in self._sites:
            (received, sent), before = now.sites.get(site, (0, 0)), begin.get(site, (0, 0))
            known = found.get(site, _Pair(received=0, sent=0))
            total = _Pair(
                received=known.received + received - before[0],
                sent=known.sent + sent - before[1],
            )
            if total.received or total.sent:
                found[site] = total
        table = {site: total.model_dump() for site, total in found.items()}
        with contextlib.suppress(StoreError):  # a full disk ends the run where its results go
            self._store.write_json(COUNTED, {"sites": table})


class _Pair(BaseModel):
    """Bytes received from a site, and sent to it."""

    received: int
    sent: int


class _Carried(BaseModel):
    """The file in a run's folder."""

    sites: dict[str, _Pair]


class _Counted(BaseModel):
    """The file in the server's folder: `run` says which process counted, and `time` until when."""

    run: str
    time: float
    sites: dict[str, tuple[int, int]]


T = TypeVar("T", bound=BaseModel)


def _read(path: Path, kind: type[T]) -> T | None:
    """What the file says; None if it is not there, or not whole."""
    try:
        return kind.model_validate(parse_json(content(path)))
    except (OSError, ValueError):
        return None
