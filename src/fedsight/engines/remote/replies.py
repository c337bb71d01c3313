"""The coordinator's end of a reply: its length is known beforehand, and it is added whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO

import torch

from fedsight.aggregation.secure import SecureSum
from fedsight.core.types import Batch, Metrics
from fedsight.engines.base import Note, Total
from fedsight.engines.remote import messages
from fedsight.models.base import Network
from fedsight.privacy.secagg import pack
from fedsight.program.federation import Federation


def due_bytes(total: Total, sizes: Mapping[str, int]) -> int:
    """Bytes of a reply's vectors."""
    if isinstance(total, SecureSum):
        return pack.size(total.quantiser.length, total.quantiser.modulus)
    return 4 * sum(sizes.values())


def add(total: Total, sizes: Mapping[str, int], spool: IO[bytes], note: Note) -> None:
    """Add the vectors of a reply; what the sum refuses is a SiteError."""
    data = read(spool)
    if isinstance(total, SecureSum):
        words = pack.unpack(data, total.quantiser.length, total.quantiser.modulus)
        total.add_words(words, note.weight, note.site)
    else:
        total.add(messages.unpack(data, sizes), note.weight, note.site)


def read(spool: IO[bytes]) -> bytearray:
    """All that was written."""
    data = bytearray(spool.tell())
    spool.seek(0)
    spool.readinto(data)  # type: ignore[attr-defined]
    return data


def blank(federation: Federation, network: Network) -> Metrics:
    """What the task measures on one black image: the names and shapes of its sums."""
    size = federation.dataset.preprocess
    black = torch.zeros(1, size.channels, size.height, size.width)
    network.module.eval()
    with torch.inference_mode():
        task, classes = federation.program.task, len(federation.dataset.classes)
        return task.measure(network.module, Batch(black, task.blank(classes)), classes)
