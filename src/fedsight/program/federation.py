"""A federation: a program with its data opened, its clients' images and its test views."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedsight.core.errors import ConfigError, DataError, FedSightError, ModelError, Problem
from fedsight.core.layout import Layout
from fedsight.core.selection import Selection
from fedsight.core.types import Batch, Derived, PartSpec, Payload
from fedsight.data.base import Dataset, Indices, Part, Source
from fedsight.data.partition import Partition
from fedsight.models.base import Model, Network
from fedsight.models.group import group_of
from fedsight.models.origin import trained_for, with_head_for
from fedsight.privacy.base import Plan
from fedsight.program import (
    auto_codec,
    fitting,
    isolation,
    labelling,
    looks,
    public,
    taking_part,
    validation,
    workload,
)
from fedsight.program.budget import Budget
from fedsight.program.coding import added_specs, part_specs
from fedsight.program.fitting import blamed, group_problems, integer_problems, lone_problems
from fedsight.program.program import Program
from fedsight.program.site_data import SiteData
from fedsight.program.views import View, views_of

if TYPE_CHECKING:
    from fedsight.program.kept import Kept


@dataclass(frozen=True)
class Federation:
    """A program with its data opened: each client's images, and the test views."""

    program: Program
    dataset: Dataset
    partition: Partition
    views: tuple[View, ...]
    only: int | None = None  # the only site that takes part; None: all
    pooled: bool = False  # all sites' images as one client
    aside: tuple[Indices, ...] | None = None  # by site: training images for validation
    budget: Budget | None = None  # of a baseline that has other rounds or passes than planned
    group: int | None = None  # of `[[model.groups]]`, whose network is built; None: that of [model]
    whole: Federation | None = None  # whose vector travels; None: this one's

    @property
    def population(self) -> int:
        """Number of clients."""
        return 1 if self.pooled or self.only is not None else len(self.partition)

    def name(self, client: int) -> str:
        """A client's name."""
        if self.pooled:
            return "pooled"
        return self.partition.name(client if self.only is None else self.only)

    def size(self, client: int) -> int:
        """A client's number of samples."""
        if self.pooled:
            return sum(self.partition.size(site) for site in range(len(self.partition)))
        return self.partition.size(client if self.only is None else self.only)

    def client(self, client: int) -> SiteData:
        """A client's training images; created on each call and not cached.

        Pooled ones are in the order of their sites, or, so that training with a seed of its own
        does not depend on the split, in the order of the data.
        """
        if not self.pooled:
            site = client if self.only is None else self.only
            indices = torch.from_numpy(self.partition.indices(site))
            return self._data(self.dataset.train, indices, torch.full_like(indices, site))
        sites = range(len(self.partition))
        groups = [self.partition.indices(site) for site in sites]
        origins = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        pooled = np.concatenate(groups)
        if self.program.train.seed is not None:
            order = np.argsort(pooled, kind="stable")
            pooled, origins = pooled[order], origins[order]
        return self._data(self.dataset.train, torch.from_numpy(pooled), torch.from_numpy(origins))

    def viewed(self) -> Federation:
        """The same federation with its test views."""
        return self.testing(tuple(views_of(self.dataset, self.partition, self.differ)))

    def testing(self, views: tuple[View, ...]) -> Federation:
        """The same federation with these test views."""
        return self._alike(replace(self, views=views))

    @cached_property
    def validating(self) -> Federation | None:
        """This federation with the validation part in place of the test part; None: it has none."""
        data = self.dataset
        baseline = self.pooled or self.only is not None
        if baseline and not self.program.rounds.compared:  # nobody looks at its rounds
            return None
        if self.aside is not None:
            views = tuple(View(site, own) for site, own in enumerate(self.aside) if len(own))
            checked = validation.tested_on(data, self.aside, self.partition)
        elif data.validation is not None and len(data.validation):
            checked = replace(data, test=data.validation, validation=None)
            views = tuple(views_of(checked, self.partition, self.differ))
        else:
            return None
        if self.only is not None and any(view.site is not None for view in views):
            views = tuple(view for view in views if view.site == self.only)
        if not views:
            return None
        return self._alike(replace(self, dataset=checked, views=views, aside=None))

    @property
    def differ(self) -> bool:
        """Whether sites have personal models to test, or see shifted images."""
        return self.program.differs(self.network) or self.varies

    @property
    def varies(self) -> bool:
        """Whether each site sees images in its own way."""
        return self.program.shift.kind != "none" or self.program.data.harmonise == "site"

    @property
    def degrades(self) -> bool:
        """Whether test images are also measured small, dark, turned and partly covered."""
        asked = self.program.trust.measured and self.program.trust.robustness
        return asked and self.program.task.probes

    @property
    def publics(self) -> int:
        """How many public images there are."""
        return 0 if self.dataset.public is None else len(self.dataset.public)

    @cached_property
    def public(self) -> SiteData:
        """The public images, which belong to no site."""
        assert self.dataset.public is not None  # checked before anything is opened
        every = torch.arange(len(self.dataset.public))
        return self._data(self.dataset.public, every, torch.full_like(every, -1))

    def tested(self, view: View) -> SiteData:
        """The test images of a view."""
        indices = torch.from_numpy(view.indices)
        origin = -1 if view.site is None else view.site
        return self._data(self.dataset.test, indices, torch.full_like(indices, origin))

    def alone(self, site: int, budget: Budget | None = None) -> Federation:
        """Only this site, with its own network, trained by the baseline program; without a budget,
        as long as planned."""
        mine, program = self.member(site), self.program.baseline()
        made = replace(self, program=program, only=site, budget=budget, group=mine.group)
        return mine._baseline(made)

    def member(self, site: int | None) -> Federation:
        """This federation with the network of a site, whose layout is a part of this one's; None:
        with that of [model]."""
        groups, known = self.program.model.groups, self.__dict__.setdefault("_members", {})
        if not groups or site is None or self.pooled or self.only is not None:
            return self
        number = group_of(groups, self.partition.name(site))
        if number is None:
            return self
        if number not in known:
            built = self.__dict__.setdefault("_networks", {})
            known[number] = made = replace(self, group=number, whole=self)
            if number in built:
                made.__dict__["_built"] = built[number]
            built[number] = made._built
        found: Federation = known[number]
        return found

    @cached_property
    def selection(self) -> Selection | None:
        """Where the network's travelling values are in the vector that travels; None: they are
        that vector."""
        if self.whole is None:
            return None
        found = Selection.of(self.whole.layout, self.layout)
        return None if found.everything else found

    def received(self, vector: Tensor) -> Tensor:
        """The network's values [d] of the vector that travels."""
        return vector if self.selection is None else self.selection.taken(vector)

    def sent(self, payload: Payload) -> Payload:
        """A payload of the network's values, placed among those of the vector that travels."""
        if self.selection is None:
            return payload
        return {part: self.selection.placed(value) for part, value in payload.items()}

    def all_pooled(self, budget: Budget | None = None) -> Federation:
        """All images at one place, likewise."""
        return self._baseline(
            replace(self, program=self.program.baseline(), pooled=True, budget=budget)
        )

    def _baseline(self, made: Federation) -> Federation:
        """`made` with this federation's network, unless the algorithm has added to that."""
        return made if self.program.algorithm.equips else self._alike(made)

    def span(self, round: int, images: int) -> tuple[int, int] | None:
        """Which images of the endless sequence of passes a baseline's round takes; None: all of
        them `train.epochs` times, or in `train.steps`."""
        train = self.program.train
        if self.budget is None or (train.steps is None and self.budget.whole(train.length)):
            return None
        return self.budget.span(round, images)

    def under(self, program: Program) -> Federation:
        """The same data under `program`, which differs only in how long or how fast it trains."""
        return self._alike(replace(self, program=program, budget=None))

    def adopting(self, kept: Tensor) -> Federation:
        """The same federation, whose network begins with these personal and frozen values [kept].

        Raises ModelError if there are not as many as the layout has.
        """
        vector, layout = self.initial.clone(), self.layout
        if len(kept) != layout.size - layout.travelling.stop:
            n, due = len(kept), layout.size - layout.travelling.stop
            cause = f"{n:,} parameters came that do not travel, and the network has {due:,}"
            cure = "run the same FedSight version at the coordinator and at the sites"
            raise ModelError(cause, cure)
        vector[layout.kept] = kept
        network, state = self._built
        other = replace(self)
        other.__dict__["_built"] = network, {**state, **layout.state_dict(vector)}
        return other

    def _alike(self, other: Federation) -> Federation:
        """`other` with this federation's networks, as far as they are built: they are equal."""
        for name in ("_built", "_kept", "_networks"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        return other

    @property
    def kept(self) -> Kept | None:
        """What all processes of a run share of its frozen layers; None: nothing, or not yet."""
        found: Kept | None = self.__dict__.get("_kept")
        return found

    def keep(self, kept: Kept | None) -> None:
        """Let this federation, and those made of it, share `kept`."""
        self.__dict__["_kept"] = kept

    def _data(self, part: Part, indices: Tensor, origins: Tensor) -> SiteData:
        look = partial(looks.applied, self) if self.program.data.harmonise == "site" else None
        hidden = self.hidden
        if hidden is not None and not bool(hidden[origins.unique()].any()):
            hidden = None
        return SiteData(part, indices, origins, self.shifted, hidden, look)

    @property
    def computes_looks(self) -> bool:
        """Whether what a site sees depends on the mean and deviation of its training images."""
        return self.program.data.harmonise == "site" and self.dataset.site_mean is None

    def shifted(self, pixels: Tensor, site: int, indices: Tensor) -> Tensor:
        """Pixels [b, c, h, w] as a site's device shows them, before they are harmonised."""
        if site < 0:
            return pixels
        sites, seed = len(self.partition), self.program.split_seed
        return self.program.shift.apply(pixels, site, sites, seed, indices)

    @cached_property
    def hidden(self) -> Tensor | None:
        """Which classes each site does not label [sites + 1, classes]; the last row is of images of
        no site. None if every site labels all."""
        return labelling.hidden(self.dataset, self.partition)

    def batch(self, data: SiteData, positions: Tensor, pixels: Tensor | None = None) -> Batch:
        """A normalised, channels-last batch; `pixels` if they were already read, and have the look
        of their site."""
        if pixels is None:
            pixels = data.harmonised(data.pixels(positions), positions)
        x = self.dataset.preprocess.normalise(pixels)
        x = x.contiguous(memory_format=torch.channels_last)
        return Batch(x, data.targets(positions), data.unlabelled(positions))

    @property
    def model(self) -> Model:
        """What its network is."""
        model = self.program.model
        return model if self.group is None else model.grouped(self.group)

    @property
    def keeps(self) -> bool:
        """Whether a site that has never trained has no model: it has a part of its own to learn."""
        own = self.program.own(self.layout)
        return own.stop > own.start and self.program.differs(self.network)

    def build(self) -> Network:
        """A new, initialised network; equal in every process."""
        size, model, classes = self.dataset.preprocess, self.model, self.dataset.classes
        given = (size.channels, size.height, size.width, len(classes), self.program.model_seed)
        network = model.build(*given)
        theirs = trained_for(model)
        if theirs is not None and theirs != classes:
            network = with_head_for(network, model.fresh().build(*given), theirs, classes)
        network = self.program.adapter.adapt(network, self.program.model_seed)
        return self.program.algorithm.equip(network, len(classes), self.publics)

    @cached_property
    def _built(self) -> tuple[Network, dict[str, Tensor]]:
        network = self.build()
        state = network.module.state_dict()
        return network, {name: value.clone() for name, value in state.items()}

    @property
    def network(self) -> Network:
        """The network of this process, built once; users bind it to their own vector."""
        return self._built[0]

    @cached_property
    def layout(self) -> Layout:
        """The layout of the network's tensors in its vector."""
        return self.program.layout(self.network)

    @cached_property
    def initial(self) -> Tensor:
        """The vector [size] that the network was built with."""
        return self.layout.vector(self._built[1])

    @cached_property
    def parts(self) -> dict[str, PartSpec]:
        """The parts of a payload: the update includes running statistics, the others do not.

        Scalars follow, without a codec. Integer parts come last.
        """
        if self.whole is not None:
            return self.whole.parts
        program = self.program
        vectors = part_specs(program, self.lengths, self.layout, self.derived)
        scalars = {part: PartSpec((1,)) for part in program.algorithm.scalars}
        return {**vectors, **scalars, **added_specs(program), **self.integers}

    @property
    def lengths(self) -> dict[str, int]:
        """The lengths of an update's vectors, before they are encoded."""
        layout, parts = self.layout, self.program.algorithm.parts
        whole, shared = layout.sent.stop, layout.shared.stop
        return {part: whole if part == "delta" else shared for part in parts}

    @cached_property
    def derived(self) -> Derived | None:
        """What the coordinator makes of an update, for the tensors that it moves."""
        return self.program.algorithm.derived(self.network, self.layout)

    @cached_property
    def integers(self) -> dict[str, PartSpec]:
        """The parts of a payload that are integers, with the bounds of the largest site."""
        if not self.program.algorithm.counts:
            return {}
        return self.integers_of(max(map(self.size, range(self.population)), default=0))

    def integers_of(self, images: int) -> dict[str, PartSpec]:
        """The integer parts, with the bounds of a site of so many images."""
        algorithm, classes = self.program.algorithm, len(self.dataset.classes)
        if not algorithm.counts:
            return {}
        images = self.publics if algorithm.on_public else images
        specs = algorithm.integer_parts(self.network, classes, images)
        return dict(self.program.privacy.widened(specs, self.plan))

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of values of each part of a payload that is not of integers."""
        return {part: spec.values for part, spec in self.parts.items() if not spec.exact}

    @cached_property
    def plan(self) -> Plan:
        """The accountant's plan of this run, apart from rounding."""
        program = self.program
        sizes: frozenset[int] = frozenset()
        if program.privacy.unit == "example":
            sizes = frozenset(map(self.size, range(self.population)))
        algorithm, length = program.algorithm, workload.length(program)
        fixed = program.train.steps is not None
        hides = program.privacy.covers_bounded_integers and algorithm.bounds_images
        return Plan(
            self.population,
            program.rounds.cohort,
            program.rounds.rounds if self.budget is None else self.budget.rounds,
            program.train.batch,
            passes=1 if fixed else length,
            steps=length if fixed else None,
            sizes=tuple(sorted(sizes)),
            told=program.secure.masks,
            units=tuple(algorithm.units.items()) if hides else (),
        )

    @cached_property
    def accounted(self) -> Plan:
        """`plan` with the rounding of secure aggregation."""
        program = self.program
        if not (program.secure.rounds_values and program.privacy.protects):
            return self.plan
        return program.secure.facing(self.plan, self.sizes, self.terms, program.train.lr)

    @property
    def terms(self) -> int:
        """The most replies that a round is planned to have."""
        planned = self.program.rounds.replies(self.population)
        return self.program.participation.most(planned, self.population)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without cached values: another process builds its own network."""
        names = (*self.__dataclass_fields__, "_kept")
        return {name: self.__dict__[name] for name in names if name in self.__dict__}


def federate(program: Program, opened: Dataset | None = None) -> Federation:
    """Open the program's data, unless another program with the same data has `opened` them, and
    divide them.

    Raises DataError for unusable images or an impossible split, and ConfigError if the program
    does not fit the population or the model.
    """
    dataset: object = opened
    if opened is None:
        with blamed(program.data, DataError):
            dataset = program.data.open()
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"the data source {program.data.registered} gives a {type(dataset).__name__}",
            "its open must return a fedsight.data.base.Dataset",
        )
    channels = dataset.preprocess.channels
    settings = [*program.task.check_settings(), *program.train.check_images(channels)]
    if problems := [*settings, *program.task.check(dataset)]:
        raise ConfigError(problems)
    with blamed(program.split, DataError):
        partition = program.split.divide(dataset.train, len(dataset.classes), program.split_seed)
    found = [*program.rounds.check(len(partition)), *taking_part.of_sites(program, partition)]
    if problems := found:
        raise ConfigError(problems)
    dataset, partition = public.opened(program, of_source(dataset, program.data), partition)
    asked = (labelling.opened_problems, looks.opened_problems)
    if problems := [one for ask in asked for one in ask(program, dataset, partition)]:
        raise ConfigError(problems)
    aside, share = None, program.rounds.validation
    if share and dataset.validation is None:
        if problems := validation.problems(share, program.split, program.task):
            raise ConfigError(problems)
        groups, seed = dataset.train.groups, program.split_seed
        partition, aside = validation.set_aside(partition, share, seed, groups)
    dataset = fitting.trainable(program, dataset, partition)
    federation = Federation(program, dataset, partition, (), aside=aside)
    with blamed(program.model, ModelError):
        network = federation.network
    if problems := program.check_network(network):
        raise ConfigError(problems)
    if problems := isolation.problems(program, dataset, network):
        raise ConfigError(problems)
    if problems := group_problems(federation) or lone_problems(federation):
        raise ConfigError(problems)
    with blamed(program.algorithm, FedSightError):
        if problems := [*program.algorithm.check_data(dataset), *integer_problems(federation)]:
            raise ConfigError(problems)
    if program.rounds.compared and federation.validating is None:
        cause = "rounds are compared on validation images, and there are none"
        cure = "set rounds.validation, for example 0.1, or give the data a validation part"
        raise ConfigError([Problem(program.rounds.comparing, cause, cure)])
    federation = federation.viewed()
    tested = {
        "" if view.site is None else partition.name(view.site): dataset.test.labels[view.indices]
        for view in federation.views
    }
    if problems := program.task.check_tested(tested):
        raise ConfigError(problems)
    return auto_codec.settled(federation)


def of_source(dataset: Dataset, source: Source) -> Dataset:
    """The data set with what its source says of the sites: their labels and their looks."""
    return replace(
        dataset,
        labelled=source.labelled,
        site_mean=source.site_mean,
        site_std=source.site_std,
    )
