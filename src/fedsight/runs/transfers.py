"""How long the transfers of a program take over a line, with its codec and with others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedsight.compression.settings import Codecs
from fedsight.engines.protected import encoding_plan, is_rebuilt
from fedsight.privacy.secagg import words
from fedsight.program.coding import order_bytes
from fedsight.program.federation import Federation
from fedsight.program.program import Program

OWN = "as written"
_SPARSE = [{"name": "top-k", "share": 0.05}, {"name": "quantise", "bits": 4, "block": 128}]
_LEAST: dict[str, Any] = {"steps": [{"name": "eden", "scale": "least"}]}


def _both(*steps: Any) -> dict[str, Any]:
    return {"up": {"steps": list(steps)}, "down": {"steps": list(steps)}}


# Codecs, and what goes with them, from the most faithful to the shortest. Those that a program's
# protections refuse are left out.
OTHERS: Mapping[str, dict[str, Any]] = {
    "float32": {"codec": {}},
    "float16": {"codec": _both("float16")},
    "8 bits": {"codec": _both({"name": "quantise", "bits": 8})},
    "eden, 4 bits": {"codec": _both({"name": "eden", "bits": 4})},
    "eden, 2 bits": {"codec": _both({"name": "eden", "bits": 2})},
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


@dataclass(frozen=True)
class Transfers:
    """What a site sends and receives with one codec, and how long that takes over its line."""

    name: str
    codec: Mapping[str, Any]  # as in a config
    secure: Mapping[str, Any]  # settings of [secure] that differ
    bytes_up: int  # of a reply
    bytes_down: int  # of an order, to a site that has what it needs for a difference
    bytes_whole: int  # of an order to any other
    first: int  # of the first order
    round_seconds: float  # of a round after the first, in which it waits for the slowest
    seconds: float  # of all rounds

    def table(self) -> dict[str, Any]:
        """As plain values."""
        return {key: getattr(self, key) for key in self.__dataclass_fields__}


def transfers(federation: Federation, uplink: float, downlink: float) -> list[Transfers]:
    """The program's own codec, then others that it could have, from the most faithful to the
    shortest. `uplink` and `downlink` are the bits a second of each site's line.

    Bytes are those of the encoded vectors. What TLS, the framing of questions and the keys of
    secure aggregation add is not counted, nor is the time for training.
    """
    program = federation.program
    found = [_of(OWN, federation, uplink, downlink)]
    for name, change in OTHERS.items():
        other = _changed(program, change)
        if other is None:
            continue
        one = _of(name, federation.under(other), uplink, downlink, change.get("secure", {}))
        if all((one.bytes_up, one.bytes_down) != (x.bytes_up, x.bytes_down) for x in found):
            found.append(one)
    return found


def chosen(found: list[Transfers], deadline: float) -> Transfers | None:
    """The codec with which all rounds take at most `deadline` seconds: the program's own if that
    does, else the most faithful one; None if there is none."""
    return next((one for one in found if one.seconds <= deadline), None)


def _changed(program: Program, change: Mapping[str, Any]) -> Program | None:
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


def _of(
    name: str,
    federation: Federation,
    uplink: float,
    downlink: float,
    secure: Mapping[str, Any] | None = None,
) -> Transfers:
    program, layout = federation.program, federation.layout
    rounded = encoding_plan(federation)
    up = sum(spec.bytes for spec in federation.parts.values())
    if rounded is not None:
        up = words.size(rounded.quantiser(federation.terms))
    state = program.init(federation.initial[layout.shared])
    others = 4 * sum(value.numel() for value in program.shared(state).values())
    whole, down = 4 * layout.travelling.stop, order_bytes(program, layout)
    rebuilt = is_rebuilt(federation, 0, federation.initial[layout.travelling])
    rebuilt = rebuilt and program.opening() is None  # which changes the model
    first = others + (0 if rebuilt else whole)
    # Where not all sites take part in each round, one or the other has skipped the last.
    slowest = others + (down if program.rounds.cohort is None else whole)
    sent = 8 * up / uplink
    each, rounds = sent + 8 * slowest / downlink, program.rounds.rounds
    return Transfers(
        name=name,
        codec=program.codec.table(),
        secure=dict(secure or {}),
        bytes_up=up,
        bytes_down=others + down,
        bytes_whole=others + whole,
        first=first,
        round_seconds=each,
        seconds=sent + 8 * first / downlink + (rounds - 1) * each,
    )
