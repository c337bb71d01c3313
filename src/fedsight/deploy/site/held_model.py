"""The newest model that a site has: built here, received whole, or made of the one before."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.deploy.site.incoming import IncomingVectors, count
from fedsight.deploy.site.trainer import Opened
from fedsight.engines.remote import messages
from fedsight.engines.remote.models import digest_of

# The answer that the model in question is not here, and has to come whole.
MISSING: dict[str, Any] = {"missing": True, "done": True, "ticket": 0}


class HeldModel:
    """The model after some round. A question names the one that it means by its hash, and a site
    trains from no other."""

    def __init__(self, incoming: IncomingVectors) -> None:
        self._incoming = incoming
        self._lock = threading.Lock()
        self._held: tuple[int, Tensor] | None = None  # the round, and the model after it
        self._found: Opened | None = None

    def join(self, found: Opened) -> None:
        """Take part in a run, whose first model has been built here."""
        with self._lock:
            self._found = found
            self._held = None if found.initial is None else (0, found.initial)

    def of(self, round: int, fields: Mapping[str, Any]) -> Tensor | None:
        """The model after `round` that a question means, with what came for it; None if it has to
        come whole.

        Raises SiteError for what did not come, or was altered.
        """
        with self._lock:
            if mark := count(fields, "vector"):
                data = self._incoming.take("vector", mark)
                self._held = round, messages.unpack(data, {"vector": len(data) // 4})["vector"]
                return self._held[1]
            if self._held is None:
                return None
            due, (held, vector) = str(fields.get("model")), self._held
            if held == round - 1 and (mark := count(fields, "difference")):
                vector = self._moved(vector, round, mark)
            elif held != round:
                return None
            if digest_of(vector) != due:
                return None
            self._held = round, vector
            return vector

    def known(self, round: int) -> Tensor | None:
        """The model after `round`, if it is here."""
        with self._lock:
            return self._held[1] if self._held is not None and self._held[0] == round else None

    def _moved(self, vector: Tensor, round: int, mark: int) -> Tensor:
        """The model after `round`, made of the one before."""
        codec = None if self._found is None else self._found.difference
        data = self._incoming.take("difference", mark)
        try:
            if codec is None:
                raise ValueError("this program sends whole models")
            return codec.decode(vector, torch.frombuffer(data, dtype=torch.uint8))
        except ValueError as error:
            raise SiteError(
                f"the difference to the model after round {round} cannot be used: {error}",
                "the connection or the coordinator corrupts data, or it runs another FedSight "
                "version: try again",
            ) from None
