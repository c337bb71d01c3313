"""Vectors that a site receives in pieces, which may come twice, late, and in any order."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedsight.compression.difference import Difference
from fedsight.core.errors import SiteError
from fedsight.core.layout import Layout
from fedsight.engines.remote import messages

EXTRAS = 4  # an algorithm's other vectors together, in sizes of the network
Lengths = Mapping[str, int]  # the most bytes of the vectors that a coordinator may send, by name


def lengths_of(
    layout: Layout, shared: Iterable[Tensor], difference: Difference | None = None
) -> Lengths:
    """How long the vectors of a program are at most.

    `shared` are the algorithm's other vectors before the first round; there may be more later.
    `difference` is how a model comes that is made of the one before; None: always whole.
    """
    others = max(sum(one.numel() for one in shared), EXTRAS * layout.size)
    kept = layout.kept.stop - layout.kept.start
    values = {"vector": layout.travelling.stop, "extras": others, "kept": kept}
    found = {name: 4 * number for name, number in values.items()}
    return found if difference is None else {**found, "difference": difference.bytes}


def count(fields: Mapping[str, Any], key: str) -> int:
    """A count in a header from the coordinator; SiteError if it is not a plausible count."""
    return messages.whole_number(fields, key, "the coordinator")


@dataclass
class PartialVector:
    """The pieces of a vector that have arrived under one mark."""

    mark: int
    data: bytearray
    spans: list[tuple[int, int]] = field(default_factory=list)  # (start, stop), disjoint, ascending
    in_use: bool = False  # from then on it must not change: it was checked before it is used

    def put(self, start: int, body: bytes) -> None:
        """Store a piece."""
        self.data[start : start + len(body)] = body
        merged: list[tuple[int, int]] = []
        for begin, end in sorted([*self.spans, (start, start + len(body))]):
            if merged and begin <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((begin, end))
        self.spans = merged

    def contains(self, start: int, body: bytes) -> bool:
        """Whether these bytes are at this place already."""
        return memoryview(self.data)[start : start + len(body)] == body


class IncomingVectors:
    """The newest vector of each name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[str, PartialVector] = {}  # by name

    def add(self, fields: Mapping[str, Any], body: bytes, lengths: Lengths) -> None:
        """Store a piece; SiteError if it does not fit, or would change a vector that is in use.

        A piece that comes again is harmless at any time. The first one allocates what it announces,
        which is therefore compared with what may come.
        """
        mark = count(fields, "mark")
        start = count(fields, "start")
        total = count(fields, "total")
        name = str(fields.get("name"))
        misfit = SiteError(f"a piece of '{name[:50]}' does not fit", "update the coordinator")
        if start + len(body) > total or total > lengths.get(name, -1):
            raise misfit
        with self._lock:
            known = self._newest.get(name)
            if known is not None and known.mark > mark:
                return  # a late piece: a newer vector has begun to arrive
            if known is None or known.mark < mark:
                known = self._newest[name] = PartialVector(mark, bytearray(total))
            if len(known.data) != total:
                raise misfit
            if not known.in_use:
                known.put(start, body)
            elif not known.contains(start, body):
                raise SiteError(
                    f"a piece would change the {name} while it is in use",
                    "the coordinator sent two vectors under one mark, or is malicious: ask the "
                    "operator",
                )

    def take(self, name: str, mark: int) -> bytearray:
        """The complete vector that came under `mark`, which does not change from now on.

        Raises SiteError if it is missing or incomplete.
        """
        with self._lock:
            known = self._newest.get(name)
            if known is None or known.mark != mark:
                raise SiteError(f"the {name} has not been received", "send it first")
            if known.spans != [(0, len(known.data))]:
                raise SiteError(
                    f"pieces of the {name} are missing", "send the missing pieces first"
                )
            known.in_use = True
            return known.data

    def several(self, name: str, fields: Mapping[str, Any]) -> dict[str, Tensor]:
        """The vectors whose numbers of values the header `fields` states under `name`, and that
        came one after another under its mark; SiteError if they did not, or it is no header."""
        stated = fields.get(name)
        if not isinstance(stated, dict):
            cause = f"the coordinator did not say how long its {name} are"
            raise SiteError(cause, "update the coordinator")
        sizes = {key: count({name: size}, name) for key, size in stated.items()}
        if not sizes:
            return {}
        data = self.take(name, count(fields, "mark"))
        if len(data) != 4 * sum(sizes.values()):
            cause = f"the {name} that came have another length than the coordinator stated"
            raise SiteError(cause, "update the coordinator")
        return messages.unpack(data, sizes)
