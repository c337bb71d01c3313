"""What a site computes on its own images: how its classes' scores depend on each spot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsight.client.step import Client
from fedsight.core.threads import one_thread
from fedsight.evaluation.explanations.scores import LEAST, together
from fedsight.evaluation.shortcuts.counts import Looks, Pastes
from fedsight.evaluation.shortcuts.spots import Spots
from fedsight.program.site_data import SiteData

TOGETHER = 252  # images that go through the network at once, if they are small: seven, spot by spot
PASTED_ON = 60  # images of a site that a spot is pasted on

Asked = Sequence[tuple[int, int]]  # (class number, spot)


class Observer:
    """Asks the model that a client has loaded about one site's images after another."""

    def __init__(self, client: Client) -> None:
        seen = client.federation.dataset.preprocess
        self._client, self._spots = client, Spots.of(seen.height, seen.width)
        self._classes = len(client.federation.dataset.classes)
        one = torch.empty(1, seen.channels, seen.height, seen.width, device="meta")
        self._together = together(one, TOGETHER)

    def looks(self, data: SiteData) -> Looks:
        """What the images show: of each, for each class that it has."""
        total = Looks.none(self._classes, len(self._spots))
        for label, drops, right, without in self._asked(data):
            total += Looks.of(drops, label, (right, without), self._classes)
        return total

    def maps(self, data: SiteData) -> Tensor:
        """By how much the log-odds of each class that an image has fall without each spot: [m, s],
        one row for each image and class."""
        rows = [drops for _, drops, *_ in self._asked(data)]
        return torch.cat(rows) if rows else torch.zeros(0, len(self._spots))

    def _asked(self, data: SiteData) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Of some images after another, for each class that one has: its number [m], the drops of
        its log-odds [m, s], and whether the image is given the class as it is [m] and without each
        spot [m, s]."""
        has = shown(data, self._classes)
        step = max(1, self._together // len(self._spots))
        for some in torch.arange(len(data)).split(step):
            with one_thread(), torch.inference_mode():
                before, after = self._odds_of(data, some)
            row, label = has[some].nonzero(as_tuple=True)
            drops = (before[:, None] - after)[row, :, label]
            given, without = self._given(before)[row, label], self._given(after)[row, :, label]
            yield label, drops, given, without

    def _odds_of(self, data: SiteData, some: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds of the classes of images as they are [b, classes], and without each spot
        [b, s, classes]."""
        x = self._client.batch(data, some).x.contiguous()
        spots = self._spots.to(x.device)
        rows = torch.arange(len(some)).repeat_interleave(len(spots))
        place = torch.arange(len(spots)).repeat(len(some))
        found = [
            self._odds(spots.removed(x[rows[at]], place[at]))
            for at in torch.arange(len(rows)).split(self._together)
        ]
        return self._odds(x), torch.cat(found).unflatten(0, (len(some), -1))

    def pastes(self, data: SiteData, asked: Asked) -> Pastes:
        """What comes of pasting spots of the site's images of a class on its others."""
        total, has = Pastes.none(len(asked)), shown(data, self._classes)
        with one_thread(), torch.inference_mode():
            for number, (label, spot) in enumerate(asked):
                donors, others = (
                    one.nonzero().flatten() for one in (has[:, label], ~has[:, label])
                )
                if len(donors):
                    self._paste(data, (donors, others[:PASTED_ON]), (number, label, spot), total)
        return total

    def _paste(
        self, data: SiteData, at: tuple[Tensor, Tensor], asked: tuple[int, int, int], total: Pastes
    ) -> None:
        """Adds to `total` what comes of pasting one spot; `at`: the positions of the images that it
        is taken from, in turn, and of those that it is pasted on."""
        (donors, others), (number, label, spot) = at, asked
        used = torch.zeros(len(donors), dtype=torch.bool)
        for some in torch.arange(len(others)).split(self._together):
            x = self._client.batch(data, others[some]).x.contiguous()
            theirs = self._client.batch(data, donors[some % len(donors)]).x.contiguous()
            before = self._odds(x)
            after = self._odds(self._spots.to(x.device).pasted(x, theirs, spot))
            free = ~self._given(before)[:, label]  # of the others nothing can be made
            used[(some % len(donors))[free]] = True
            total.tried[number] += free.sum()
            total.made[number] += (free & self._given(after)[:, label]).sum()
            rises = (after - before)[:, label] >= math.log(2)
            total.raised[number] += (free & rises).sum()
        total.donors[number] += used.sum()

    def _odds(self, x: Tensor) -> Tensor:
        """The log-odds [b, classes] of the classes, on the CPU."""
        task, model = self._client.federation.program.task, self._client.model
        model.eval()
        if not task.scored:
            return torch.logit(task.predict(model, x).float(), LEAST).cpu()
        scores: Tensor = model(x).float().log_softmax(1).cpu()
        return scores - torch.log1p(-scores.double().exp().clamp(max=1 - LEAST**2)).float()

    def _given(self, odds: Tensor) -> Tensor:
        """Which classes [..., classes] an image is given: the likeliest, or of a task with several
        labels all that are likelier than not."""
        if self._client.federation.program.task.classed:
            best = odds.argmax(-1, keepdim=True)
            return torch.zeros_like(odds, dtype=torch.bool).scatter_(-1, best, True)
        return odds > 0


def shown(data: SiteData, classes: int) -> Tensor:
    """Which classes the images of a site have: bool [n, classes]."""
    targets = data.part.targets
    if targets is not None and targets.dim() == 2:
        return targets[data.indices] > 0.5
    return F.one_hot(data.labels(), classes).bool()
