"""The client step: the only place where local training happens, whatever the engine."""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from secrets import token_bytes

import numpy as np
import torch
from torch import Generator, Tensor

from fedsight.algorithms.base import Algorithm, Local, Phase
from fedsight.client import failures, public
from fedsight.client.bound_model import CHUNK, DRAWS, BoundModel
from fedsight.client.correction import Correction
from fedsight.client.dpsgd import PrivateSteps, local_training
from fedsight.client.optimizers import make_optimizer
from fedsight.client.pace import Pace
from fedsight.client.penalty import Penalised
from fedsight.client.release import Leaving
from fedsight.client.sampling import order_of
from fedsight.client.site import Round, Site, mean_loss
from fedsight.client.training import Lesson, LocalTraining, Progress, learning, spanned
from fedsight.core.devices import drawing, moved, release_memory
from fedsight.core.errors import ConfigError, EngineError, SiteError
from fedsight.core.layout import Kind
from fedsight.core.rng import derive, generator, numpy_generator, secret_generator
from fedsight.core.types import Batch, Memory, Metrics, Order, Payload, Reply, Sum
from fedsight.data.augment.base import augment
from fedsight.models.norms import still, to_moments
from fedsight.privacy.mechanisms.example import Example
from fedsight.privacy.noise import MakeNoise, Noise
from fedsight.program import isolation
from fedsight.program.federation import Federation
from fedsight.program.program import Speed
from fedsight.program.site_data import SiteData
from fedsight.program.virtual_time import VirtualTime

log = logging.getLogger(__name__)

VALUE = 4  # bytes of a pixel value that is prepared


