"""One thing that was looked at, before anybody relies on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsight.language.message import Text, text_in


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `bad` keeps FedSight from working, a `note` limits it."""

    what: Text | str
    state: Literal["ok", "note", "bad"]
    value: Text | str
    cure: Text | str = ""

    def table(self) -> dict[str, str]:
        """What JSON has, in every language."""
        what, value, cure = (text_in(one, "en") for one in (self.what, self.value, self.cure))
        return {"what": what, "state": self.state, "value": value, "cure": cure}
