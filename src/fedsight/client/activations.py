"""Batches of what the frozen layers make of images, computed once for each image."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from fedsight.core.types import Batch
from fedsight.models.base import TOGETHER
from fedsight.models.prefix import laid_out
from fedsight.program.federation import Federation
from fedsight.program.kept import Kept, bound_copy, images_of
from fedsight.program.site_data import SiteData


class Activations:
    """What the first layer that is not frozen gets of the images of a federation.

    It is computed for TOGETHER images at a time, kept or not, so that keeping changes no bit.
    """

    def __init__(
        self, kept: Kept, federation: Federation, initial: Tensor, device: torch.device
    ) -> None:
        """`initial` [size] are the network's weights; `device` is where batches go."""
        self.prefix = kept.prefix
        self._rows = kept.rows
        self._federation, self._initial, self._device = federation, initial.clone(), device
        self._shifts = federation.varies

    def batch(self, data: SiteData, positions: Tensor) -> Batch:
        """The activations at `positions` [b] within a site, with their targets."""
        first = self._first(data)
        if self._rows is None or first is None:
            rows = self._computed(data, positions)
        else:
            numbers = first + data.indices[positions]
            rows, there = self._rows.get(numbers)
            if not bool(there.all()):
                rows[~there] = self._computed(data, positions[~there])
                self._rows.put(numbers[~there], rows[~there])
        x = laid_out(rows, self.prefix.shape).to(self._device)
        hidden = data.unlabelled(positions)
        hidden = None if hidden is None else hidden.to(self._device)
        return Batch(x, data.targets(positions).to(self._device), hidden)

    def fill(self, data: SiteData) -> None:
        """Keep the activations of all images of a site that are not kept yet, if there is room.

        The places of a batch that would stay empty take other images, whose turn comes later.
        """
        first = self._first(data)
        if self._rows is None or first is None:
            return
        due = (~self._rows.has(first + data.indices)).nonzero().flatten()
        for positions in due.split(TOGETHER) if len(due) else ():
            mine = data.indices[positions]
            if len(others := self._waiting(data, first, mine)):
                with contextlib.suppress(Exception):  # the others may be broken
                    indices = torch.cat([mine, others])
                    origins = torch.full_like(indices, -1)
                    every = replace(data, indices=indices, origins=origins, hidden=None)
                    rows = self._computed(every, torch.arange(len(indices)))
                    self._rows.put(first + indices, rows)
                    continue
            self._rows.put(first + mine, self._computed(data, positions))

    def _waiting(self, data: SiteData, first: int, mine: Tensor) -> Tensor:
        """Other images of the same part, to fill a batch: the next that are not kept yet."""
        room = TOGETHER - len(mine)
        if self._rows is None or self._shifts or not room:
            return mine[:0]
        there = self._rows.has(first + torch.arange(len(data.part.images)))
        there[mine] = True
        left = (~there).nonzero().flatten()
        return torch.cat([left[left > mine[-1]], left[left < mine[-1]]])[:room]

    def _first(self, data: SiteData) -> int | None:
        """The number of the first image of the site's part; None for images that are not kept."""
        first, dataset = 0, self._federation.dataset
        if self._shifts and (
            data.part.images is not dataset.train.images or self._federation.program.split.shares
        ):
            return None  # each site sees them in its own way
        for images in images_of(dataset):
            if images is data.part.images:
                return first
            first += len(images)
        return None

    def _computed(self, data: SiteData, positions: Tensor) -> Tensor:
        """The rows [b, values] of images, from the pixels."""
        rows = torch.empty(len(positions), torch.Size(self.prefix.shape).numel())
        for places in torch.arange(len(positions)).split(TOGETHER):
            x = self._federation.batch(data, positions[places]).x.to(self._device)
            rows[places] = self.prefix.activations(self._frozen, x).flatten(1).cpu()
        return rows

    @cached_property
    def _frozen(self) -> nn.Module:
        """A network of its own: nothing that is done to the trained one shows in it."""
        with torch.inference_mode(False):
            return bound_copy(self._federation, self._initial).to(self._device)
