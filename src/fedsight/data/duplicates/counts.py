"""How often a data set has the same image or text more than once, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# error: refuse copies in two parts or under two labels; report: say how many there are;
# drop: leave them out; keep: do not look for any
Handling = Literal["error", "report", "drop", "keep"]


@dataclass(frozen=True)
class Pair:
    """Two images that are copies: as the site's own screen names them, and as run files do."""

    shown: str
    named: str


@dataclass(frozen=True)
class Copies:
    """Sets of images that are copies of one another, or that look alike.

    A set of k different images has k - 1 copies. Held-out images count as `across_parts` if an
    earlier part (training, validation, test) has a copy of them; sets count as `across_sites`,
    `across_groups` or `two_labels` if they have two of them.
    """

    copies: int = 0
    across_parts: int = 0
    two_labels: int = 0
    across_sites: int = 0
    across_groups: int = 0
    pairs: tuple[Pair, ...] = ()  # examples, the gravest first

    def counts(self) -> dict[str, int]:
        """The numbers, by name."""
        return {key: value for key, value in asdict(self).items() if isinstance(value, int)}


@dataclass(frozen=True)
class Duplicates:
    """The copies in a data set: equal ones, and those that only look alike."""

    exact: Copies = field(default_factory=Copies)
    near: Copies = field(default_factory=Copies)

    def table(self) -> dict[str, Any]:
        """Numbers and examples, for JSON."""
        kinds: Mapping[str, Copies] = {"exact": self.exact, "near": self.near}
        return {
            kind: {**found.counts(), "examples": [pair.shown for pair in found.pairs]}
            for kind, found in kinds.items()
        }

    def sentences(self, things: str) -> tuple[str, ...]:
        """What to say about them, with an example of each kind; `things` are images or texts."""
        return (
            *_sentence(self.exact, f"exact copies of other {things}", "equal to"),
            *_sentence(self.near, f"{things} that look like another", "like"),
        )


def _sentence(found: Copies, what: str, how: str) -> tuple[str, ...]:
    if not found.copies:
        return ()
    facts = {
        f"held out but {how} one of an earlier part": found.across_parts,
        "with two labels": found.two_labels,
        "at two sites": found.across_sites,
        "in two groups": found.across_groups,
    }
    said = ", ".join(f"{text}: {count:,}" for text, count in facts.items() if count)
    among = f" ({said})" if said else ""
    example = f"; for example {found.pairs[0].named}" if found.pairs else ""
    return (f"{what}: {found.copies:,}{among}{example}",)
