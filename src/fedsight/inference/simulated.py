"""The federation of a finished simulation, whose images are on this machine."""

from __future__ import annotations

from pathlib import Path

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import DataError
from fedsight.core.registry import nearest
from fedsight.program.federation import Federation, federate


def simulated(run: Path) -> Federation:
    """The federation of a run.

    Raises DataError for a run whose sites were other machines, and for what one of
    them keeps of it: their images are not here, and others of the program would be taken for them.
    """
    store = RunStore(run)
    facts = store.read_json("run.json")
    if "recogniser" in facts or "declared" in facts:
        raise DataError(
            f"the images that {run} learned from are at its sites",
            "explain images there with the site's own recogniser, and name the folder of its "
            "images with --among for examples",
        )
    return federate(store.program()[0])


def site_number(federation: Federation, site: str) -> int:
    """The number of the site with this name; DataError if there is none."""
    names = [federation.partition.name(number) for number in range(len(federation.partition))]
    if site not in names:
        raise DataError(f"the run has no site '{site}'", nearest(site, names))
    return names.index(site)
