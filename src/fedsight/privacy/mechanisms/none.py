"""No protection: the default."""

from __future__ import annotations

from fedsight.privacy.base import Mechanism, mechanisms


@mechanisms.add("none")
class Unprotected(Mechanism):
    """Updates are added up as they are; nothing is promised."""
