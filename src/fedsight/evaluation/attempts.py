"""What is computed beside the figures: where that fails, it is not known, and that is said.

Intervals, tables and the like are made at the very end of a run, in a federation from numbers that
sites send. None of them is worth the run: a site whose numbers no formula has foreseen would
otherwise end everybody's training, in nobody's name.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from fedsight.core.errors import FedSightError
from fedsight.core.text import printable

INTERVALS = "intervals of the figures"
ERRORS = "the margins that noise gives the figures of sites"
SITES = "how far the figures of sites differ"
SAMPLES = "test images with the model's answers"
CURVES = "curves of the task"
TABLES = "tables of the task"
TRUST = "how far the answers can be trusted"
GENERALISATION = "over-fitting and robustness"
SHORTCUTS = "whether the model looks at the same spots at all sites"
MAX_REASON = 200  # characters
log = logging.getLogger(__name__)
T = TypeVar("T")


class Attempts:
    """Computes one thing after the other, and keeps which of them `failed`, and why."""

    def __init__(self, failed: Mapping[str, str] | None = None) -> None:
        self.failed = dict(failed or {})

    def of(self, what: str, make: Callable[[], T], otherwise: T) -> T:
        """What `make` returns; `otherwise`, if it fails.

        An error with a cure (FedSightError), such as an image that cannot be read any more, is
        raised: the run can be resumed once that is mended.
        """
        try:
            return make()
        except FedSightError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            said = printable(f"{type(error).__name__}: {error}", MAX_REASON)
            self.failed[what] = f"{said} ({Path(last.filename).name}, line {last.lineno})"
            log.warning("%s could not be computed: %s", what, self.failed[what])
            return otherwise
