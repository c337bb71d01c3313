"""What the coordinator says of the model that a run ended with, and how a site keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.core.text import printable
from fedsight.core.types import Order
from fedsight.deploy.site.delivery.received import (
    KEY,
    MAX_PROGRAM_NAME,
    Received,
    ReceivedOrder,
)
from fedsight.deploy.site.incoming import count
from fedsight.deploy.site.release import digest_of
from fedsight.deploy.site.trainer import OpenData
from fedsight.engines.protected import order_digest
from fedsight.governance.contract import is_sha256


@dataclass(frozen=True)
class FinalOrder:
    """A run has ended with the model `digest`; `vector` is it, None if it is not here yet.

    The digest is that of an order: it covers the parameters too that only the coordinator had.
    """

    opened: OpenData
    round: int
    accepted: int
    counted: int
    digest: str
    vector: Tensor | None
    texts: int = 0  # bytes that what a recogniser says of its answers takes, at most

    @classmethod
    def of(
        cls,
        fields: Mapping[str, Any],
        opened: OpenData,
        vector: Tensor | None,
        due: int,
        sent: bool,
    ) -> FinalOrder:
        """What the header `fields` says of a model of `due` values. `vector` came with it if it was
        `sent`, else the site has it from a question before, whatever that was about.

        Raises SiteError if it came and is not the one that the coordinator named.
        """
        digest = str(fields.get("digest"))
        if not is_sha256(digest):
            raise SiteError("the coordinator named no valid SHA-256", "update the coordinator")
        round, accepted = count(fields, "round"), count(fields, "accepted")
        counted = count(fields, "counted")
        if max(accepted, counted) > round:
            cause = f"a site cannot count in more than {round} rounds"
            raise SiteError(cause, "update the coordinator")
        if vector is not None and vector.numel() != due:
            if sent:
                n = vector.numel()
                cause = f"{n:,} values came as the model, which has {due:,}"
                cure = "run the same FedSight version at the coordinator and at the sites"
                raise SiteError(cause, cure)
            vector = None
        if vector is not None and order_digest(Order(round, vector), opened.kept) != digest:
            if sent:
                cause = "the model that came is not the one that the coordinator named"
                raise SiteError(cause, "the connection or the coordinator corrupts data: try again")
            vector = None
        return cls(opened, round, accepted, counted, digest, vector)

    @property
    def key(self) -> str:
        """The name of the run under its program, for folders."""
        opened = self.opened
        return digest_of("final", opened.program.fingerprint, opened.memory.name)[:KEY]

    def keep(self, home: Path, check_room: Callable[[int], None]) -> bool:
        """Keep the model in the site's folder; False if it is not here.

        `check_room` raises DeployError if the contract has no room for so many bytes more. Raises
        SiteError if the run has ended with another model.
        """
        received, opened = Received(home), self.opened
        if not received.accepts(self.key, self.digest):
            return True
        if self.vector is None:
            return False
        kept = opened.kept
        values = self.vector.numel() + (0 if kept is None else kept.numel())
        table = opened.program.table()
        order = ReceivedOrder(
            run=opened.memory.name,
            fingerprint=opened.program.fingerprint,
            # The name, which may have any length, is not part of the fingerprint.
            program={**table, "name": printable(table["name"], MAX_PROGRAM_NAME)},
            site=opened.name,
            memory=str(opened.memory.relative_to(home)),
            round=self.round,
            accepted=self.accepted,
            counted=self.counted,
            digest=self.digest,
            bytes=2 * 4 * values + self.texts,  # the model, and a recogniser
            wanted=opened.owner.delivery.choose,
        )
        order = order.with_texts()
        check_room(order.bytes)
        vectors = {"vector": self.vector} if kept is None else {"vector": self.vector, "kept": kept}
        received.keep(self.key, order, vectors)
        return True
