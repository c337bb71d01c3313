"""What a run folder keeps so that answers can be made large enough later: `trust.json`."""

from __future__ import annotations

from dataclasses import dataclass

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import StoreError
from fedsight.evaluation.trust.risk import Risk
from fedsight.evaluation.trust.saved import FILE
from fedsight.tasks.covering.base import Covering


@dataclass(frozen=True)
class SavedRisk:
    """What a run knows of how large its answers have to be; `apart`: each site has a model of its
    own."""

    risk: Risk
    apart: bool


def kept_risk(store: RunStore, covering: Covering | None, classes: int) -> SavedRisk | None:
    """What the run folder knows of a model of so many classes, whose task has this covering; None:
    nothing. StoreError if the file is broken."""
    path = store.folder / FILE
    if covering is None or not path.is_file():
        return None
    facts = store.read_json(FILE)
    try:
        if "risk" not in facts:
            return None
        apart = facts["apart"]
        if type(apart) is not bool:
            raise ValueError(f"'apart' is {apart!r}, which is not true or false")
        return SavedRisk(Risk.of(facts["risk"], covering, classes), apart)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is broken: {error!r:.200}", "run it again") from error
    except RuntimeError as error:  # of torch, for numbers that are too large
        raise StoreError(f"{path} is broken: {error!r:.200}", "run it again") from error
