"""The client step: the only place where local training happens, whatever the engine."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Generator, Tensor

from fedsight.algorithms.base import Local, Phase
from fedsight.client.dpsgd import PrivateSteps
from fedsight.client.sgd import LocalSGD, clip
from fedsight.core.errors import SiteError
from fedsight.core.layout import Kind, Layout
from fedsight.core.rng import derive, generator
from fedsight.core.types import Batch, Memory, Metrics, Order, Reply, Sum
from fedsight.data.augment import augment
from fedsight.models.norms import to_moments
from fedsight.privacy.mechanisms.example import Example
from fedsight.privacy.noise import MakeNoise, Noise
from fedsight.program.federation import Federation, SiteData

CHUNK = 256  # test images measured at once; fixed, so that sums do not depend on the machine

PREPARED = 1 << 24  # pixel values of a client up to which all its images are prepared at once


class Client:
    """Trains and measures one client after the other with one network, bound to one vector."""

    def __init__(
        self, federation: Federation, precision: str = "float32", secret: int | None = None
    ) -> None:
        """`secret`: where the site's noise comes from; None: the program's seed (a simulation)."""
        self.federation = federation
        self._secret = federation.program.seed if secret is None else secret
        self._plan = federation.plan()
        self._fingerprint = federation.program.fingerprint
        self.network = federation.network()
        self.model = self.network.module
        self.layout: Layout = federation.program.layout(self.network)
        self.initial = self.layout.read(self.model)
        self.vector = self.initial.clone()
        self.layout.bind(self.model, self.vector)
        bfloat16 = torch.autocast("cpu", torch.bfloat16)
        self._precise = contextlib.nullcontext if precision == "float32" else lambda: bfloat16
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
        program.task.begin(self.model, data.labels(), generator(program.seed, "begin", site))
        self.model.train()
        loss = torch.zeros((), dtype=torch.float64)
        seen = 0
        noise = partial(Noise, self._secret, self._fingerprint, *path)
        draws = generator(program.seed, *path, "batches")
        with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator
            # Not torch.manual_seed: that would also reseed every accelerator, for good.
            torch.default_generator.manual_seed(derive(program.seed, *path, "dropout"))
            read = self._reader(data, draws)
            for phase in program.algorithm.phases(program.train.epochs):
                phase_loss, phase_seen = self._train(phase, data, read, draws, local, noise)
                loss += phase_loss
                seen += phase_seen
        if not bool(torch.isfinite(loss)):
            raise SiteError(
                f"the training loss of site '{site}' is not finite in round {order.round}",
                "its training diverged or its data are broken: lower train.lr, set train.clip or "
                "look at its images; with rounds.quorum a run goes on without such replies",
            )
        metrics: Metrics = {"train_loss": Sum(loss.numpy(), seen)}
        if program.privacy.protects:  # no epsilon pays for it
            metrics = {}
        return self._reply(order, local, site, len(data), metrics, noise)

    def measure(self, client: SiteData, start: int) -> Metrics:
        """Sums over the chunk of test images from `start`, with the weights loaded last."""
        self.model.eval()
        size = chunk(self.federation, len(client))
        positions = torch.arange(start, min(start + size, len(client)))
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
        data: SiteData,
        read: Callable[[Tensor], Batch],
        draws: Generator,
        local: Local,
        noise: MakeNoise,
    ) -> tuple[Tensor, int]:
        program, samples = self.federation.program, len(data)
        settings = program.train
        learning = self._learning(phase)
        steps = LocalSGD(
            list(learning.values()), local.lr, settings.momentum, settings.weight_decay
        )
        if isinstance(program.privacy, Example):
            private = PrivateSteps(program.privacy, self._plan, samples, noise)
            correct = partial(self._correct, list(learning), local=local)
            local.steps += private.train(
                self.model, program.task, steps, read, phase.epochs, correct, local.steps
            )
            return torch.zeros((), dtype=torch.float64), 0
        losses, sizes = [], []
        for positions in batches(samples, phase.epochs, settings.batch, draws):
            batch = read(positions)
            with self._precise():
                loss = program.task.loss(self.model, batch)
            gradients = steps.gradients(loss)
            steps.step(self._correct(list(learning), gradients, local))
            del gradients  # or the next step's would need other memory, cold in the cache
            local.steps += 1
            losses.append(loss.detach())
            sizes.append(len(positions))
        total = torch.stack(losses).double() @ torch.tensor(sizes, dtype=torch.float64)
        return total, sum(sizes)

    def _learning(self, phase: Phase) -> dict[str, torch.nn.Parameter]:
        learning = {}
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(self._kinds[name] in phase.trains)
            if parameter.requires_grad:
                learning[name] = parameter
        return learning

    def _correct(self, names: list[str], gradients: list[Tensor], local: Local) -> list[Tensor]:
        """What is stepped along: the gradients as changed by the algorithm, then clipped.

        The shared ones are gathered into one vector, corrected, and cut up again.
        """
        program, most = self.federation.program, self.federation.program.train.clip
        if program.algorithm.corrects:
            gradients = self._corrected(names, gradients, local)
        if most is not None:
            clip(gradients, most)
        return gradients

    def _corrected(self, names: list[str], gradients: list[Tensor], local: Local) -> list[Tensor]:
        shared = self.layout.shared
        grad = torch.zeros(shared.stop)
        entries = {e.name: e for e in self.layout.entries if e.kind == Kind.SHARED}
        for name, gradient in zip(names, gradients, strict=True):
            if name in entries:
                entries[name].view(grad).copy_(gradient)
        grad = self.federation.program.algorithm.correct(grad, self.vector[shared], local)
        return [
            entries[name].view(grad) if name in entries else gradient
            for name, gradient in zip(names, gradients, strict=True)
        ]

    def _reply(
        self,
        order: Order,
        local: Local,
        site: str,
        samples: int,
        metrics: Metrics,
        noise: MakeNoise,
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
        payload = program.privacy.release(payload, order.shared, self._plan, site, noise)
        weight = samples if program.rounds.weighting == "samples" else 1
        return Reply(site, payload, weight, metrics, memory)


def chunk(federation: Federation, images: int) -> int:
    """How many of `images` test images are measured at once."""
    return images if federation.program.task.whole else CHUNK


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
