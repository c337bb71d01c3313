"""A model on its way to sites on other machines: only what each of them lacks is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from fedsight.core.types import Order
from fedsight.engines.protected import is_rebuilt, order_digest
from fedsight.engines.remote import messages
from fedsight.engines.remote.conversation import Talk
from fedsight.program.federation import Federation


def digest_of(vector: Tensor) -> str:
    """The SHA-256 by which coordinator and site know that they mean the same vector."""
    return order_digest(Order(0, vector))


class Model:
    """The model after `round`, and the `difference` that makes it of the one before."""

    def __init__(
        self, federation: Federation, round: int, vector: Tensor, difference: Tensor | None
    ) -> None:
        self.round = round
        self.rebuilt = is_rebuilt(federation, round, vector)
        self.vector, self._difference = vector, difference

    @cached_property
    def _fields(self) -> dict[str, object]:
        return {"vector": 0, "difference": 0, "model": digest_of(self.vector)}

    @cached_property
    def _whole(self) -> memoryview:
        return messages.pack([self.vector])

    def asked(
        self,
        talk: Talk,
        held: int | None,
        whole: set[str],
        ask: Callable[[Mapping[str, object]], dict[str, Any]],
    ) -> dict[str, Any]:
        """The answer of a site to a question about the model, of which it is sent what it lacks, as
        `send` does; who is sent all of it is added to `whole`."""
        sent = self.send(talk, held)
        if sent["vector"]:
            whole.add(talk.site)  # whatever becomes of it
        answer = ask(sent)
        if not sent["vector"] and answer.get("missing") is True:
            whole.add(talk.site)
            answer = ask(self.send_whole(talk))
        return answer

    def send(self, talk: Talk, held: int | None) -> dict[str, object]:
        """Send what a site that holds the model after round `held` lacks; the fields of a question
        that say what it was sent."""
        if held == self.round or (held is None and self.rebuilt):
            return self._fields
        if self._difference is not None and held == self.round - 1:
            sent = messages.pack([self._difference])
            return {**self._fields, "difference": talk.send("difference", sent)}
        return self.send_whole(talk)

    def send_whole(self, talk: Talk) -> dict[str, object]:
        """Send all of it."""
        return {**self._fields, "vector": talk.send("vector", self._whole)}
