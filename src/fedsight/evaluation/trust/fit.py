"""The temperature that was fitted to the sums of all sites, as the run folder keeps it.

It is part of the next question, and a site answers that for one temperature in a run. Asked again
after a restart, other sites may answer, and their sums would give another one. So it is on the disk
before any site is told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import StoreError
from fedsight.evaluation.trust.calibration import OCTAVES

FILE = "temperature.json"


@dataclass(frozen=True)
class Fit:
    """A temperature, the number of images that it was fitted to, and why sites are not in it."""

    temperature: float
    images: int
    without: Mapping[str, str]


class FitFile:
    """The fit of one model, its vector after a round, in a run folder."""

    def __init__(self, store: RunStore, model: tuple[Tensor, int]) -> None:
        vector, round = model
        values = vector.reshape(-1).contiguous().numpy().astype("<f4", copy=False)
        self._store, self._model = store, hashlib.sha256(b"%d\0" % round)
        self._model.update(values.data)

    def read(self) -> Fit | None:
        """The fit; None: there is none of this model. StoreError if the file is broken."""
        path = self._store.folder / FILE
        if not path.is_file():
            return None
        table = self._store.read_json(FILE)
        if table.get("model") != self._model.hexdigest():
            return None
        heat, images, without = (table.get(key) for key in ("temperature", "images", "without"))
        if not (
            type(heat) is float
            and 2.0**-OCTAVES <= heat <= 2.0**OCTAVES
            and type(images) is int
            and images >= 0
            and isinstance(without, dict)
            and all(isinstance(why, str) for why in without.values())
        ):
            cause = f"{path} is broken: it is not a temperature that was fitted to images"
            raise StoreError(cause, "restore the file; without it sites may refuse to answer again")
        return Fit(heat, images, without)

    def write(self, fit: Fit) -> None:
        """Keep the fit."""
        self._store.write_json(FILE, {"model": self._model.hexdigest(), **asdict(fit)})