class Client(BoundModel):
    """Trains one client after the other, beside measuring its model.

    It alone knows of a precision. Vectors and memories are on the CPU, and payloads too, unless
    nothing but an exact sum on this machine sees them: then they stay on the device.
    """

    def __init__(
        self,
        federation: Federation,
        speed: Speed | None = None,
        noise: MakeNoise | None = None,
        deployed: bool = False,
        hides: bool = False,
    ) -> None:
        """`noise`: where the site's noise comes from; None: the program's seed (a simulation).

        `deployed`: this is a real site, so what its task draws for it (`Learning.begin`) comes from
        the operating system and is remembered, instead of following from the program's seed.

        `hides`: the site protects its images. Nobody else knows what training draws (the order of
        images, augmentation, dropout), and under DP-SGD an image that fails adds nothing, instead
        of raising. Draws that everybody knows would tell in a sum what is whose: dropout leaves a
        weight to the one site, and even to the one image, that did not drop its input.

        Raises EngineError when the device of `speed` is not there, and ConfigError for a loss or
        network that DP-SGD cannot protect.
        """
        super().__init__(federation, speed)
        program = federation.program
        self._noise = noise or partial(Noise, program.seed, program.fingerprint)
        self._time = VirtualTime(federation)
        self._deployed, self._hides = deployed, hides
        self._precision = self._precision_of(self._speed)
        self._training = self._strategy()
        self.stays = not (deployed or program.privacy.protects or program.secure.rounds_values)
        self.stays &= not program.codec.up.steps and not program.aggregation.needs_replies
        self.stays &= not program.algorithm.derives
        # In training these do not move either.
        self._still = still(self.model, lambda name: self._kinds.get(name) == Kind.FROZEN)
        self._sites: OrderedDict[int, Site] = OrderedDict()  # the latest last
        self._order: Order | None = None  # whose vector is on the device
        self._vector = torch.empty(0)
        self._room = self._speed.room(self._device) // VALUE  # pixel values of all of them

    def _strategy(self) -> LocalTraining:
        privacy = self.federation.program.privacy
        if isinstance(privacy, Example):
            of = self.federation
            found = isolation.problems(of.program, of.dataset, self.network)
            if problems := [*found, *privacy.problems(of.plan)]:
                raise ConfigError(problems)  # a site does not take the coordinator's word for it
        return local_training(self.federation, self._precision, self._hides)

    def _precision_of(self, speed: Speed) -> Callable[[], AbstractContextManager[object]]:
        """What surrounds a forward pass."""
        bfloat16 = torch.autocast(self._device.type, torch.bfloat16)
        return (lambda: bfloat16) if speed.precision == "bfloat16" else contextlib.nullcontext

    def step(self, order: Order, client: int, memory: Memory) -> Reply:
        """Train client number `client` from the order's vector; what it learnt, as a reply.

        Raises SiteError naming the site when the training loss is not finite, and EngineError when
        the device fails or has too little memory, with the batch that would fit.
        """
        doing = failures.training(self.federation.name(client), order.round)
        with failures.named(self._device, doing, partial(self._fitting, client, doing)):
            return self._stepped(order, self._site(client), memory)

    def _fitting(self, client: int, doing: str) -> EngineError:
        """What to say when a batch did not fit: which one would, found by trying."""
        self._sites.clear()
        learns = [value for value in self._parameters.values() if value.requires_grad]
        classes = len(self.federation.dataset.classes)

        def attempt(size: int) -> None:
            site = self._site(client)
            task = self.federation.program.task.at(site.labels, classes)
            positions = torch.arange(size) % len(site.data)
            with self._reader(site) as read, self._precision():
                loss = task.loss(self.model, read(positions, generator(0, "fitting")))
            torch.autograd.grad(loss, learns, allow_unused=True)

        batch = self.federation.program.train.batch
        empty = partial(release_memory, self._device)
        size = failures.fitting(batch, attempt, empty)
        return failures.too_large(self._device, doing, batch, size)

    def blank(self, order: Order, client: int, memory: Memory) -> Reply:
        """A reply that says nothing of the client's images, which are not read.

        It looks like any other: zeros, clipped, noised and encoded as an update is; under DP-SGD,
        the steps that noise alone takes, and what they leave to remember: later rounds show that.
        A protected site sends it instead of an error. Otherwise its memory has the size of any
        other, too, and says what `memory` said; so does always what it has of its own.
        """
        federation, program = self.federation, self.federation.program
        data = federation.client(client)
        known = Site(federation.name(client), data, data.labels(), None, 0)
        kept = memory or self._unlearnt(order, known)
        if isinstance(self._training, PrivateSteps):
            # What the site remembers moves each step (SCAFFOLD, FedDyn), so it does here too; what
            # it has of its own does not, unless later scores of public images would show that.
            for remembered in (memory, {}):
                reply = self._stepped(order, known, remembered, blank=True)
                if all(bool(torch.isfinite(part).all()) for part in reply.payload.values()):
                    stays = "personal" in kept and not program.algorithm.on_public
                    own = {"personal": kept["personal"]} if stays else {}
                    return replace(reply, memory={**reply.memory, **own})
        added = program.privacy.parts()  # which `release` adds
        lengths = (federation.whole or federation).lengths
        nothing = {
            part: torch.zeros(lengths.get(part, spec.values), dtype=spec.dtype)
            for part, spec in federation.parts.items()
            if part not in added
        }
        noise = partial(self._noise, "round", order.round, "site", known.name)
        payload, unsent = self._release(nothing, order, known.name, noise, kept)
        return Reply(known.name, payload, self._weight(data), {}, {**kept, **unsent})

    def _unlearnt(self, order: Order, site: Site) -> Memory:
        """What a site remembers that has learnt nothing and remembered nothing so far."""
        zeros = {name: torch.zeros_like(value) for name, value in order.shared.items()}
        still = Order(order.round, order.vector, zeros)
        self.load(still.vector, {})
        _, kept = self._result(still, self._local(still, {}, lr=1.0, steps=1))
        own = {"personal": self._sent(order)} if self.federation.program.algorithm.owns else {}
        return {**own, **kept, **self._begin(site, {})}

    def _stepped(self, order: Order, known: Site, memory: Memory, blank: bool = False) -> Reply:
        site, data = known.name, known.data
        program = self._time.lessened(order.round, site, len(data))
        path = ("round", order.round, "site", site)
        self._place(self._sent(order), {} if program.algorithm.owns else memory)
        begun = self._begin(known, memory)
        known = replace(known, share=self._share(known, order.round))
        later = program.algorithm.counts_after
        counted = {} if later else self._statistics(known, blank)
        pace = Pace.of(program, order.round, self._training, len(data), known.share)
        known, local = replace(known, pace=pace.at), self._local(order, memory, pace.start)
        if program.algorithm.asks_loss and not blank:
            local.loss = self._loss(known)
        noise = partial(self._noise, *path)
        hides, seeded = self._hides, program.train_seed
        draws = secret_generator() if hides else generator(seeded, *path, "batches")
        round = Round(order.round, known, draws, noise, blank)
        phases = program.algorithm.phases(program.train.length)
        with drawing(self._device, None if hides else derive(seeded, *path, "dropout")):
            self._learn_public(draws, local)
            learnt = self._trained(round, phases, local)
            counted = self._statistics(known, blank) if later else counted
            payload, kept = self._result(order, replace(local, lr=pace.mean))
            if program.algorithm.own_phases(1):
                kept = {**kept, **self._own(order, memory, round)}
        metrics: Metrics = {"train_loss": Sum(learnt.loss.numpy(), learnt.samples)}
        if program.privacy.protects or not learnt.samples:  # no epsilon pays for it, or none is
            metrics = {}
        sent, unsent = self._release({**payload, **counted}, order, site, noise, memory)
        return Reply(site, sent, self._weight(data), metrics, {**kept, **begun, **unsent})

    def _trained(
        self, round: Round, phases: Sequence[Phase], local: Local, own: bool = False
    ) -> Progress:
        """Train the model that is loaded; raises SiteError when its loss is not finite."""
        self._training_mode()
        done = [self._train(phase, round, local, own) for phase in phases]
        loss = sum((one.loss for one in done), torch.zeros((), dtype=torch.float64))
        if not bool(torch.isfinite(loss)):
            raise failures.diverged(round.site.name, round.number)
        return Progress(local.steps, loss, sum(one.samples for one in done))

    def _training_mode(self) -> None:
        self.model.train()
        for part in self._still:
            part.eval()

    def _learn_public(self, draws: Generator, local: Local) -> None:
        """Learn the public images, if the algorithm has something to learn from them."""
        algorithm = self.federation.program.algorithm
        targets = algorithm.told(local) if algorithm.lessons.passes else None
        if targets is None:
            return
        self._training_mode()
        trains = {kind for phase in algorithm.phases(1) for kind in phase.trains}
        chosen = learning(self._parameters, lambda name: self._kinds[name] in trains)
        targets = targets.view(self.federation.publics, -1)
        public.learn(self, chosen, targets, local.lr, draws, self._precision)

    def _loss(self, site: Site) -> float:
        """The mean loss of the site's images, unaugmented, under the model that is loaded."""
        federation, size = self.federation, self.federation.program.train.batch
        task = federation.program.task.at(site.labels, len(federation.dataset.classes))
        with (
            self.inputs(site.data, learns=True) as read,
            drawing(self._device, DRAWS),
            self._precision(),
        ):
            return mean_loss(task, self.model, read, len(site.data), size)

    def _own(self, order: Order, memory: Memory, round: Round) -> Memory:
        """The site's own model, trained from where it last ended, or from the order's model."""
        site = round.site
        program = self._time.lessened(order.round, site.name, len(site.data))
        self._place(self._sent(order), memory)
        pace = Pace.of(program, order.round, self._training, len(site.data), own=True)
        own = replace(round, site=replace(site, pace=pace.at), noise=partial(round.noise, "own"))
        phases = program.algorithm.own_phases(program.train.length)
        self._trained(own, phases, self._local(order, memory, pace.start), own=True)
        return {"personal": self.vector[self.own].to("cpu", copy=True)}

    def _weight(self, data: SiteData) -> int:
        return self.federation.program.rounds.weight(len(data))

    def _begin(self, site: Site, memory: Memory) -> Memory:
        """Let the task prepare the network; returns what must be remembered to repeat that."""
        program = self.federation.program
        if not program.task.prepares:
            return {}
        kept: Memory = {}
        if self._deployed:
            # 32 bytes. A torch generator would not do: the CPU's uses only 32 bits of its seed.
            key = memory.get(
                "begin", torch.frombuffer(bytearray(token_bytes(32)), dtype=torch.uint8)
            )
            draws, kept = np.random.default_rng(key.tolist()), {"begin": key}
        else:
            draws = numpy_generator(program.model_seed, "begin", site.name)
        program.task.begin(self.model, site.labels, draws)
        return kept

    def _local(self, order: Order, memory: Memory, lr: float, steps: int = 0) -> Local:
        """What the algorithm knows while it trains, on the device."""

        def here(vectors: Memory) -> Memory:
            return {name: value.to(self._device) for name, value in vectors.items()}

        start = self._sent(order)[self.layout.shared]
        return Local(start, here(order.shared), here(memory), lr, steps)

    def _site(self, client: int) -> Site:
        """A client's images, prepared at once unless they are too many or change each time that
        they are seen. The clients seen last are kept, within `speed.resident`."""
        if client in self._sites:
            self._sites.move_to_end(client)
            return self._sites[client]
        federation = self.federation
        data, size = federation.client(client), federation.dataset.preprocess
        values = len(data) * size.channels * size.height * size.width
        whole = None
        if federation.program.train.plain and not self.activations and values <= self._room:
            whole = self._whole(data)
        made = Site(federation.name(client), data, data.labels(), whole, values if whole else 0)
        if whole is not None:
            self._sites[client] = made
            while sum(site.values for site in self._sites.values()) > self._room:
                self._sites.popitem(last=False)
        return made

    def _whole(self, data: SiteData) -> Batch | None:
        """All images; None if one fails, which is then left out when it is read by itself."""
        try:
            return self.batch(data, torch.arange(len(data)))
        except Exception:
            if not self._hides:
                raise
        return None

    def _share(self, site: Site, round: int) -> list[Tensor] | None:
        """The batches of a baseline's round that is not of whole passes."""
        span, program = self.federation.span(round, len(site.data)), self.federation.program
        if span is None:
            return None

        def shuffled(number: int) -> Tensor:
            draws = generator(program.train_seed, "site", site.name, "pass", number)
            return order_of(program.train, site.labels)(draws)

        return list(spanned(len(site.data), span, program.train.batch, shuffled))

    @contextlib.contextmanager
    def _reader(self, site: Site) -> Iterator[Callable[[Tensor, Generator], Batch]]:
        """How batches are made of the site's images; within it, the model takes these."""
        data, whole, train = site.data, site.whole, self.federation.program.train
        if whole is not None:
            yield lambda positions, draws: whole.rows(positions)
        elif train.plain and self.activations is not None:
            self.activations.fill(data)
            with self.inputs(data, learns=True) as read:
                yield lambda positions, draws: read(positions)
        else:
            task, classes = self.federation.program.task, len(self.federation.dataset.classes)

            def augmented(positions: Tensor, draws: Generator) -> Batch:
                look = partial(data.harmonised, positions=positions)
                pixels, mixture = augment(data.pixels(positions), train.augment, draws, look)
                return task.mixed(self.batch(data, positions, pixels), mixture, classes)

            yield augmented

    def _train(self, phase: Phase, round: Round, local: Local, own: bool) -> Progress:
        program, site = self.federation.program, round.site
        chosen = learning(self._parameters, lambda name: self._kinds[name] in phase.trains)
        correct = Correction(
            program.algorithm,
            self.layout,
            self.vector,
            self.model,
            list(chosen),
            local,
            program.train.clip,
            own,
        )
        task = program.task.at(site.labels, len(self.federation.dataset.classes))
        loss = None
        if program.algorithm.penalises and not own:
            loss = Penalised(task, program.algorithm, self.network, self.layout, local)
        with self._reader(site) as read:
            return self._training.train(
                Lesson(
                    model=self.model,
                    task=task,
                    loss=loss,
                    read=read,
                    samples=len(site.data),
                    epochs=phase.length,
                    steps=None if program.train.steps is None else phase.length,
                    batch=program.train.batch,
                    optimizer=make_optimizer(chosen, program.train, local.lr, self.network),
                    correct=correct,
                    done=local.steps,
                    draws=round.draws,
                    noise=round.noise,
                    blank=round.blank,
                    given=site.share,
                    order=order_of(program.train, site.labels),
                    pace=site.pace,
                )
            )

    def _statistics(self, site: Site, blank: bool) -> Payload:
        """The integer parts of a reply, each as one vector; SiteError for other shapes.

        With `blank` no image of the site is read, and all are zero, unless they are of public ones.
        """
        federation, algorithm = self.federation, self.federation.program.algorithm
        if not algorithm.counts:
            return {}
        data = federation.public if algorithm.on_public else site.data
        if blank and not algorithm.on_public:
            specs = federation.integers.items()
            return {part: torch.zeros(spec.values, dtype=spec.dtype) for part, spec in specs}
        self.model.eval()
        with torch.no_grad(), self._read_for(algorithm, data) as read:
            found = self._counted(read, len(data))
        for part, spec in federation.integers.items():
            shape = tuple(found[part].shape) if part in found else "nothing"
            if shape != spec.shape:
                raise SiteError(
                    f"the algorithm computed {shape} as '{part}' at site '{site.name}', and "
                    f"declares {spec.shape}",
                    "correct its `statistics` or its `integer_parts`",
                )
        return {part: value.reshape(-1).cpu() for part, value in found.items()}

    def _counted(self, read: Callable[[Tensor], Batch], images: int) -> Mapping[str, Tensor]:
        """The algorithm's statistics of all images of a site.

        Where noise is to hide single images, each is computed by itself, so that no digit of it
        depends on which others there are. One that fails counts nothing, and there is no error; the
        first reason is kept in this machine's log. The same is done where an error would make a
        protected site send zeros: the exact number of images in a masked sum would tell whose.
        """
        federation, algorithm = self.federation, self.federation.program.algorithm
        classes, every = len(federation.dataset.classes), torch.arange(images)
        if not (self._hides and federation.plan.units):
            try:
                return algorithm.statistics(self.network, classes, map(read, every.split(CHUNK)))
            except Exception as error:
                if not self._hides:
                    raise
                log.warning("a round's sums are made of one image after the other", exc_info=error)
        network, specs = replace(self.network, together=1), federation.integers.items()
        found = {part: torch.zeros(spec.shape, dtype=spec.dtype) for part, spec in specs}
        failed = False
        for position in every.split(1):
            try:
                one = algorithm.statistics(network, classes, [read(position)])
                failures.add_image(found, one, position if algorithm.on_public else None)
            except Exception as error:
                if not failed:
                    log.warning("an image adds nothing to a round's sums", exc_info=error)
                failed = True
        return found

    @contextlib.contextmanager
    def _read_for(
        self, algorithm: Algorithm, data: SiteData
    ) -> Iterator[Callable[[Tensor], Batch]]:
        """How the algorithm's batches are made: of images, unless features are all it looks at."""
        if algorithm.of_features and self.activations is not None:
            self.activations.fill(data)
            with self.inputs(data, learns=True) as read:
                yield read
        else:
            yield lambda positions: self.batch(data, positions)

    def _result(self, order: Order, local: Local) -> tuple[Payload, Memory]:
        """What the algorithm sends, on the device, and keeps after training, on the CPU."""
        layout, vector, begun = self.layout, self.vector, self._sent(order)
        if vector.device.type == "mps":  # which has no float64
            vector, begun, local = vector.cpu(), begun.cpu(), _local_on_cpu(local)
        payload, kept = self.federation.program.algorithm.finish(vector[layout.shared], local)
        if "delta" in payload and layout.buffer.stop > layout.buffer.start:
            # Statistics travel as moments: means of moments are the pooled data's, variances'
            # means are not.
            pairs, travels = self.network.statistics, layout.travelling
            after = to_moments(vector[travels], layout, pairs)
            before = to_moments(begun, layout, pairs)
            change = (after - before)[layout.buffer]
            payload = {**payload, "delta": torch.cat([payload["delta"], change])}
        keeps = {name: value.cpu() for name, value in kept.items()}
        if layout.personal.stop > layout.personal.start:
            keeps["personal"] = vector[layout.personal].to("cpu", copy=True)
        return self.federation.sent(payload), keeps

    def _sent(self, order: Order) -> Tensor:
        """The network's part of the order's vector [travelling] on the device, taken there once in
        a round."""
        if self._device.type == "cpu" and self.federation.selection is None:
            return order.vector
        if self._order is not order:
            received = self.federation.received(order.vector)
            self._order, self._vector = order, moved(received, self._device)
        return self._vector

    def _release(
        self, payload: Payload, order: Order, site: str, noise: MakeNoise, memory: Memory
    ) -> tuple[Payload, Memory]:
        """What leaves the site, and what it remembers of that."""
        if not self.stays:
            payload = {part: value.cpu() for part, value in payload.items()}
        leaving = Leaving(self.federation, order, site, noise, self._hides)
        return leaving.released(payload, memory)


def _local_on_cpu(local: Local) -> Local:
    shared, memory, working = (
        {name: value.cpu() for name, value in vectors.items()}
        for vectors in (local.shared, local.memory, local.working)
    )
    return replace(local, start=local.start.cpu(), shared=shared, memory=memory, working=working)
