"""The client step: the only place where local training happens, whatever the engine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Generator, Tensor

from fedsight.algorithms.base import Local, Phase
from fedsight.core.errors import SiteError
from fedsight.core.layout import Kind, Layout
from fedsight.core.rng import derive, generator
from fedsight.core.types import Batch, Memory, Metrics, Order, Reply, Sum
from fedsight.data.augment import augment
from fedsight.engine.base import Federation, SiteData
from fedsight.models.norms import to_moments

CHUNK = 256  # test images measured at once; fixed, so that sums do not depend on the machine

PREPARED = 1 << 24  # pixel values of a client up to which all its images are prepared at once


class Client:
    """Trains and measures one client after the other with one network, bound to one vector."""

    def __init__(self, federation: Federation, precision: str = "float32") -> None:
        self.federation = federation
        self.network = federation.network()
        self.model = self.network.module
        self.layout: Layout = federation.program.layout(self.network)
        self.initial = self.layout.read(self.model)
        self.vector = self.initial.clone()
        self.layout.bind(self.model, self.vector)
        self._precision = precision
        self._parameters = dict(self.model.named_parameters())
        self._kinds = {entry.name: entry.kind for entry in self.layout.entries}
        counters = [b for b in self.model.buffers() if not b.is_floating_point()]
        self._counters = [(counter, counter.clone()) for counter in counters]

    def step(self, order: Order, client: int, memory: Memory) -> Reply:
        """Train client number `client` from the order's vector; what it learnt, as a reply.

        Raises SiteError naming the site when the training loss is not finite.
        """
        program, layout, data = self.federation.program, self.layout, self.federation.client(client)
        site = self.federation.name(client)
        path = ("round", order.round, "site", site)
        shared = layout.shared
        lr = program.train.rate(order.round, program.rounds.rounds)
        local = Local(order.vector[shared], order.shared, memory, lr)
        self.load(order.vector, memory)
        self.model.train()
        loss = torch.zeros((), dtype=torch.float64)
        seen = 0
        draws = generator(program.seed, *path, "batches")
        with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator
            # Not torch.manual_seed: that would also reseed every accelerator, for good.
            torch.default_generator.manual_seed(derive(program.seed, *path, "dropout"))
            read = self._reader(data, draws)
            for phase in program.algorithm.phases(program.train.epochs):
                phase_loss, phase_seen = self._train(phase, len(data), read, draws, local)
                loss += phase_loss
                seen += phase_seen
        if not bool(torch.isfinite(loss)):
            raise SiteError(
                f"the training loss of site '{site}' is not finite in round {order.round}",
                "its training diverged or its data are broken: lower train.lr, set train.clip or "
                "look at its images; rounds.on_failure = 'skip' goes on without such replies",
            )
        return self._reply(order, local, site, len(data), {"train_loss": Sum(loss.numpy(), seen)})

    def measure(self, client: SiteData, start: int) -> Metrics:
        """Sums over the CHUNK test images from `start`, with the weights loaded last."""
        self.model.eval()
        positions = torch.arange(start, min(start + CHUNK, len(client)))
        classes = len(self.federation.dataset.classes)
        with torch.inference_mode():
            batch = self.federation.batch(client, positions)
            return self.federation.program.task.measure(self.model, batch, classes)

    def load(self, vector: Tensor, memory: Memory) -> None:
        """Make `vector` [travelling] and the site's personal slice the model's weights."""
        personal = self.layout.personal
        self.vector[self.layout.travelling].copy_(vector)
        self.vector[personal].copy_(memory.get("personal", self.initial[personal]))
        for counter, fresh in self._counters:  # BatchNorm's: no site may see another's
            counter.copy_(fresh)

    def _reader(self, data: SiteData, draws: Generator) -> Callable[[Tensor], Batch]:
        """How batches are made: cut from all images prepared at once, unless they are too many
        or change each time that they are seen."""
        names = self.federation.program.train.augment
        size = self.federation.dataset.preprocess
        pixels = len(data) * size.channels * size.height * size.width
        if not names and pixels <= PREPARED:
            whole = self.federation.batch(data, torch.arange(len(data)))
            return lambda positions: Batch(whole.x[positions], whole.y[positions])
        return lambda positions: self.federation.batch(
            data, positions, augment(data.pixels(positions), names, draws)
        )

    def _train(
        self,
        phase: Phase,
        samples: int,
        read: Callable[[Tensor], Batch],
        draws: Generator,
        local: Local,
    ) -> tuple[Tensor, int]:
        program = self.federation.program
        settings = program.train
        parameters = self._learning(phase)
        optimiser = torch.optim.SGD(
            parameters.values(),
            lr=local.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        loss_sum = torch.zeros((), dtype=torch.float64)
        seen = 0
        for positions in batches(samples, phase.epochs, settings.batch, draws):
            batch = read(positions)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._precision == "bfloat16"):
                loss = program.task.loss(self.model, batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if program.algorithm.corrects:
                self._correct(parameters, local)
            if settings.clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip)
            optimiser.step()
            local.steps += 1
            loss_sum += loss.detach() * len(positions)
            seen += len(positions)
        optimiser.zero_grad(set_to_none=True)
        return loss_sum, seen

    def _learning(self, phase: Phase) -> dict[str, torch.nn.Parameter]:
        learning = {}
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(self._kinds[name] in phase.trains)
            if parameter.requires_grad:
                learning[name] = parameter
        return learning

    def _correct(self, parameters: Mapping[str, torch.nn.Parameter], local: Local) -> None:
        """Gather the shared gradients into one vector, correct it, and hand its slices back."""
        shared = self.layout.shared
        grad = torch.zeros(shared.stop)
        entries = [e for e in self.layout.entries if e.kind == Kind.SHARED and e.name in parameters]
        for entry in entries:
            gradient = parameters[entry.name].grad
            if gradient is not None:
                entry.view(grad).copy_(gradient)
        grad = self.federation.program.algorithm.correct(grad, self.vector[shared], local)
        for entry in entries:
            parameters[entry.name].grad = entry.view(grad)

    def _reply(
        self, order: Order, local: Local, site: str, samples: int, metrics: Metrics
    ) -> Reply:
        program, layout = self.federation.program, self.layout
        payload, kept = program.algorithm.finish(self.vector[layout.shared], local)
        if layout.buffer.stop > layout.buffer.start:
            # Statistics travel as moments: means of moments are the pooled data's, variances'
            # means are not.
            pairs, travels = self.network.statistics, layout.travelling
            after = to_moments(self.vector[travels], layout, pairs)
            before = to_moments(order.vector[travels], layout, pairs)
            moved = (after - before)[layout.buffer]
            payload = {**payload, "delta": torch.cat([payload["delta"], moved])}
        memory = dict(kept)
        if layout.personal.stop > layout.personal.start:
            memory["personal"] = self.vector[layout.personal].clone()
        weight = samples if program.rounds.weighting == "samples" else 1
        return Reply(site, payload, weight, metrics, memory)


def batches(samples: int, epochs: int, size: int, draws: Generator) -> Iterator[Tensor]:
    """Shuffled positions, epoch by epoch; a single one left over joins the batch before it
    (BatchNorm cannot learn from one image)."""
    starts = np.arange(0, samples, size)
    if size > 1 and len(starts) > 1 and samples - starts[-1] == 1:
        starts = starts[:-1]
    edges = [*starts.tolist(), samples]
    for _ in range(epochs):
        order = torch.randperm(samples, generator=draws)
        for start, stop in itertools.pairwise(edges):
            yield order[start:stop]
