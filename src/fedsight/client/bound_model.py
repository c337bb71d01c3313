"""A network bound to one vector on a device: it loads models, and measures them on images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsight.client.activations import Activations
from fedsight.client.failures import measuring, named, unmeasured
from fedsight.core.devices import drawing, find_device, moved, prepare
from fedsight.core.errors import SiteError
from fedsight.core.layout import Kind
from fedsight.core.types import Batch, Memory, Metrics, Sum, add_metrics
from fedsight.data.degraded import DEGRADATIONS
from fedsight.models.detector import has_views
from fedsight.models.norms import guard_group_norms
from fedsight.privacy.noised_sums import Bounds, bounded
from fedsight.program.federation import Federation
from fedsight.program.kept import kept_for
from fedsight.program.program import Speed
from fedsight.program.site_data import SiteData

TOGETHER = 64  # images of a unit that are measured; so that none of them costs all the memory
CHUNK = 256  # test images measured at once; fixed, so that sums do not depend on the machine
# What a network draws while it is measured (Faster R-CNN's loss is that of some boxes) begins anew
# each time. Otherwise one image more would give all those after it other draws.
DRAWS = 0


class BoundModel:
    """The federation's network, and whatever model its vector holds.

    It alone chooses a device: vectors, memories and figures go in and come out on the CPU.
    """

    def __init__(self, federation: Federation, speed: Speed | None = None) -> None:
        """Raises EngineError when the device of `speed` is not there."""
        self.federation = federation
        self._speed = speed or Speed(device="cpu")
        self._device = find_device(self._speed.device)
        prepare(self._device, precise=self._speed.precision == "float32")
        self.network, self.layout = federation.network, federation.layout
        self.model = self.network.module
        guard_group_norms(self.model)
        self.initial = federation.initial.clone()
        self.model.to(self._device)
        self.vector = self.initial.to(self._device, copy=True)
        self.layout.bind(self.model, self.vector)
        self._parameters = dict(self.model.named_parameters())
        self._first = next(iter(self._parameters.values()))
        self._pointer = self._first.data_ptr()
        self.own = federation.program.own(self.layout)
        self._kinds = {entry.name: entry.kind for entry in self.layout.entries}
        self._constant = self._constant_buffers()
        self._found: Activations | None = None
        self._sought = self._adopted = False

    def _constant_buffers(self) -> list[tuple[Tensor, Tensor]]:
        """The buffers that neither travel nor are remembered, with the values that all sites begin
        from: integers (BatchNorm's counter), frozen ones, and those that are not saved."""
        frozen = [entry for entry in self.layout.entries if entry.kind == Kind.FROZEN]
        values = {entry.name: entry.view(self.initial) for entry in frozen}
        return [
            (buffer, values[name] if name in values else buffer.clone())
            for name, buffer in self.model.named_buffers()
            if self._kinds.get(name, Kind.FROZEN) == Kind.FROZEN
        ]

    def load(self, vector: Tensor, memory: Memory) -> None:
        """Make `vector` [d], which travels, and what the site has of its own the model's weights;
        a smaller network has its part of it."""
        self._place(self.federation.received(vector), memory)

    def _place(self, vector: Tensor, memory: Memory) -> None:
        """Make `vector` [travelling] and what the site has of its own the model's weights."""
        layout = self.layout
        if self._first.data_ptr() != self._pointer:  # another client has bound the network since
            layout.bind(self.model, self.vector)
        self.vector[layout.travelling].copy_(vector)
        self.vector[layout.personal].copy_(self.initial[layout.personal])
        if "personal" in memory:
            self.vector[self.own].copy_(memory["personal"])
        # A forward pass may have changed them. What a site did before must not show in what it does
        # now, but by its memory; nor may another client's in this process.
        for buffer, value in self._constant:
            buffer.copy_(value)

    def adopt(self, kept: Tensor) -> None:
        """Begin from these personal and frozen values [kept], not from those of the program.

        Raises SiteError if there are not as many as the layout has.
        """
        due = len(self.initial[self.layout.kept])
        if len(kept) != due:
            raise SiteError(
                f"{len(kept):,} parameters came that do not travel, and the network has {due:,}",
                "run the same FedSight version at the coordinator and at the sites",
            )
        self.initial[self.layout.kept].copy_(kept)
        self.vector[self.layout.kept].copy_(kept)
        self._sought, self._adopted = False, True

    def batch(self, data: SiteData, positions: Tensor, pixels: Tensor | None = None) -> Batch:
        """A normalised batch on this client's device; `pixels` if they were already read,
        and have the look of their site."""
        made = self.federation.batch(data, positions, pixels)
        hidden = None if made.unlabelled is None else moved(made.unlabelled, self._device)
        return Batch(moved(made.x, self._device), moved(made.y, self._device), hidden)

    @property
    def activations(self) -> Activations | None:
        """What the frozen first layers make of images; None where the network has none."""
        if not self._sought:
            self._sought, self._found, of = True, None, self.federation
            known = None if self._adopted else of.kept
            if known is None or not known.suits(self.layout):
                known = kept_for(of, self.initial, self._speed)
            if known is not None:
                self._found = Activations(known, of, self.initial, self._device)
        return self._found

    @contextlib.contextmanager
    def inputs(self, data: SiteData, learns: bool = False) -> Iterator[Callable[[Tensor], Batch]]:
        """A function from positions within `data` to batches; within it, the model takes these.

        They are of images, or, where the first layers are frozen, of what these made of them. A
        model whose answers need several views of an image gets images, unless it `learns`: only its
        loss, or features, are asked for.
        """
        known = self.activations
        if known is None or (has_views(self.model) and not learns):
            yield lambda positions: self.batch(data, positions)
            return
        with known.prefix.resumed(self.model):
            yield lambda positions: known.batch(data, positions)

    def measure(self, client: SiteData, start: int) -> Metrics:
        """Sums over the chunk of test images from `start`, with the weights loaded last.

        Raises EngineError when the device fails or has too little memory.
        """
        doing = measuring(len(client))
        with named(self._device, doing, lambda: unmeasured(self._device, doing, CHUNK)):
            return self._measured(client, start)

    def _measured(self, client: SiteData, start: int) -> Metrics:
        self.model.eval()
        size = chunk(self.federation, len(client))
        positions = torch.arange(start, min(start + size, len(client)))
        classes = len(self.federation.dataset.classes)
        drawn = drawing(self._device, DRAWS)
        with self.inputs(client) as read, torch.inference_mode(), drawn:
            batch = read(positions)
            if self.federation.degrades:
                batch = replace(batch, degraded=self._degraded(client, positions))
            return self.federation.program.task.measure(self.model, batch, classes)

    def _degraded(self, data: SiteData, positions: Tensor) -> Mapping[str, Tensor]:
        """The images at `positions` as their devices show them, and degraded after that."""
        pixels = data.pixels(positions)

        def made(kind: str) -> Tensor:
            seen = data.harmonised(DEGRADATIONS[kind](pixels), positions)
            return self.batch(data, positions, seen).x

        return _Degraded(made)

    def measure_all(self, client: SiteData) -> Metrics:
        """Sums over all test images, chunk after chunk: the same bits wherever it is done."""
        size = max(1, chunk(self.federation, len(client)))
        return add_metrics([self.measure(client, at) for at in range(0, len(client), size)])

    def measure_each(self, client: SiteData, bounds: Bounds, blank: bool = False) -> Metrics:
        """Sums of bounded shares: each unit of test images (see `Evaluation.units`), which is one
        image for most tasks, is measured apart from all others, so that none can change its share.

        What cannot be measured adds nothing; with `blank` nothing is measured.
        """
        size = self.federation.dataset.preprocess
        classes = len(self.federation.dataset.classes)
        task = self.federation.program.task
        black = torch.zeros(1, size.channels, size.height, size.width, device=self._device)
        self.model.eval()
        with torch.inference_mode(), drawing(self._device, DRAWS):
            batch = Batch(black, task.blank(classes).to(self._device))
            shapes = task.condensed(task.measure(self.model, batch, classes))
        images = len(client)
        totals: Metrics = {name: Sum(np.zeros_like(shapes[name].total), images) for name in bounds}
        numbers = task.units(client.labels().numpy())
        for unit in [] if blank else np.unique(numbers):
            drawn = drawing(self._device, DRAWS)
            with contextlib.suppress(Exception), torch.inference_mode(), drawn:
                together = np.flatnonzero(numbers == unit)[:TOGETHER]
                batch = self.batch(client, torch.from_numpy(together))
                share = bounded(task.condensed(task.measure(self.model, batch, classes)), bounds)
                totals = {k: Sum(one.total + share[k].total, images) for k, one in totals.items()}
        return totals


class _Degraded(Mapping[str, Tensor]):
    """Degraded images by kind, each kind made when it is read: a task that measures all test images
    together would otherwise hold them four times more."""

    def __init__(self, made: Callable[[str], Tensor]) -> None:
        self._made = made

    def __getitem__(self, kind: str) -> Tensor:
        return self._made(kind)

    def __iter__(self) -> Iterator[str]:
        return iter(DEGRADATIONS)

    def __len__(self) -> int:
        return len(DEGRADATIONS)


def chunk(federation: Federation, images: int) -> int:
    """How many of `images` test images are measured at once."""
    return images if federation.program.task.whole else CHUNK
