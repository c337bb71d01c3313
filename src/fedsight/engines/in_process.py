"""The in-process engine: client steps one after the other, in the calling process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from fedsight.aggregation.base import Aggregator
from fedsight.aggregation.secure import SecureSum
from fedsight.client.bound_model import chunk
from fedsight.client.company import Company
from fedsight.client.members import Members
from fedsight.client.memory import MemoryStore
from fedsight.client.step import Client
from fedsight.core.errors import SiteError
from fedsight.core.threads import one_thread
from fedsight.core.types import Memory, Metrics, Order, Reply, add_metrics
from fedsight.engines.base import Accepted, Arrival, Counted, Earlier, Outcome, Rejected, Work
from fedsight.engines.protected import Keys, aggregator_of, reply_bytes
from fedsight.program.federation import Federation
from fedsight.program.kept import keep
from fedsight.program.program import Speed


class LocalWorker:
    """The work of one process: trains clients and measures chunks. Both local engines use it."""

    def __init__(self, federation: Federation, memory: Path, speed: Speed) -> None:
        self.federation = federation
        self.clients = Members(federation, lambda member: Company(member, speed))
        self.memory = MemoryStore(memory)
        # The previous round's checkpoint may not be written yet.
        self._lag = speed.checkpoint_every + 1
        self.seen = 0  # training images, each as often as it was seen

    def train(
        self, order: Order, client: int, total: Aggregator, counted: Counted | None = None
    ) -> Arrival:
        """Run a client step and add its reply; a rejected one changes neither sum nor memory.

        `counted` says how it counts; None: as one to the newest model.
        """
        site = self.federation.name(client)
        try:
            memory = self.memory.load(site, order.round)
            reply = self.clients.of(client).step(order, client, memory)
        except SiteError as error:
            return Rejected(client, site, error.cause)
        return self._add(client, reply, total, counted or Counted(order.round))

    def train_group(
        self,
        order: Order,
        clients: Sequence[int],
        total: Aggregator,
        counted: Counted | None = None,
    ) -> list[Arrival]:
        """`train` clients side by side, or one after the other where that cannot be."""
        companies = {id(one): one for one in map(self.clients.of, clients)}
        replies = None
        if len(companies) == 1:
            (company,) = companies.values()
            replies = company.together(order, clients)
        if replies is None:
            return [self.train(order, client, total, counted) for client in clients]
        counted = counted or Counted(order.round)
        return [
            Rejected(client, self.federation.name(client), reply.cause)
            if isinstance(reply, SiteError)
            else self._add(client, reply, total, counted)
            for client, reply in zip(clients, replies, strict=True)
        ]

    def _add(self, client: int, reply: Reply, total: Aggregator, counted: Counted) -> Arrival:
        site = reply.site
        try:
            total.add(reply.payload, reply.weight, site, counted.factor)
        except SiteError as error:
            return Rejected(client, site, error.cause)
        if reply.memory:
            # As of the round in which it counts: a run that returns to an earlier one drops it.
            self.memory.save(site, counted.round, reply.memory)
            self.memory.prune(site, counted.round - self._lag)
        loss = reply.metrics.get("train_loss")
        self.seen += loss.count if loss else 0
        known = loss.mean if loss else float("nan")
        sent = reply_bytes(self.federation, total, reply.payload)
        return Accepted(client, site, reply.weight, known, sent)

    def sums(self) -> Aggregator:
        """An empty aggregator for this worker's replies, on the device if they stay there."""
        federation, client = self.federation, self.clients.of(None)
        device, made = client.vector.device, aggregator_of(federation, 1)
        if not client.stays or device.type == "cpu":
            return made
        there = {part: one.to(device) for part, one in made.tensors.items()}
        return aggregator_of(federation, 1, there)

    def measure(
        self, vector: Tensor, round: int, job: tuple[int, int], validation: bool = False
    ) -> Metrics:
        """The sums of one chunk (view, start), for the model after `round`."""
        tested, (view, start) = measured(self.federation, validation), job
        seen = tested.views[view]
        memory: Memory = {}
        if seen.site is not None:
            memory = self.memory.load(self.federation.partition.name(seen.site), round + 1)
        client = self.clients.loaded(vector, seen.site, memory)
        # A model of a site that has never trained is no model of anybody.
        return {} if client is None else client.measure(tested.tested(seen), start)


