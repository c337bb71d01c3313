"""Measures the lines to the sites, by which `[codec] name = "auto"` chooses a codec.

The sites are asked at once, as in a round, so sites that share a line share it here too. What was
measured is proposed beside the program, so that its fingerprint stays that which was signed.
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable

from pydantic import TypeAdapter

from fedsight.compression.settings import Line
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import SiteError, StoreError
from fedsight.engines.remote import messages
from fedsight.engines.remote.conversation import Link, Silent, Talk, converse, reason
from fedsight.program.auto_codec import needs_line, on_line
from fedsight.program.program import Program

PATIENCE = 120.0  # seconds for a site: what takes longer counts as so long
ENOUGH = 1.0  # seconds: a transfer that takes so long is measured well
LONGEST = 10.0  # seconds of transfers after which no other is taken
SAMPLES = 5  # transfers of the same size, of which the median counts
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
        lines = measured(link)
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
            raise ValueError
    except ValueError as error:
        where = store.folder / "run.json"
        cause = f"{where} is broken: the measured lines are not numbers of bits a second"
        raise StoreError(cause, "restore the file as it was, or start a new run") from error
    return found


def measured(link: Link) -> dict[str, Line]:
    """Each site's line; without sites that do not even answer a question without bytes. Of others
    that fail it is known only that their lines are slow.

    Of the time for many bytes that for none is taken off: it is the delay of the line.
    """
    found: dict[str, Line] = {}
    most = messages.IN_FLIGHT // max(1, len(link.sites))
    most = max(messages.FIRST_PIECE, min(messages.PIECE, most))
    many = secrets.token_bytes(most)

    def probe(talk: Talk) -> None:
        delay = min(_seconds(talk, 0, b"") for _ in range(3))
        found[talk.site] = Line(
            uplink=_rate(lambda size: _seconds(talk, size, b""), delay, most),
            downlink=_rate(lambda size: _seconds(talk, 0, many[:size]), delay, most),
        )

    deadline = time.monotonic() + PATIENCE
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


def _rate(took: Callable[[int], float], delay: float, most: int) -> float:
    """Bits a second of a line on which so many bytes `took` so many seconds, `delay` included.

    TCP begins slowly, and on a fast line a few bytes take no longer than the delay varies. So more
    and more are sent, up to `most`, as a vector's pieces are.
    """
    size, samples = messages.MIN_PIECE, list[float]()
    try:
        samples.append(took(size))
        while samples[0] < ENOUGH and size < most:
            seconds = took(min(2 * size, most))
            size, samples = min(2 * size, most), [seconds]
        while len(samples) < SAMPLES and sum(samples) < LONGEST:
            samples.append(took(size))
    except (SiteError, Silent):
        samples = samples or [PATIENCE]
    seconds = max(statistics.median(samples) - delay, LEAST)
    return float(f"{8 * size / seconds:.{ROUND - 1}e}")
