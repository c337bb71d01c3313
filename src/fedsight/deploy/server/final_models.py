"""The end of a deployed run: its sites get the model, at once or when they are back."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import StoreError
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.engines.remote.engine import RemoteEngine

RECEIVED = "received.json"  # in the run's folder: which sites have the model that it ended with
TOO_LATE = "it was not connected when the run ended"


def deliver(folder: FederationFolder, store: RunStore, engine: RemoteEngine) -> None:
    """Send the sites of `engine` the model that the run ended with, and record who has it.

    A site that fails costs nobody anything: it gets the model when the run is resumed. Raises
    StoreError if the run has no checkpoint.
    """
    checkpoint = store.load_checkpoint()
    if checkpoint is None:
        raise StoreError(f"{store.folder} has no checkpoint", "start the run again")
    lines = [line for line in store.history() if line["round"] > 0]
    counted = Counter(site for line in lines for site in line["sites"])
    missing = engine.deliver(checkpoint.model, checkpoint.round, counted)
    names = [engine.federation.name(site) for site in range(engine.federation.population)]
    got = {*received(store), *(name for name in names if name not in missing)}
    left = {name: missing.get(name, TOO_LATE) for name in names if name not in got}
    table = {"round": checkpoint.round, "sites": sorted(got), "missing": left}
    store.write_json(RECEIVED, table)
    for site, why in left.items():
        folder.log_event("undelivered", run=store.folder.name, site=site, why=why)


def received(store: RunStore) -> frozenset[str]:
    """The sites that have confirmed that they have the final model."""
    return frozenset(map(str, _table(store).get("sites", [])))


def missing(store: RunStore) -> dict[str, str]:
    """Why other sites that took part do not have it, by site."""
    return {str(site): str(why) for site, why in _table(store).get("missing", {}).items()}


def _table(store: RunStore) -> dict[str, Any]:
    return store.read_json(RECEIVED) if (store.folder / RECEIVED).exists() else {}
