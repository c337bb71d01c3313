"""How long the transfers of a program take over a line, with its codec and with others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedsight.engines.protected import adopted_bytes, is_rebuilt, planned_reply
from fedsight.program import auto_codec
from fedsight.program.coding import order_bytes, other_bytes, slowest_order
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Program

OWN = "as written"


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
    once_up: int  # of the replies in the rounds of [start] and [finish]
    once_down: int  # of their orders, and of what does not travel with each order
    round_seconds: float  # of a round after the first: it waits for the slowest, or for its replies
    seconds: float  # of all rounds, those of [start] and [finish] with them

    def table(self) -> dict[str, Any]:
        """As plain values."""
        return {key: getattr(self, key) for key in self.__dataclass_fields__}


def listed(program: Program) -> Federation:
    """The federation of `program`, whose images are listed and counted, and not read.

    So corrupt ones and copies count too. Raises what `federate` raises.
    """
    unread = {"in_memory": False, "verify": False, "duplicates": "keep", "near_duplicates": "keep"}
    known = {key: value for key, value in unread.items() if key in type(program.data).model_fields}
    return federate(replace(program, data=program.data.model_copy(update=known)))


def transfers(federation: Federation, uplink: float, downlink: float) -> list[Transfers]:
    """The program's own codec, then others that it could have, from the most faithful to the
    shortest. `uplink` and `downlink` are the bits a second of each site's line.

    Bytes are those of the encoded vectors. What TLS, the framing of questions and the keys of
    secure aggregation add is not counted, nor is the time for training.
    """
    program = federation.program
    found = [_of(OWN, federation, uplink, downlink)]
    for name, change, other in auto_codec.others(program):
        one = _of(name, federation.under(other), uplink, downlink, change.get("secure", {}))
        if all((one.bytes_up, one.bytes_down) != (x.bytes_up, x.bytes_down) for x in found):
            found.append(one)
    return found


def chosen(found: list[Transfers], deadline: float) -> Transfers | None:
    """The codec with which all rounds take at most `deadline` seconds: the program's own if that
    does, else the most faithful one; None if there is none."""
    return next((one for one in found if one.seconds <= deadline), None)


def _of(
    name: str,
    federation: Federation,
    uplink: float,
    downlink: float,
    secure: Mapping[str, Any] | None = None,
) -> Transfers:
    program, layout = federation.program, federation.layout
    up = planned_reply(federation)
    others = other_bytes(federation)
    whole, down = 4 * layout.travelling.stop, order_bytes(program, layout)
    rebuilt = is_rebuilt(federation, 0, federation.initial[layout.travelling])
    once_up, once_down = _once(federation, whole, rebuilt)
    rebuilt = rebuilt and program.opening() is None  # which changes the model
    first = others + (0 if rebuilt else whole)
    sent = 8 * up / uplink
    begin, each = sent + 8 * first / downlink, sent + 8 * slowest_order(federation) / downlink
    round, seconds = _course(federation, begin, each)
    return Transfers(
        name=name,
        codec=program.codec.steps_table(),
        secure=dict(secure or {}),
        bytes_up=up,
        bytes_down=others + down,
        bytes_whole=others + whole,
        first=first,
        once_up=once_up,
        once_down=once_down,
        round_seconds=round,
        seconds=seconds + 8 * once_up / uplink + 8 * once_down / downlink,
    )


def _course(federation: Federation, begin: float, each: float) -> tuple[float, float]:
    """The seconds of a round and of all rounds, of which a site's first order and its reply take
    `begin`, and each later one `each`."""
    rounds, sites = federation.program.rounds, federation.population
    if not rounds.buffered:
        return each, begin + (rounds.rounds - 1) * each
    # As many sites at a time reply again and again, and the first replies make a round.
    most, due = rounds.cohort or sites, rounds.replies(sites)
    turns = math.ceil(rounds.rounds * due / most)
    return each * due / most, begin + (turns - 1) * each


def _once(federation: Federation, whole: int, rebuilt: bool) -> tuple[int, int]:
    """Bytes that a site sends and is sent in the rounds of [start] and [finish]: models whole, but
    for one that it has built itself; and what does not travel with each order, if only the
    coordinator has the weights."""
    up, down, first = 0, 0, federation
    if (opening := federation.program.opening()) is not None:
        first = federation.under(opening)
        up, down = planned_reply(first), other_bytes(first) + (0 if rebuilt else whole)
    down += _adopted(first)
    if (closing := federation.program.closing()) is not None:
        once = federation.under(closing)
        up, down = up + planned_reply(once), down + other_bytes(once) + whole
    return up, down


def _adopted(federation: Federation) -> int:
    """Bytes of what a site is sent before its first order; published weights count as fetched."""
    return 0 if federation.program.model.rebuildable else adopted_bytes(federation)
