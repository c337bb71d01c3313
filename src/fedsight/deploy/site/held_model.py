"""The newest model that a site has: built here, received whole, or made of the one before."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.core.types import Order
from fedsight.deploy.site.incoming import IncomingVectors, count
from fedsight.deploy.site.trainer import Opened
from fedsight.engines.protected import order_digest
from fedsight.engines.remote import messages
from fedsight.engines.remote.models import digest_of

log = logging.getLogger(__name__)

# The answer that the model in question is not here, and has to come whole.
MISSING: dict[str, Any] = {"missing": True, "done": True, "ticket": 0}


class HeldModel:
    """The model after some round. A question names the one that it means by its hash, and a site
    trains from no other."""

    def __init__(self, incoming: IncomingVectors) -> None:
        self._incoming = incoming
        self._lock = threading.Lock()
        self._held: tuple[int, Tensor] | None = None  # the round, and the model after it
        self._named = ""  # its hash, which a question named
        self._found: Opened | None = None

    def join(self, found: Opened) -> None:
        """Take part in a run, whose first model has been built here."""
        with self._lock:
            self._found = found
            self._held = None if found.initial is None else (0, found.initial)
            self._named = ""

    def of(self, round: int, fields: Mapping[str, Any]) -> Tensor | None:
        """The model after `round` that a question means, with what came for it; None if it has to
        come whole.

        Raises SiteError for what did not come, or for a whole model that is not the one meant.
        """
        with self._lock:
            if mark := count(fields, "vector"):
                data = self._incoming.take("vector", mark)
                whole = messages.unpack(data, {"vector": len(data) // 4})["vector"]
                named = str(fields.get("model", ""))
                if "model" in fields and digest_of(whole) != named:
                    raise SiteError(
                        f"the model after round {round} that came is not the one that was named",
                        "the connection or the coordinator corrupts data: try again",
                    )
                self._held, self._named = (round, whole), named
                return whole
            if self._held is None:
                return None
            due, (held, found) = str(fields.get("model")), self._held
            vector: Tensor | None = found
            if held == round - 1 and (mark := count(fields, "difference")):
                vector = self._moved(found, round, mark)
            elif held != round:
                return None
            if vector is None or digest_of(vector) != due:
                return None
            self._held, self._named = (round, vector), due
            return vector

    def digest(self, order: Order, kept: Tensor | None) -> str:
        """The SHA-256 of the vectors of an order and of those that are `kept`: where that is the
        model alone, and it is here, its hash is known."""
        with self._lock:
            alone = not order.shared and kept is None
            if alone and self._named and self._held is not None and self._held[1] is order.vector:
                return self._named
        return order_digest(order, kept)

    def known(self, round: int) -> Tensor | None:
        """The model after `round`, if it is here."""
        with self._lock:
            return self._held[1] if self._held is not None and self._held[0] == round else None

    def _moved(self, vector: Tensor, round: int, mark: int) -> Tensor | None:
        """The model after `round`, made of the one before; None if the difference was altered."""
        codec = None if self._found is None else self._found.difference
        data = self._incoming.take("difference", mark)
        try:
            if codec is None:
                raise ValueError("this program sends whole models")
            return codec.decode(vector, torch.frombuffer(data, dtype=torch.uint8))
        except ValueError as error:
            log.warning("the difference to the model after round %d is useless: %s", round, error)
            return None