def measured(federation: Federation, validation: bool) -> Federation:
    """The federation with the views to measure: those of the test part or the validation part."""
    found = federation.validating if validation else federation
    assert found is not None  # the loop asks for a validation part only where there is one
    return found


def chunks(federation: Federation) -> list[tuple[int, int]]:
    """(view, start) of every chunk of test images.

    Where every site sees the whole test part in its own way, a site alone is measured only as it
    sees it: nobody asks for its model on what others see.
    """
    own = federation.only is not None and federation.dataset.test.sites is None
    return [
        (number, start)
        for number, view in enumerate(federation.views)
        if not own or view.site in (None, federation.only)
        for start in range(0, len(view.indices), chunk(federation, len(view.indices)))
    ]


def by_view(
    federation: Federation, jobs: Sequence[tuple[int, int]], done: Sequence[Metrics]
) -> list[Metrics]:
    """Chunk sums added up by view, always in the same order."""
    parts: list[list[Metrics]] = [[] for _ in federation.views]
    for (view, _), metrics in zip(jobs, done, strict=True):
        parts[view].append(metrics)
    return [add_metrics(part) for part in parts]


class InProcessEngine:
    """Runs everything in the calling process, one client after the other."""

    overlaps: ClassVar[bool] = False
    validates: ClassVar[bool] = True

    def __init__(
        self, federation: Federation, memory: Path | None = None, speed: Speed | None = None
    ) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="fedsight-") if memory is None else None
        folder = Path(self._scratch.name) if self._scratch else memory
        assert folder is not None
        self.federation = federation
        speed = speed or Speed(device="cpu")
        with one_thread():
            keep(federation, speed, folder.parent)
        self._worker = LocalWorker(federation, folder, speed)
        self._total = aggregator_of(federation, federation.terms)
        self._keys = Keys(federation)

    def submit(self, order: Order, cohort: Sequence[int], earlier: Sequence[Earlier] = ()) -> Work:
        """Start a round; each client trains when the returned work is advanced."""
        tasks = (Earlier(order, cohort, 1.0), *earlier)
        self._total.clear(sum(len(task.clients) for task in tasks))
        outcome = Outcome(self._total)
        maskers = self._keys.begin(order, cohort, self._total)
        if isinstance(self._total, SecureSum):
            self._total.begin(order.round, maskers)

        def arrivals() -> Iterator[Arrival]:
            for task in tasks:
                counted = Counted(order.round, task.factor)
                for client in task.clients:
                    with one_thread():
                        arrival = self._worker.train(task.order, client, self._total, counted)
                    yield arrival

        return Work(outcome, arrivals(), lambda: self._keys.finish(outcome, len(cohort)))

    def measure(
        self,
        vector: Tensor,
        round: int,
        validation: bool = False,
        difference: Tensor | None = None,
    ) -> list[Metrics]:
        """The metric sums of each view."""
        tested = measured(self.federation, validation)
        jobs = chunks(tested)
        with one_thread():
            done = [self._worker.measure(vector, round, job, validation) for job in jobs]
        return by_view(tested, jobs, done)

    @property
    def seen(self) -> int:
        """How many training images the accepted replies were made from, in all rounds so far; an
        image counts as often as it was seen. 0 where a reply does not tell."""
        return self._worker.seen

    def loaded(self, vector: Tensor) -> Client:
        """This engine's client with the model `vector`, without any site's memory."""
        client = self._worker.clients.of(None)
        client.load(vector, {})
        return client

    def close(self) -> None:
        """Remove the temporary folder."""
        if self._scratch:
            self._scratch.cleanup()
