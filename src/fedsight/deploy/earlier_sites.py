"""Which sites are in the sums of the run that another one changes (`algorithm.earlier`).

Sums of many images do not tell who is in them, so a site that joined twice, or left twice, would
count twice, and nobody would see it. In a federation a site has one name in all runs, and the
folders of runs tell which sites' replies were counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedsight.algorithms.closed_form import ClosedForm
from fedsight.algorithms.earlier import Change
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import DeployError, StoreError
from fedsight.deploy.declaration import Declaration, read_declaration
from fedsight.program.program import Program

KEY = "earlier"  # in run.json


@dataclass(frozen=True)
class EarlierSites:
    """The sites in the sums that a run changes, with what they declared, and what its sites do."""

    change: Change
    sites: Mapping[str, Declaration]

    def after(self, sites: Mapping[str, Declaration]) -> dict[str, Declaration]:
        """The sites in the sums once `sites` have joined or left."""
        if self.change == "join":
            return {**self.sites, **sites}
        return {name: one for name, one in self.sites.items() if name not in sites}

    def misplaced(self, found: Mapping[str, Declaration]) -> dict[str, DeployError]:
        """The sites in `found` that cannot do so, and why."""
        errors = {name: self._error(name, one) for name, one in found.items()}
        return {name: error for name, error in errors.items() if error is not None}

    def _error(self, name: str, declared: Declaration) -> DeployError | None:
        before = self.sites.get(name)
        if self.change == "join":
            if before is None:
                return None
            return DeployError(
                f"site '{name}' is in the sums of algorithm.earlier already, and would count twice",
                "leave it out of this run; if its images are others now, let it leave first",
            )
        if before is None:
            return DeployError(
                f"site '{name}' is not in the sums of algorithm.earlier, so it cannot leave them",
                "leave it out of this run, or name the checkpoint of a run that it took part in",
            )
        told = bool(before.labels and declared.labels)
        if before.train != declared.train or (told and before.labels != declared.labels):
            return DeployError(
                f"site '{name}' declares other images than those with which it joined the sums of "
                f"algorithm.earlier: {declared.train:,} of them now, {before.train:,} then, or "
                "other numbers of a class",
                "give it the images that it had, or run the sites that stay again",
            )
        return None

    def table(self) -> dict[str, Any]:
        """As it is kept in `run.json`."""
        sites = {name: one.table() for name, one in self.sites.items()}
        return {"change": self.change, "sites": sites}


def earlier_sites(store: RunStore, program: Program) -> EarlierSites | None:
    """The sites in the sums that the run in `store` changes; None if it changes none, or if those
    were not made in this federation, so that names say nothing.

    What is found at first is kept in `run.json`. Raises StoreError if the earlier run's folder does
    not tell.
    """
    form = program.algorithm
    if not isinstance(form, ClosedForm) or form.earlier is None:
        return None
    facts = store.read_json("run.json")
    if KEY not in facts:
        found = _counted(RunStore(form.earlier.parent.resolve()), store, facts)
        kept = None if found is None else EarlierSites(form.change, found).table()
        facts = {**facts, KEY: kept}
        store.write_json("run.json", facts)
    return _read(facts[KEY])


def _counted(
    store: RunStore, now: RunStore, known: Mapping[str, Any]
) -> dict[str, Declaration] | None:
    """The sites in the sums of the run in `store`; None if it is not one of the federation of the
    run `now`, of which `run.json` has the facts `known`."""
    facts = store.read_json("run.json")
    beside = store.folder.parent == now.folder.resolve().parent  # a federation may be moved
    ours = beside or facts.get("federation") == known.get("federation")
    if "declared" not in facts or not ours:
        return None
    lines = store.history()
    if not lines:
        raise StoreError(
            f"{store.folder} has no history.jsonl, which tells which sites are in its sums",
            "name the checkpoint in the whole folder of the earlier run",
        )
    own = {
        site: read_declaration(facts["declared"].get(site), site)
        for line in lines
        for site in line["sites"]
    }
    if KEY not in facts:
        return own
    before = _read(facts[KEY])
    return None if before is None else before.after(own)


def _read(table: Any) -> EarlierSites | None:
    if table is None:
        return None
    try:
        sites = {site: read_declaration(one, site) for site, one in table["sites"].items()}
        return EarlierSites(table["change"], sites)
    except (KeyError, TypeError, AttributeError):
        raise StoreError(
            "a run.json does not tell which sites are in the sums of algorithm.earlier",
            "run all sites again, without algorithm.earlier",
        ) from None
