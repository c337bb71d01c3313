"""What leaves a client: clipped, noised, and encoded, with what the encoding left out kept."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fedsight.compression.pipeline import Pipeline
from fedsight.core.errors import SiteError
from fedsight.core.rng import derive
from fedsight.core.types import Memory, Order, PartSpec, Payload
from fedsight.privacy.noise import MakeNoise
from fedsight.program import coding
from fedsight.program.federation import Federation

# Before the name of a part, in a site's memory: what its encoding left out, and the message that
# was sent, where the next encoding begins from that.
UNSENT, SENT = "unsent ", "sent "


@dataclass(frozen=True)
class _Coding:
    """How one part is encoded, with its random bits."""

    encode: Callable[[Tensor, Tensor | None], Tensor]  # of values, and of the last message
    decode: Callable[[Tensor], Tensor]
    warm: bool = False  # whether the last message makes the next one better


@dataclass(frozen=True)
class Leaving:
    """A site's answer to an order, on its way out."""

    federation: Federation
    order: Order
    site: str
    noise: MakeNoise
    hides: bool  # whether nobody else is to know the random bits of the encoding beforehand

    def released(self, payload: Payload, memory: Memory) -> tuple[Payload, Memory]:
        """The payload as it is sent, and what a site with `memory` is to remember of it.

        With feedback what was left out is added to the next update that is sent (Karimireddy et
        al. 2019, Algorithm 1). It comes after clip and noise, so it is made of what was released.
        Raises SiteError for values that cannot be encoded.
        """
        program, specs = self.federation.program, self.federation.parts
        released = program.privacy.release(
            payload, self.order.shared, self.federation.plan, self.site, self.noise
        )
        codings = self._codings()
        feedback = program.codec.up.feedback
        sent: dict[str, Tensor] = {}
        kept: dict[str, Tensor] = {}
        # Between machines the parts travel without names, one after the other in this order.
        ordered = {part: released[part] for part in specs if part in released} | dict(released)
        for part, value in ordered.items():
            if part not in codings:
                sent[part] = value
                continue
            way = codings[part]
            if feedback and UNSENT + part in memory:
                value = value + memory[UNSENT + part]
            try:
                sent[part] = way.encode(value, memory.get(SENT + part))
            except ValueError as error:
                raise SiteError(
                    f"the update of site '{self.site}' cannot be encoded: {error}",
                    "its training diverged, or choose other codec.up.steps",
                ) from None
            if feedback:
                kept[UNSENT + part] = value - way.decode(sent[part])
                if way.warm:
                    kept[SENT + part] = sent[part]
        return sent, kept

    def _codings(self) -> dict[str, _Coding]:
        """How each part is encoded, of those that are."""
        program, specs = self.federation.program, self.federation.parts
        linear = coding.masked(program)
        if linear is not None:
            lengths = self.federation.lengths
            return {part: self._projection(linear, part, lengths[part]) for part in lengths}
        return {
            part: self._message(spec, part, spec.codec.warm)
            for part, spec in specs.items()
            if spec.codec is not None
        }

    def _projection(self, linear: Pipeline, part: str, length: int) -> _Coding:
        """What goes before the masks."""
        key = coding.round_key(self.federation.program, self.order.round, part)
        return _Coding(
            lambda values, _: linear.project(values, key),
            lambda left: linear.expand(left, length, key),
        )

    def _message(self, spec: PartSpec, part: str, warm: bool) -> _Coding:
        key = self._key(part)
        return _Coding(lambda values, last: spec.encode(values, key, last), spec.received, warm)

    def _key(self, part: str) -> int:
        """Of the random bits of the encoding: with a seeded one a run repeats bit for bit."""
        if self.hides:
            return secrets.randbits(63)
        path = ("round", self.order.round, "site", self.site, "codec", part)
        return derive(self.federation.program.train_seed, *path)
