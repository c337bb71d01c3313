"""`[codec] name = "auto"`: the most faithful codec that a line carries in time.

The choice follows from the line, the program and the layout of its network alone. So whoever knows
these makes the same: a resumed run, a worker process, and each site of a federation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedsight.compression.settings import Codecs, Line
from fedsight.core.errors import Problem
from fedsight.program.coding import slowest_order

if TYPE_CHECKING:
    from fedsight.program.federation import Federation
    from fedsight.program.program import Program

Change = Mapping[str, Any]  # of [codec], and of [secure]

_SPARSE = [{"name": "top-k", "share": 0.05}, {"name": "quantise", "bits": 4, "block": 128}]
_LEAST: dict[str, Any] = {"steps": [{"name": "eden", "scale": "least"}]}


def _ways(*steps: Any) -> dict[str, Any]:
    return {"up": {"steps": list(steps)}, "down": {"steps": list(steps)}}


# Codecs, and what goes with them, from the most faithful to the shortest. Those that a program's
# protections refuse are left out, and where it is sent whole models, only updates are encoded.
OTHERS: Mapping[str, dict[str, Any]] = {
    "float32": {"codec": {}},
    "float16": {"codec": _ways("float16")},
    "8 bits": {"codec": _ways({"name": "quantise", "bits": 8})},
    "eden, 4 bits": {"codec": _ways({"name": "eden", "bits": 4})},
    "eden, 2 bits": {"codec": _ways({"name": "eden", "bits": 2})},
    "eden, 1 bit": {"codec": {"up": {**_LEAST, "feedback": True}, "down": _LEAST}},
    "top-k up, eden 1 bit down": {
        "codec": {"up": {"steps": _SPARSE, "feedback": True}, "down": _LEAST}
    },
    "masked, differences down": {
        "codec": {"down": {"steps": [{"name": "eden", "bits": 4}]}},
        "secure": {},
    },
    "masked, 8 bits": {
        "codec": {"up": {"steps": ["rotate"]}, "down": {"steps": [{"name": "eden", "bits": 2}]}},
        "secure": {"bits": 8},
    },
    "masked, 4 bits": {
        "codec": {"up": {"steps": ["rotate"]}, "down": _LEAST},
        "secure": {"bits": 4},
    },
}


def others(program: Program) -> Iterator[tuple[str, Change, Program]]:
    """Names and changes of `OTHERS`, and the program with each; without those that do not go with
    the rest of it, or with their updates alone encoded."""
    for name, change in OTHERS.items():
        other = _changed(program, change)
        if other is None and change["codec"].keys() == {"up", "down"}:
            name = f"{name.partition(' up,')[0]} up"
            change = {**change, "codec": {"up": change["codec"]["up"]}}
            other = _changed(program, change)
        if other is not None:
            yield name, change, other


def _changed(program: Program, change: Change) -> Program | None:
    """The program with another codec; None if that does not go with the rest of it."""
    codec = Codecs.model_validate(change["codec"], strict=False)
    secure = program.secure
    if "secure" in change:
        if not secure.rounds_values:
            return None
        secure = secure.model_copy(update=change["secure"])
    other = replace(program, codec=codec, secure=secure)
    mine = {(problem.where, problem.cause) for problem in program.check()}
    if any((problem.where, problem.cause) not in mine for problem in other.check()):
        return None
    return other


def needs_line(program: Program) -> bool:
    """Whether the codec is chosen by a line that the program does not state."""
    return program.codec.auto and program.codec.uplink is None


def on_line(program: Program, line: Line) -> Program:
    """The program for the measured line of its slowest site. Its fingerprint is the same: what an
    operator signs and an owner permits is that the line decides."""
    return replace(program, codec=program.codec.measured(line))


def line_of(federation: Federation) -> Line | None:
    """The slowest site's line: as stated, as measured, or in virtual time; None if that is not
    known."""
    program = federation.program
    if program.codec.line is not None:
        return program.codec.line
    names = map(federation.partition.name, range(len(federation.partition)))
    slowest = max(program.timing.of(name, program.train_seed).byte for name in names)
    return Line(uplink=8 / slowest, downlink=8 / slowest) if slowest else None


def settled(federation: Federation) -> Federation:
    """The federation with its codec chosen, if that is `auto` and the line is known; else as it is.

    It is the first of `OTHERS`, without those that change [secure], with which a site's order and
    its reply take at most `codec.seconds`, or the fastest.
    """
    program = federation.program
    line = line_of(federation) if program.codec.auto else None
    if line is None:
        return federation
    taken: dict[float, Program] = {}
    for _, change, other in others(program):
        if change.get("secure"):
            continue
        seconds = _seconds(federation.under(other), line)
        taken.setdefault(seconds, other)
        if seconds <= program.codec.seconds:
            break
    chosen = taken[min(taken)].codec
    codec = program.codec.model_copy(update={"up": chosen.up, "down": chosen.down})
    return federation.under(replace(program, codec=codec))


def _seconds(federation: Federation, line: Line) -> float:
    """How long the slowest order and its reply take.

    A site knows neither how many others there are nor their images, and more may come. So a masked
    value counts as the most bits that it can have, and whole numbers, which no codec encodes, not.
    """
    up = sum(spec.bytes for spec in federation.parts.values() if not spec.exact)
    return 8 * up / line.uplink + 8 * slowest_order(federation) / line.downlink


def described(federation: Federation) -> dict[str, Any] | None:
    """What was chosen, for which line; None unless the codec is `auto`."""
    codec, line = federation.program.codec, line_of(federation)
    if not codec.auto or line is None:
        return None
    seconds = _seconds(federation, line)
    return {**line.table(), "seconds": seconds, **codec.steps_table()}


def problems(program: Program) -> Iterator[Problem]:
    """A simulation whose lines take no time."""
    timing, codec = program.timing, program.codec
    known = codec.uplink is not None and codec.downlink is not None
    lines = [timing.bytes_per_second, *(group.bytes_per_second for group in timing.groups)]
    if codec.auto and not known and not any(lines):
        cause = "it chooses by the sites' lines, and these take no time"
        cure = "set timing.bytes_per_second, or codec.uplink and codec.downlink in bits a second"
        yield Problem("codec.name", cause, cure)
