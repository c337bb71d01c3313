"""Measures the lines to the sites, by which `[codec] name = "auto"` chooses a codec.

The sites are asked at once, as in a round, so sites that share a line share it here too. What was
measured is proposed beside the program, so that its fingerprint stays that which was signed.
"""

from __future__ import annotations

import secrets
import time

from pydantic import TypeAdapter

from fedsight.compression.settings import Line
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import SiteError, StoreError
from fedsight.engines.remote import messages
from fedsight.engines.remote.conversation import Link, Talk, converse, reason
from fedsight.program.auto_codec import needs_line, on_line
from fedsight.program.program import Program

LEAST = 1e-3  # seconds: what is faster is not told apart
ROUND = 2  # significant digits


def lined(program: Program, store: RunStore, link: Link) -> Program:
    """The program with the line of its slowest site, if its codec depends on that.

    It is measured once, before the run's first round, and kept in `run.json`. Raises SiteError if
    no site can be measured.
    """
    if not needs_line(program):
        return program
    facts = store.read_json("run.json")
    if "lines" in facts:
        lines = _known(facts["lines"], store)
    else:
        lines = measured(link, program.rounds.deadline)
        tables = {site: line.table() for site, line in lines.items()}
        store.write_json("run.json", {**facts, "lines": tables})
    slowest = Line(
        uplink=min(line.uplink for line in lines.values()),
        downlink=min(line.downlink for line in lines.values()),
    )
    return on_line(program, slowest)


def _known(lines: object, store: RunStore) -> dict[str, Line]:
    """The lines that `run.json` says were measured; StoreError if these are none."""
    try:
        found = TypeAdapter(dict[str, Line]).validate_python(lines)
        if not found:
            raise ValueError("there is none")
    except ValueError as error:
        where = store.folder / "run.json"
        cause = f"{where} is broken: the measured lines are not numbers of bits a second"
        raise StoreError(cause, "restore the file from a backup, or start the run again") from error
    return found


def measured(link: Link, patience: float) -> dict[str, Line]:
    """Each site's line; without sites that fail.

    Of the time for many bytes that for none is taken off: it is the delay of the line.
    """
    found: dict[str, Line] = {}
    size = messages.FIRST_PIECE
    many = secrets.token_bytes(size)

    def probe(talk: Talk) -> None:
        delay = min(_seconds(talk, 0, b"") for _ in range(3))
        up, down = _seconds(talk, size, b"") - delay, _seconds(talk, 0, many) - delay
        found[talk.site] = Line(uplink=_rate(size, up), downlink=_rate(size, down))

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
