"""The federated algorithm: pure functions on vectors, with every state explicit.

A subclass overrides only what its paper changes. Vectors here are the shared slice of the
layout ([d] float32); the engine handles personal weights and running statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from fedsight.core.errors import Problem
from fedsight.core.layout import Kind, Layout
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.core.types import Batch, Derived, Memory, PartSpecs, Payload
from fedsight.models.base import Network

if TYPE_CHECKING:
    from fedsight.data.base import Dataset
    from fedsight.program.program import Program

State = dict[str, Tensor]


def _not_computed(vector: Tensor) -> Tensor:
    raise NotImplementedError("no gradient is computed at other vectors in this local training")


@dataclass
class Local:
    """What a client knows while it trains in one round."""

    start: Tensor  # [d] the global vector it began from
    shared: Mapping[str, Tensor]  # the algorithm's vectors from the order
    memory: Memory  # the site's own vectors from the last round that it took part in
    lr: float  # local learning rate of this round
    steps: int = 0  # local steps taken so far
    working: dict[str, Tensor] = field(default_factory=dict)  # the algorithm's own, of this round
    # gradient [d] of the step's batch at another vector [d], if the algorithm `looks` there
    at: Callable[[Tensor], Tensor] = _not_computed
    loss: float = math.nan  # mean of the site's images at `start`, if the algorithm `asks_loss`
    labels: Tensor | None = None  # of the batch whose `penalty` is asked for: class numbers [b]


@dataclass(frozen=True)
class Mean:
    """The result of a round: the weighted mean of each payload part, float64 [d] (or [1]),
    and the unweighted sum of each integer part.

    The server's step may change the parts in place but must not keep them: they are the largest
    vectors of a run, and the next round's sum reuses their memory.
    """

    parts: Mapping[str, Tensor]
    share: float  # of all sites' weight (`rounds.weighting`), that of the sites in this mean
    integers: Mapping[str, Tensor] = field(default_factory=dict)  # exact sums, int64, in shape
    deviation: float = 0.0  # of the noise in them, in the `units` of the algorithm


@dataclass(frozen=True)
class Phase:
    """A phase of local training in which only some slices are trained."""

    length: int  # epochs, or local steps where the program says `train.steps`
    trains: frozenset[Kind]


@dataclass(frozen=True)
class Lessons:
    """How public images are learnt."""

    passes: int
    lr: float | None  # of Adam, which falls to 0 along a cosine; None: as the site's own are learnt


EVERYTHING = frozenset(Kind) - {Kind.FROZEN, Kind.MOVED}


class Algorithm(Settings):
    """Base: plain local SGD; the server adds the mean update (FedAvg without options)."""

    parts: ClassVar[tuple[str, ...]] = ("delta",)  # contents of a reply's payload
    # its contents that are one number each: averaged like `parts`, but neither update nor encoded
    scalars: ClassVar[tuple[str, ...]] = ()
    # whether an image counts in `statistics` against the classes that it does not have
    contrasts: ClassVar[bool] = True
    of_features: ClassVar[bool] = False  # `statistics` looks at images through `features` alone
    counts_after: ClassVar[bool] = False  # `statistics` sees the model after local training
    # whether `statistics` looks at the public images ([public]), and not at those of the site
    on_public: ClassVar[bool] = False
    # whether `correct` looks at gradients at other vectors too, by `local.at`
    looks: ClassVar[bool] = False
    # whether `local.loss` is computed: what a site sends may depend on its loss, not on steps alone
    asks_loss: ClassVar[bool] = False
    # each site keeps a whole model of its own, as its memory "personal", and uses that one
    owns: ClassVar[bool] = False
    # whether `step` moves each value by that value's mean update alone, so that different values
    # may be means over different sites
    by_value: ClassVar[bool] = False

    @property
    def nests(self) -> bool:
        """Whether sites may train parts of the model: all that travels is one update, of which the
        server's step takes each value by itself."""
        plain = self.by_value or type(self).step is Algorithm.step
        alone = self.parts == ("delta",) and not (self.scalars or self.counts or self.derives)
        return plain and alone

    @property
    def equips(self) -> bool:
        """Whether what travels is what `equip` adds to a network, and nothing of the network."""
        return type(self).equip is not Algorithm.equip

    def equip(self, network: Network, classes: int, public: int) -> Network:
        """The network with tensors of the algorithm's own, of which there may be one for each of
        the `public` images; by default as it is."""
        return network

    @property
    def corrects(self) -> bool:
        """Whether local gradients are corrected (they are then gathered into one vector first)."""
        return type(self).correct is not Algorithm.correct

    @property
    def penalises(self) -> bool:
        """Whether a term is added to the local loss."""
        return type(self).penalty is not Algorithm.penalty

    @property
    def beyond(self) -> bool:
        """Whether a local step uses more than the gradient of the task's loss where it stands."""
        return self.penalises or self.looks

    def told(self, local: Local) -> Tensor | None:
        """The targets [public images, classes] of public images that a site learns from before its
        own images; None: it does not."""
        return None

    def ensemble(self, mean: Mean) -> Tensor | None:
        """The targets [public images, classes] that the coordinator's model learns from after the
        server's step; None: it does not."""
        return None

    @property
    def lessons(self) -> Lessons:
        """How public images are learnt (`told`, `ensemble`)."""
        return Lessons(0, None)

    def distance(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The loss, scalar, of public images for which the network gives `scores` [b, classes]
        instead of `targets` [b, classes]; they have no labels."""
        raise NotImplementedError("public images have no loss of their own")

    @property
    def counts(self) -> bool:
        """Whether a reply has integer parts."""
        return type(self).integer_parts is not Algorithm.integer_parts

    def integer_parts(self, network: Network, classes: int, images: int) -> PartSpecs:
        """The int64 parts of a reply besides `parts`, by name.

        `images` is the number of images that are looked at: those of the largest site, from which a
        part's bound follows, or the public ones if the algorithm is `on_public`.
        """
        return {}

    def statistics(
        self, network: Network, classes: int, batches: Iterable[Batch]
    ) -> Mapping[str, Tensor]:
        """The integer parts: int64, in the shapes of `integer_parts`.

        They are computed before local training, or after it if the algorithm `counts_after`, with
        the model in evaluation mode and without gradients. The batches hold every image of the
        site once, in order, unaugmented.
        """
        return {}

    def is_possible(self, integers: Mapping[str, Tensor], images: int) -> bool:
        """Whether at most so many images can have these integer parts, of one site or of several.

        They are any int64 values. A site that cannot compute them sends zeros in their place.
        """
        return True

    def due(self, payload: Payload, steps: int, rate: float) -> Mapping[str, float]:
        """What the `scalars` of a reply must be, as far as whoever receives it can tell.

        That is, from its vectors in `payload` [d], without those that a codec has changed, and from
        the number of local steps that the site takes and their mean learning rate. They are
        averaged as they come, so a site could move the model by a number alone.
        """
        return {}

    def least(self, payload: Payload, steps: int, rate: float) -> Mapping[str, float]:
        """The least that `scalars` can be, where what they must be is known to the site alone; from
        the same as in `due`."""
        return {}

    def most(self, payload: Payload, steps: int, rate: float) -> Mapping[str, float]:
        """The most that `scalars` can be, likewise."""
        return {}

    @property
    def units(self) -> Mapping[str, float]:
        """A unit for each integer part, if what one image changes in them is bounded; else empty.

        Adding or removing any one image at a site changes the site's parts, all divided by their
        units, together by at most 1 (L2). Noise in these units then hides single images.
        """
        return {}

    @property
    def bounds_images(self) -> bool:
        """Whether all that leaves a site are integers in which single images can be hidden."""
        return (
            self.counts and bool(self.units) and not (self.parts or self.scalars or self.phases(1))
        )

    @property
    def remembers(self) -> bool:
        """Whether `finish` may keep memory at the sites."""
        return type(self).finish is not Algorithm.finish

    def kind(self, name: str, kind: Kind, network: Network) -> Kind:
        """The kind of a tensor; personal ones stay at the site. By default nothing changes."""
        return kind

    @property
    def derives(self) -> bool:
        """Whether the coordinator needs single updates, of which it makes more than their mean."""
        return type(self).derived is not Algorithm.derived

    def moves(self, layout: Layout) -> frozenset[str]:
        """The frozen tensors of `layout` that the coordinator moves by what is `derived`."""
        return frozenset()

    def derived(self, network: Network, layout: Layout) -> Derived | None:
        """What the coordinator makes of an update, for the tensors that it moves.

        After each round it adds to them the mean over the replies, less what it makes of the mean
        update: all that the mean update misses.
        """
        return None

    def phases(self, length: int) -> list[Phase]:
        """The phases of one round's local training, of the `length` that the program states: of
        epochs, or of steps (`train.steps`)."""
        return [Phase(length, EVERYTHING)]

    def own_phases(self, length: int) -> list[Phase]:
        """The phases in which the site's own model is trained, after the shared one (`owns`).

        It begins where it last ended, the first time at the order's model, and never travels.
        """
        return []

    def longest(self, length: int) -> int:
        """How many epochs or steps a round trains one model; of the shared and the own one the
        more."""
        both = self.phases(length), self.own_phases(length)
        return max(sum(phase.length for phase in phases) for phases in both)

    def init(self, vector: Tensor) -> State:
        """The server's state before the first round."""
        return {}

    def shared(self, state: State) -> Mapping[str, Tensor]:
        """The part of the state that each site of the cohort needs."""
        return {}

    def correct(self, grad: Tensor, vector: Tensor, local: Local) -> Tensor:
        """The local gradient [d] at `vector` [d], corrected by the algorithm."""
        return grad

    def penalty(self, z: Tensor, features: Callable[[Tensor], Tensor], local: Local) -> Tensor:
        """What is added to the loss of a batch, scalar; `z` [b, f] are the features of its images.

        `features` gives those under other weights [d], without gradients. They are what the last
        layer, which must be linear, is given.
        """
        return z.new_zeros(())

    def correct_own(self, grad: Tensor, vector: Tensor, local: Local) -> Tensor:
        """The local gradient [d] of the site's own model at `vector` [d], corrected."""
        return grad

    def finish(self, vector: Tensor, local: Local) -> tuple[Payload, Memory]:
        """The payload to send after local training, and the memory that the site keeps.

        The payload has `parts` (float32 [d]) and `scalars` (float32 [1]).
        """
        return {"delta": vector - local.start}, {}

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """The server's step: new vector and new state."""
        return mean.parts["delta"].add_(vector).float(), state

    def check(self, program: Program) -> list[Problem]:
        """Combinations with the rest of the program that the paper does not cover."""
        return []

    def check_data(self, dataset: Dataset) -> list[Problem]:
        """What is wrong with the opened data."""
        return []

    def fresh(self) -> Algorithm:
        """The same without files of earlier runs, which only the coordinator has."""
        return self

    def closing(self, trained: Algorithm) -> Algorithm:
        """The same for a network that `trained` has trained. What that has changed travels to the
        sites, and stays as it is."""
        return self

    @property
    def baseline(self) -> Algorithm:
        """What trains a site alone, and all images pooled: without anything federated."""
        return algorithms.get("fedavg")()


algorithms: Registry[Algorithm] = Registry("algorithm", "fedsight.algorithms")
