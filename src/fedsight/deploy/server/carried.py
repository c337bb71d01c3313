"""What the server's TLS connections have carried for the sites of a run, in all."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsight.coordinator.callbacks import Callback, Event, RoundEnded
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import StoreError

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
        self._earlier = _table(store.folder / COUNTED).get("sites", {})
        self._begin = _table(self._path)

    def on(self, event: Event) -> None:
        """Write after a round."""
        if isinstance(event, RoundEnded):
            self.write(event.last)

    def write(self, wait: bool = True) -> None:
        """Write what was carried so far; with `wait`, including the last second."""
        asked = time.time()
        now = _table(self._path)
        while wait and now and now["time"] < asked and time.time() < asked + PATIENCE:
            time.sleep(0.1)
            now = _table(self._path)
        if not now:
            return  # the system does not count
        begin = self._begin.get("sites", {}) if self._begin.get("run") == now["run"] else {}
        found = dict(self._earlier)
        for site in self._sites:
            took = [
                a - b for a, b in zip(_pair(now["sites"], site), _pair(begin, site), strict=True)
            ]
            known = found.get(site, {"received": 0, "sent": 0})
            total = {"received": known["received"] + took[0], "sent": known["sent"] + took[1]}
            if any(total.values()):
                found[site] = total
        with contextlib.suppress(StoreError):  # a full disk ends the run where its results go
            self._store.write_json(COUNTED, {"sites": found})


def _pair(sites: dict[str, Any], site: str) -> Sequence[int]:
    found: Sequence[int] = sites.get(site, (0, 0))
    return found


def _table(path: Path) -> dict[str, Any]:
    """What the file says; empty if it is not there, or not whole."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
