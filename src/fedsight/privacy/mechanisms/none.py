"""No protection: the default."""

from __future__ import annotations

from fedsight.privacy.base import Mechanism, mechanisms


@mechanisms.add("none")
class Unprotected(Mechanism):
    """Updates are added unchanged, without any promise."""
