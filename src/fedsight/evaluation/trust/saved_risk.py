"""What a run folder keeps so that answers can be made large enough later: `trust.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import StoreError
from fedsight.evaluation.trust.risk import Risk
from fedsight.evaluation.trust.saved import FILE, facts_of
from fedsight.tasks.covering.base import Covering


@dataclass(frozen=True)
class SavedRisk:
    """What a run knows of how large its answers have to be; `apart`: each site has a model of its
    own."""

    risk: Risk
    apart: bool

    @property
    def guarantee(self) -> str:
        """For whom a coverage holds."""
        return self.risk.guarantee


def kept_risk(store: RunStore, covering: Covering, classes: int, model: Path) -> SavedRisk | None:
    """What a folder knows of the model of so many classes in this file, whose task has this
    covering; None: nothing. StoreError if the file is broken, or belongs to another model."""
    path = store.folder / FILE
    facts = facts_of(store, model)
    if facts is None or "risk" not in facts:
        return None
    try:
        apart = facts["apart"]
        if type(apart) is not bool:
            raise ValueError(f"'apart' is {apart!r}, which is not true or false")
        return SavedRisk(Risk.of(facts["risk"], covering, classes), apart)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is broken: {error!r:.200}", "run it again") from error
    except RuntimeError as error:  # of torch, for numbers that are too large
        raise StoreError(f"{path} is broken: {error!r:.200}", "run it again") from error
