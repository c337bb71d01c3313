"""Measures the lines to the sites, by which `[codec] name = "auto"` chooses a codec.

The sites are asked at once, as in a round, so sites that share a line share it here too.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import SiteError
from fedsight.engines.remote import messages
from fedsight.engines.remote.conversation import Link, Talk, converse, reason
from fedsight.program.program import Program

LEAST = 1e-3  # seconds: what is faster is not told apart
ROUND = 2  # significant digits


def lined(program: Program, store: RunStore, link: Link) -> Program:
    """The program with the line of its slowest site, if its codec depends on that.

    It is measured once, before the run's first round, and kept in `run.json`. Raises SiteError if
    no site can be measured.
    """
    codec = program.codec
    if not codec.auto or codec.uplink is not None:
        return program
    facts = store.read_json("run.json")
    lines: Mapping[str, Any] = facts.get("lines") or {}
    if not lines:
        lines = measured(link, program.rounds.deadline)
        store.write_json("run.json", {**facts, "lines": lines})
    slowest = {way: min(one[way] for one in lines.values()) for way in ("uplink", "downlink")}
    return replace(program, codec=codec.model_copy(update=slowest))


def measured(link: Link, patience: float) -> dict[str, dict[str, float]]:
    """Bits a second of each site's line, `uplink` and `downlink`; without sites that fail.

    Of the time for many bytes that for none is taken off: it is the delay of the line.
    """
    found: dict[str, dict[str, float]] = {}
    size = messages.FIRST_PIECE
    many = secrets.token_bytes(size)

    def probe(talk: Talk) -> None:
        delay = min(_seconds(talk, 0, b"") for _ in range(3))
        up, down = _seconds(talk, size, b"") - delay, _seconds(talk, 0, many) - delay
        found[talk.site] = {"uplink": _rate(size, up), "downlink": _rate(size, down)}

    deadline = time.monotonic() + patience
    failed = converse([Talk(link, site, deadline) for site in link.sites], probe)
    if not found:
        raise SiteError(
            f"no site's line could be measured: {'; '.join(map(reason, failed.values()))}",
            "check the sites, or set codec.uplink and codec.downlink",
        )
    return {site: found[site] for site in sorted(found)}


def _seconds(talk: Talk, asked: int, body: bytes) -> float:
    """How long a question with `body` takes whose answer has so many bytes."""
    began = time.monotonic()
    _, data = talk.ask("probe", {"bytes": asked}, body)
    took = time.monotonic() - began
    if len(data) != asked:
        cause = f"site '{talk.site}' sent {len(data):,} bytes instead of {asked:,}"
        raise SiteError(cause, "run the same FedSight version there as at the coordinator")
    return took


def _rate(size: int, seconds: float) -> float:
    return float(f"{8 * size / max(seconds, LEAST):.{ROUND - 1}e}")
