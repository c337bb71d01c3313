"""Integrated gradients that add up to what the score changes by.

Gradients jump where a ReLU turns on or another pixel becomes the highest, and no number of even
steps is enough for all images. So the way is divided: Captum integrates each part, what the score
changes by on it is known, and parts whose sum misses it are halved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsight.evaluation.explanations.absence import absent
from fedsight.evaluation.explanations.scores import Scored, together

COMPLETE = 1e-3  # how far a sum may be off, of the score's change, or of 1 if that is more
PARTS, STEPS = 16, 2  # of the way at first, and of each part
HALVED = 10  # times at most
MOST_STEPS = 4096  # for an image, on average over those that are integrated together
TOGETHER = 512  # images that go through the network at once, if they are small


@dataclass(frozen=True)
class _Parts:
    """Parts [m] of ways: whose, where they begin and end (0 to 1), and the score there."""

    rows: Tensor
    low: Tensor
    high: Tensor
    before: Tensor
    after: Tensor

    def some(self, chosen: Tensor) -> _Parts:
        """Those that are `chosen` [m]."""
        return _Parts(*(value[chosen] for value in vars(self).values()))


def attributed(
    scored: Scored, x: Tensor, about: Tensor, exact: bool = True
) -> tuple[Tensor, Tensor]:
    """Integrated gradients [n, c, h, w] from the images without detail to the images, and by how
    much each sum misses the change of the score [n], as a share of it, or of 1 if it is less.

    With `exact`, at most by COMPLETE where MOST_STEPS are enough; else by what few steps give.
    """
    way = _Way(scored, x, about)
    parts = way.whole()
    ends = [parts.after[PARTS - 1 :: PARTS], parts.before[::PARTS]]
    allowed = COMPLETE * (ends[0] - ends[1]).abs().clamp(min=1.0)
    found, off = torch.zeros_like(x), torch.zeros_like(allowed)
    spent = 0
    for halved in range(HALVED + 1):
        made = way.integrated(parts)
        spent += STEPS * len(parts.rows)
        missed = made.flatten(1).sum(1) - (parts.after - parts.before)
        total = off.index_add(0, parts.rows, missed)
        bad = missed.abs() > allowed[parts.rows] * (parts.high - parts.low)
        bad &= (total.abs() > allowed)[parts.rows]
        if not exact or halved == HALVED or spent > MOST_STEPS * len(x):
            bad = torch.zeros_like(bad)
        found.index_add_(0, parts.rows[~bad], made[~bad])
        off.index_add_(0, parts.rows[~bad], missed[~bad])
        if not bool(bad.any()):
            break
        parts = way.halved(parts.some(bad))
    return found, off.abs() / allowed * COMPLETE


class _Way:
    """The straight ways from images without detail to images [n, c, h, w]."""

    def __init__(self, scored: Scored, x: Tensor, about: Tensor) -> None:
        from captum.attr import IntegratedGradients

        self._scored, self._x, self._about, self._start = scored, x, about, absent(x)
        self._method = IntegratedGradients(scored)
        self._together = max(2 * STEPS, together(x, TOGETHER))

    def whole(self) -> _Parts:
        """All ways in PARTS parts, those of an image after each other."""
        rows = torch.arange(len(self._x)).repeat_interleave(PARTS)
        low = (torch.arange(PARTS) / PARTS).repeat(len(self._x))
        high = low + 1 / PARTS
        return _Parts(rows, low, high, self._scores(rows, low), self._scores(rows, high))

    def halved(self, parts: _Parts) -> _Parts:
        """Two parts of each."""
        middle = (parts.low + parts.high) / 2
        there = self._scores(parts.rows, middle)
        return _Parts(
            parts.rows.repeat(2),
            torch.cat([parts.low, middle]), torch.cat([middle, parts.high]),
            torch.cat([parts.before, there]), torch.cat([there, parts.after]),
        )  # fmt: skip

    def integrated(self, parts: _Parts) -> Tensor:
        """The integrated gradients [m, c, h, w] of parts."""
        found = []
        for some in torch.arange(len(parts.rows)).split(self._together // STEPS):
            one = parts.some(some)
            made: Any = self._method.attribute(
                self._at(one.rows, one.high), self._at(one.rows, one.low), n_steps=STEPS,
                additional_forward_args=self._about[one.rows], method="riemann_middle",
            )  # fmt: skip
            found.append(made.detach().to(self._x.dtype))
        return torch.cat(found)

    def _scores(self, rows: Tensor, at: Tensor) -> Tensor:
        pairs = zip(rows.split(self._together), at.split(self._together), strict=True)
        with torch.no_grad():
            return torch.cat([self._scored(self._at(r, a), self._about[r]) for r, a in pairs])

    def _at(self, rows: Tensor, at: Tensor) -> Tensor:
        return torch.lerp(self._start[rows], self._x[rows], at.view(-1, 1, 1, 1).to(self._x.dtype))
