"""The program: everything that determines a run's result, as one frozen, hashable value."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsight.aggregation.base import Aggregation
from fedsight.aggregation.mean import Mean
from fedsight.algorithms.base import Algorithm, State
from fedsight.compression.settings import Codecs, Down
from fedsight.core.devices import available, find_device, free_memory, spread
from fedsight.core.errors import EngineError, Problem
from fedsight.core.layout import Kind, Layout
from fedsight.core.registry import nearest
from fedsight.core.settings import Settings
from fedsight.data.base import Source
from fedsight.data.contents import Hashed
from fedsight.data.fetch.cache import missing
from fedsight.data.partition import Split
from fedsight.data.public import Public
from fedsight.data.shift import Shift
from fedsight.models.adapters.base import Adapter
from fedsight.models.adapters.none import NoAdapter
from fedsight.models.base import Model, Network, models
from fedsight.models.patterns import instead_of, matches
from fedsight.participation.base import Participation
from fedsight.participation.timing import Timing
from fedsight.participation.uniform import Uniform
from fedsight.privacy.base import Mechanism, split
from fedsight.privacy.mechanisms.none import Unprotected
from fedsight.privacy.secure import Secure
from fedsight.program import (
    coding,
    labelling,
    networks,
    opening,
    public,
    rules,
    suited,
    taking_part,
    workload,
)
from fedsight.program.facts import personalises
from fedsight.program.plugins import Plugin
from fedsight.program.rounds import Rounds
from fedsight.program.train import Train
from fedsight.program.trust import Trust
from fedsight.tasks.base import Task


class Speed(Settings):
    """Settings that affect speed but not meaning: `[speed]`. Not part of the fingerprint.

    Workers and checkpoints do not change the result at all; threads, device and precision change
    its rounding.
    """

    workers: int | None = Field(None, ge=1)  # processes; None: one for each core, or for each GPU
    # auto, cpu, cuda, cuda:N or mps; cuda: all GPUs, workers in turn; auto: cuda, mps or the CPU
    device: str = "auto"
    threads: int = Field(1, ge=1)  # compute threads of each worker
    # of training: float32; tf32: the same with shorter factors, on a GPU; bfloat16: mixed
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    # MiB of prepared images that each worker keeps on its device between rounds; None: 64, or on a
    # GPU a quarter of the memory that is free
    resident: int | None = Field(None, ge=0)
    # sites of the same size that a worker trains at once, their weights stacked, where nothing
    # forbids it (see the guide to GPUs); changes rounding, and what dropout draws
    together: int = Field(1, ge=1)
    checkpoint_every: int = Field(1, ge=1)  # rounds
    # MiB of memory, for all workers together, for what frozen first layers make of the images, so
    # that an image passes through them once and not in every epoch; 0: none
    cache: int = Field(1024, ge=0)
    cache_disk: int = Field(8192, ge=0)  # MiB of it in a file, once the memory is full; 0: none
    # where that file is, which has no name and ends with the run; None: in the run's folder
    cache_folder: Path | None = Field(None, strict=False)
    # the layer whose input is kept, such as "blocks.6"; "": the last one possible. An earlier one
    # lets a ridge head and a run that trains the last blocks share it
    cache_at: str = ""
    # of the image files, by which `resume` sees that they changed: size and pieces, or every byte
    hash: Hashed = "pieces"

    def check(self) -> list[Problem]:
        """Settings that this machine does not support."""
        try:
            device = find_device(self.device)
        except EngineError as error:
            return [Problem("speed.device", error.cause, error.cure)]
        if self.precision == "bfloat16" and device.type == "cpu" and not _has_bfloat16():
            cause = "this processor has no bfloat16 instructions"
            return [Problem("speed.precision", cause, "use precision = 'float32'")]
        if self.precision == "tf32" and device.type != "cuda":
            cause = f"only NVIDIA's GPUs compute in TF32, and the device is {device}"
            return [Problem("speed.precision", cause, "use precision = 'float32'")]
        return []

    @property
    def on_cpu(self) -> bool:
        """Whether the workers compute on the processor's cores."""
        return find_device(self.device).type == "cpu"

    @property
    def processes(self) -> int:
        """Worker processes to start."""
        if self.workers:
            return self.workers
        if self.on_cpu:
            return len(os.sched_getaffinity(0))
        most = len(available())
        return len(set(spread(self.device, most)))

    def each(self, workers: int) -> list[Speed]:
        """The settings of each of so many workers, which share the devices."""
        names = spread(self.device, workers)
        return [self.model_copy(update={"device": name}) for name in names]

    def room(self, device: torch.device) -> int:
        """Bytes of prepared images that a worker keeps on its device."""
        if self.resident is not None:
            return self.resident << 20
        free = free_memory(device)
        if free is None:
            return 64 << 20
        sharing = -(-self.processes // len(set(spread(self.device, len(available())))))
        return free // 4 // sharing


@dataclass(frozen=True)
class Program:
    """Everything that determines a run's result."""

    name: str
    seed: int
    data: Source
    split: Split
    shift: Shift
    model: Model
    task: Task
    algorithm: Algorithm
    train: Train
    rounds: Rounds
    start: Algorithm | None = None  # sets the model before the first round, in a round of its own
    finish: Algorithm | None = None  # sets the head after the last one, likewise
    public: Public | None = None  # images without labels that all have
    adapter: Adapter = field(default_factory=NoAdapter)
    privacy: Mechanism = field(default_factory=Unprotected)
    secure: Secure = field(default_factory=Secure)
    participation: Participation = field(default_factory=Uniform)
    timing: Timing = field(default_factory=Timing)
    aggregation: Aggregation = field(default_factory=Mean)
    codec: Codecs = field(default_factory=Codecs)
    trust: Trust = field(default_factory=Trust)
    plugins: tuple[Plugin, ...] = ()  # code from outside the package that the parts come from

    def __post_init__(self) -> None:
        # Decided here, because the file of weights is not where sites and finished runs build.
        object.__setattr__(self, "model", self.model.settled())
        object.__setattr__(self, "participation", self.participation.settled())
        if (known := self.model.published) is not None and self.data.mean is self.data.std is None:
            # Sites prepare images as the program says, and never see the weights' name.
            data = self.data.model_copy(update={"mean": known.mean, "std": known.std})
            object.__setattr__(self, "data", data)

    def table(self) -> dict[str, Any]:
        """The program as nested plain values, as in a complete config file."""
        table = {
            item.name: value.table() if isinstance(value, Settings) else value
            for item in fields(self)
            for value in [getattr(self, item.name)]
            if item.name != "plugins" and value is not None
        }
        if self.plugins:
            table["plugins"] = [plugin.table() for plugin in self.plugins]
        return table

    @property
    def split_seed(self) -> int:
        """The seed of who has which images, of validation images and of the shift's noise."""
        return self.seed if self.split.seed is None else self.split.seed

    @property
    def model_seed(self) -> int:
        """The seed of the initial weights."""
        return self.seed if self.model.seed is None else self.model.seed

    @property
    def train_seed(self) -> int:
        """The seed of cohorts and of what is drawn in training."""
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def follows_seed(self) -> bool:
        """Whether anything in the program follows its seed, rather than a seed of its own."""
        split = self.split.seed is None and (
            self.split.seeded or self.rounds.validation > 0 or self.shift.kind == "noise"
        )
        noise = self.privacy.protects or self.secure.rounds_values
        return split or self.model.seed is None or self.train.seed is None or noise

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything but the program's name and the paths of files."""
        meaning = {
            item.name: _meaning(value) if isinstance(value, Settings) else value
            for item in fields(self)
            for value in [getattr(self, item.name)]
            if item.name not in ("name", "plugins") and value is not None
        }
        if self.plugins:
            meaning["plugins"] = sorted({plugin.sha256 for plugin in self.plugins})
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    def init(self, vector: Tensor) -> State:
        """The state before the first round: the algorithm's and the mechanism's."""
        return {**self.algorithm.init(vector), **self.privacy.init()}

    def shared(self, state: State) -> Mapping[str, Tensor]:
        """The part of the state that each site of the cohort needs."""
        own, rest = split(state)
        return {**self.algorithm.shared(rest), **self.privacy.shared(own)}

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of a payload that are not of integers, in the order in which they are sent."""
        return (*self.algorithm.parts, *self.algorithm.scalars, *self.privacy.parts())

    def layout(self, network: Network) -> Layout:
        """The layout of `network`, with the slices that algorithm and task keep at the sites, and
        those that the coordinator moves."""

        def kind(name: str, kind: Kind) -> Kind:
            if name in network.frozen or not self._learns(name, network):
                return Kind.FROZEN
            return self.task.kind(name, self.algorithm.kind(name, kind, network), network)

        layout = Layout.of(network.module).rekind(kind)
        moved = self.algorithm.moves(layout)
        return layout.rekind(lambda name, kind: Kind.MOVED if name in moved else kind)

    def _learns(self, name: str, network: Network) -> bool:
        """Whether `train.only` lets the tensor `name` learn."""
        only = self.train.only
        return not only or any(matches(name, pattern, network) for pattern in only)

    def differs(self, network: Network) -> bool:
        """Whether each site's own model is tested: predictions use a personal slice, or all."""
        if self.algorithm.owns or self.model.groups:
            return True
        unasked = frozenset() if self.task.asks_head else network.head
        entries = self.layout(network).entries
        return any(e.kind == Kind.PERSONAL and e.name not in unasked for e in entries)

    def own(self, layout: Layout) -> slice:
        """What a site's model has of its own, as its memory "personal": the personal slice, or all
        that travels, where the algorithm keeps a whole model at each site."""
        return layout.travelling if self.algorithm.owns else layout.personal

    def baseline(self) -> Program:
        """The same training without a federated algorithm: for a site alone and for all pooled.

        Nothing of it leaves a site, so nothing is protected. A round has as many epochs, or
        steps, as all phases of the algorithm together, of those that train one model.
        """
        alone = {"cohort": None, "quorum": None, "mode": "synchronous"}
        alone |= {"buffer": None, "max_staleness": None}
        rounds = self.rounds.model_copy(update=alone)
        if not rounds.compared:  # nobody looks at a baseline's rounds
            rounds = rounds.model_copy(update={"evaluate_every": rounds.rounds})
        return replace(
            self,
            algorithm=self.algorithm.baseline,
            start=self.start.baseline if self.start else None,
            finish=self.finish.baseline if self.finish else None,
            train=self.train.lasting(self.algorithm.longest(self.train.length)),
            rounds=rounds,
            privacy=Unprotected(),
            secure=Secure(),
            participation=Uniform(),
            timing=Timing(),
            codec=Codecs(),  # nothing travels
            # A baseline's answers are only compared, on degraded images as well.
            trust=Trust(measured=self.trust.measured, robustness=self.trust.robustness),
        )

    def opening(self) -> Program | None:
        """The program of the one round before the first, whose algorithm is `start`; None: without.

        All but the head is as it was built.
        """
        return None if self.start is None else self._once(self.start, only=())

    def closing(self) -> Program | None:
        """The program of the one round after the last, whose algorithm is `finish`; None: without.

        The sites get all that was trained.
        """
        return None if self.finish is None else self._once(self.finish.closing(self.algorithm))

    def _once(self, algorithm: Algorithm, **train: Any) -> Program:
        """The program of one round in which every site takes part with every image as it is."""
        own = self.rounds
        rounds = Rounds(
            rounds=1, weighting=own.weighting, cap=own.cap, validation=own.validation,
            quorum=own.quorum, keep=own.keep, keep_by=own.keep_by, patience=own.patience,
        )  # fmt: skip
        plain = {"groups": (), "augment": (), "warmup": 0, "schedule_by": "round", "steps": None}
        trains = self.train.model_copy(update={**plain, "sampling": "shuffled", **train})
        task = self.task
        even = {"class_weights": None, "calibration": 0.0}
        known = type(task).model_fields
        task = task.model_copy(update={k: v for k, v in even.items() if k in known})
        # The one model that it makes is not a step from the last: no difference leads there.
        codec = self.codec.model_copy(update={"down": Down()})
        once = replace(self, algorithm=algorithm, start=None, finish=None, rounds=rounds)
        once = replace(once, codec=codec)
        once = replace(once, participation=Uniform(), timing=Timing())
        return replace(once, train=trains, task=task)

    def check(self) -> list[Problem]:
        """Every problem that can be found without reading images, each with its cure."""
        return list(self._problems(getattr(self.split, "sites", None)))

    def check_elsewhere(self, sites: int | None) -> list[Problem]:
        """The same where the images are at the `sites` of a federation (None: so many as come).

        The split says how many there are only if they have shares of a sample.
        """
        stated = getattr(self.split, "sites", None) if self.data.sample else sites
        return list(self._problems(stated))

    def needs(self) -> tuple[str, ...]:
        """The names of data sets that must be fetched for this program."""
        return tuple(name for _, name in self._needs())

    def _needs(self) -> Iterator[tuple[str, str]]:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Settings):
                where = "public.source.name" if item.name == "public" else f"{item.name}.name"
                yield from ((where, name) for name in value.needs())

    def _problems(self, sites: int | None) -> Iterator[Problem]:
        for where, name in self._needs():
            yield from missing(name, where)
        yield from self.data.check()
        yield from self.model.check()
        yield from self.train.check()
        yield from workload.problems(self)
        yield from self.algorithm.check(self)
        yield from self.task.check_settings()
        yield from self.privacy.check()
        yield from coding.problems(self)
        yield from rules.problems(self)
        yield from taking_part.problems(self)
        yield from labelling.problems(self)
        yield from networks.problems(self)
        yield from public.problems(self)
        if self.adapter.adapts and not self.algorithm.phases(self.train.length):
            cause = (
                f"{self.algorithm.registered} trains nothing by gradients, so an adapter would "
                "learn nothing"
            )
            yield Problem("adapter.name", cause, "leave it out, or choose another algorithm")
        if self.model.gives != self.task.takes:
            cause = (
                f"the task '{self.task.registered}' needs a network that gives {self.task.takes}, "
                f"and '{self.model.registered}' gives {self.model.gives}"
            )
            kinds = [name for name in models.names() if models.get(name).gives == self.task.takes]
            yield Problem("model.name", cause, f"choose one of: {', '.join(kinds)}")
        yield from self.train.check_task(self.task)
        if self.task.placed and self.shift.kind == "rotate":
            cause = "'rotate' moves the content of an image but not its targets"
            yield Problem("shift.kind", cause, "choose another kind")
        if self.train.warmup >= self.rounds.rounds:
            yield Problem(
                "train.warmup",
                f"{self.train.warmup} warm-up rounds are not fewer than the {self.rounds.rounds} "
                "rounds of the run",
                "lower train.warmup or raise rounds.rounds",
            )
        yield from self.rounds.check(sites)
        figure, known = self.rounds.keep_by, self.task.measures()
        if figure is not None and figure not in known:
            cause = f"the task '{self.task.registered}' does not measure '{figure}'"
            yield Problem("rounds.keep_by", cause, nearest(figure, known))
        most = sites if self.rounds.cohort is None else self.rounds.cohort
        yield from self.secure.check(most, self.rounds.quorum)
        yield from opening.problems(self)

    def check_network(self, network: Network) -> list[Problem]:
        """Problems that can be found once the network is built."""
        if problems := [*self.task.check_network(network), *self._check_patterns(network)]:
            return problems
        algorithm, layout = self.algorithm, self.layout(network)
        if found := suited.problems(self, network) or taking_part.network_problems(self, network):
            return found
        if self.rounds.keep == "best" and (algorithm.owns or layout.length(Kind.PERSONAL)):
            cause = (
                "each site has parameters of its own, and these are those of the last round "
                f"(algorithm {algorithm.registered}): a model of an earlier round is gone"
            )
            cure = "leave it out, or set rounds.patience, which ends training early"
            return [Problem("rounds.keep", cause, cure)]
        if personalises(algorithm) and not layout.length(Kind.SHARED):
            cause = (
                f"{algorithm.registered} keeps all of the model at the site, and nothing travels"
            )
            return [Problem("algorithm", cause, "keep fewer blocks, or choose another algorithm")]
        if personalises(algorithm) and not layout.length(Kind.PERSONAL):
            cause = (
                f"{algorithm.registered} keeps a slice of the model at the site, which this lacks"
            )
            return [Problem("algorithm", cause, "choose another algorithm, or a model with norms")]
        return [*rules.problems(self, network), *opening.network_problems(self, network)]

    def _check_patterns(self, network: Network) -> list[Problem]:
        """Patterns that match no tensor, or a network in which nothing would be trained."""
        names = [entry.name for entry in Layout.of(network.module).entries]
        asked = {"train.only": self.train.only}
        for number, group in enumerate(self.train.groups):
            asked[f"train.groups.{number}"] = group.params
        unknown = [
            Problem(
                where,
                f"no tensor of the network is called '{pattern}'",
                instead_of(pattern, network, names),
            )
            for where, patterns in asked.items()
            for pattern in patterns
            if not any(matches(name, pattern, network) for name in names)
        ]
        if unknown or self.layout(network).learning:
            return unknown
        if not self.train.only:
            cause = f"nothing would be trained: no parameter of {self.model.title} requires_grad"
            return [Problem("model", cause, "set requires_grad = True where it is to be trained")]
        cause = "nothing would be trained: all named tensors are frozen or not parameters"
        return [Problem("train.only", cause, 'name trainable parameters, for example ["head"]')]


def _meaning(part: Settings) -> dict[str, Any]:
    """A part's meaning; a seed of its own that is not set says nothing."""
    return {
        key: value for key, value in part.meaning().items() if key != "seed" or value is not None
    }


def _has_bfloat16() -> bool:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return torch.backends.mkldnn.is_available() and ("avx512_bf16" in flags or "amx_bf16" in flags)
