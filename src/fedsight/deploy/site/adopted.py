"""The parameters of a run that do not travel with every round, and that are of weights: one file
beside the run's memory, named by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.core.files import write_atomically
from fedsight.engines.protected import starts_from_weights
from fedsight.engines.remote import messages
from fedsight.governance.contract import is_sha256
from fedsight.models.base import Model


def path_of(memory: Path, sha256: Any) -> Path:
    """Where the parameters with this SHA-256 are; SiteError if it is not one."""
    if not is_sha256(str(sha256)):
        raise SiteError("the coordinator named no valid SHA-256", "update the coordinator")
    return memory / f"kept-{sha256}.bin"


def are_those(data: bytes | bytearray, sha256: str, due: int, came: bool) -> bool:
    """Whether `data` are the `due` float32 parameters with this SHA-256.

    Raises SiteError if there are more or fewer of them, or if they `came` and are others.
    """
    found = hashlib.sha256(data).hexdigest() == sha256
    if came and not found:
        cause = "the parameters that came are not those that the coordinator named"
        raise SiteError(cause, "the connection or the coordinator corrupts data: try again")
    if found and len(data) % 4:
        raise SiteError("the parameters that came are not float32", "update the coordinator")
    n = len(data) // 4
    if found and n != due:
        raise SiteError(
            f"{n:,} parameters came that do not travel, and the network has {due:,}",
            "run the same FedSight version at the coordinator and at the sites",
        )
    return found


def require(model: Model, kept: Tensor | None, due: int) -> None:
    """Raise SiteError while this site has not adopted (`kept`) the parameters of a pretrained
    `model` that do not travel, if it has any: they are `due` bytes.

    Questions and keys name what was adopted. Without it sites would start from what each can make:
    those that have fetched published weights from these, and all others from the seed's. A
    coordinator could then tell their updates apart in a masked sum.
    """
    if starts_from_weights(model) and due and kept is None:
        raise SiteError(
            "this site has not adopted the parameters that do not travel, which are of weights",
            "adopt them first, as all sites do",
        )


def replace_others(path: Path, data: bytes, check_room: Callable[[int], None]) -> None:
    """Keep `data` at `path`, instead of the run's others: a run has one set of them.

    `check_room` raises DeployError if there is no room for so many bytes more.
    """
    others = list(path.parent.glob("kept-*.bin"))
    freed = sum(other.stat().st_size for other in others)
    check_room(max(0, len(data) - freed))
    for other in others:
        other.unlink()
    write_atomically(path, data)


def read(path: Path, made: Tensor | None) -> bytearray:
    """The content of the file; without one, the bytes of what was `made` here of published weights;
    empty if there is neither."""
    if path.is_file():
        return bytearray(path.read_bytes())
    return bytearray() if made is None else bytearray(messages.pack([made]))
