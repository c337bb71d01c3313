"""Clipping of everything a client sends, jointly: the bound that noise is calibrated to."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.core.fixedpoint import FRACTION_BITS
from fedsight.core.types import Payload

# Below 2^-126, a float32 is a multiple of 2^-149, and may be rounded to twice its value. So factors
# and clips below this limit, which leaves room for what is made of them, are used in float64.
COARSE = 1e-30


def norm(payload: Payload, site: str) -> float:
    """Joint L2 norm of all parts, in float64; SiteError naming the site if it is not finite."""
    squares = 0.0
    for part in payload.values():
        squares += float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2
    if not math.isfinite(squares):
        raise SiteError(
            f"the update of site '{site}' is not finite (NaN or infinity)",
            "its training diverged or its data are broken: lower train.lr, set train.clip or "
            "check its images; with rounds.quorum a run continues without such replies",
        )
    return math.sqrt(squares)


def clip(payload: Payload, most: float, site: str) -> dict[str, Tensor]:
    """All parts scaled by one factor so that their joint norm is at most `most`.

    The bound also holds for the integers that are added (`core/fixedpoint.py`): a margin is left
    for their rounding, so no update exceeds what the noise is calibrated to. An update of zeros is
    unchanged. Raises SiteError naming the site if the update is not finite.
    """
    found = norm(payload, site)
    entries = sum(part.numel() for part in payload.values())
    # Each entry is rounded twice: to float32 by the scaling, and to fixed point.
    room = most * (1 - 1e-6) - math.sqrt(entries) * 2.0**-FRACTION_BITS
    scale = 1.0 if found <= max(room, 0.0) else max(room, 0.0) / found
    return {name: part if scale == 1.0 else _times(part, scale) for name, part in payload.items()}


def _times(part: Tensor, scale: float) -> Tensor:
    if scale >= COARSE:
        return part * scale
    return (part.double() * scale).to(part.dtype)


def check_clipped(payload: Payload, most: float, site: str) -> None:
    """Raise SiteError naming the site if `clip` cannot have made this payload.

    The margin is for a codec's rounding, float16 at most.
    """
    found = norm(payload, site)
    if found > most * (1 + 1e-3):
        raise SiteError(
            f"site '{site}' sent an update of norm {found:.3g}, above the clip of {most:.3g}",
            "run the same FedSight version at this site; if that is so, it cheats: revoke it",
        )


def flat(parts: Mapping[str, Tensor]) -> Tensor:
    """All parts as one vector, in their order."""
    return torch.cat(list(parts.values()))


def cut(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `flat`: `vector` split into parts like those of `like`."""
    pieces = vector.split([part.numel() for part in like.values()])
    return dict(zip(like, pieces, strict=True))
