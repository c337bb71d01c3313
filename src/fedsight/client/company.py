"""A client step for several sites at once: they are trained side by side where that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from fedsight.client import failures
from fedsight.client.pace import Pace
from fedsight.client.sampling import order_of
from fedsight.client.side_by_side import Stacked, suits
from fedsight.client.site import Site
from fedsight.client.step import Client
from fedsight.core.devices import drawing
from fedsight.core.errors import SiteError
from fedsight.core.layout import Kind
from fedsight.core.rng import derive, generator
from fedsight.core.types import Batch, Metrics, Order, Reply, Sum
from fedsight.program.federation import Federation
from fedsight.program.program import Speed


class Company(Client):
    """The client step of a simulation, where one process trains many sites."""

    def __init__(self, federation: Federation, speed: Speed | None = None) -> None:
        """Raises as `Client` does."""
        super().__init__(federation, speed)
        self._stacks = suits(federation.program, set(self._kinds.values()))
        self._stacks &= not federation.program.timing.partial

    def together(self, order: Order, clients: Sequence[int]) -> list[Reply | SiteError] | None:
        """The replies of clients that are trained side by side, or why one is refused; None if
        they cannot be: then they take their steps one after the other."""
        if len(clients) < 2 or not self._stacks:
            return None
        sites = [self._site(client) for client in clients]
        wholes = [site.whole for site in sites if site.whole is not None]
        masked = {whole.unlabelled is None for whole in wholes}
        if len(wholes) < len(sites) or len({len(one.y) for one in wholes}) > 1 or len(masked) > 1:
            return None
        names = ", ".join(f"'{site.name}'" for site in sites)
        doing = failures.training_together(names, order.round)
        with failures.named(self._device, doing, lambda: failures.too_many(self._device, doing)):
            return self._together(order, sites, wholes)

    def _together(
        self, order: Order, sites: Sequence[Site], wholes: Sequence[Batch]
    ) -> list[Reply | SiteError]:
        program = self.federation.program
        seeded, path = program.train_seed, ("round", order.round, "site")
        self._place(self._sent(order), {})
        self.model.train()
        pace = Pace.of(program, order.round, self._training, len(wholes[0].y))
        shared = [entry for entry in self.layout.entries if entry.kind == Kind.SHARED]
        orders = [
            (order_of(program.train, site.labels), generator(seeded, *path, site.name, "batches"))
            for site in sites
        ]
        stacked = Stacked(self.network, shared, program, self._precision)
        with drawing(self._device, derive(seeded, *path, sites[0].name, "dropout")):
            vectors, losses, seen = stacked.train(
                self._sent(order)[self.layout.shared], wholes, orders, (pace.start, pace.at)
            )
        steps, found = pace.steps, list[Reply | SiteError]()
        for site, vector, loss in zip(sites, vectors, losses, strict=True):
            if not bool(torch.isfinite(loss)):
                found.append(failures.diverged(site.name, order.round))
                continue
            self.vector[self.layout.shared].copy_(vector)
            payload, kept = self._result(order, self._local(order, {}, pace.mean, steps))
            noise = partial(self._noise, *path, site.name)
            try:
                released, _ = self._release(payload, order, site.name, noise, {})
            except SiteError as error:
                found.append(error)
                continue
            metrics: Metrics = {"train_loss": Sum(loss.numpy(), seen)}
            metrics = {} if program.privacy.protects else metrics
            found.append(Reply(site.name, released, self._weight(site.data), metrics, kept))
        return found
