"""What a model builder gives: a network and the names of its classification head."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, ValidationError
from torch import nn

from fedsight.core.errors import ConfigError, ModelError, Problem
from fedsight.core.no_memory import ran_out
from fedsight.core.registry import Registry, nearest
from fedsight.core.rng import derive
from fedsight.core.settings import Settings, problems_of
from fedsight.models import bottleneck, patterns
from fedsight.models import lift as random_features
from fedsight.models.bottleneck import narrow
from fedsight.models.group import ModelGroup
from fedsight.models.norms import (
    freeze_norms,
    frozen_names,
    is_batch_norm,
    norm_names,
    statistic_names,
    to_group_norm,
)
from fedsight.models.probe import OutputShape, probe
from fedsight.models.published import Published, published
from fedsight.models.taps import BODY, HEAD, tapped
from fedsight.models.weights import found_norms, load_weights, read_weights, unusable

TOGETHER = (
    32  # images that go through a network at once where features are computed, always so many
)
FROZEN = "the {} of the network keep their pretrained statistics and do not learn (model.norm)"


@dataclass(frozen=True)
class Network:
    """A built network: `module(x [b, c, h, w]) -> logits [b, classes]`.

    `head` are the names of the last layer's parameters (FedRep keeps them at the site); `norms`
    those of every normalisation layer's tensors (FedBN does); `statistics` pairs the names of
    BatchNorm's running mean and running variance; `frozen` are tensors that neither learn nor
    move: those of frozen norms, and parameters whose `requires_grad` is False. `notes` says what a
    user should know about how pretrained weights were fitted.
    """

    module: nn.Module
    head: frozenset[str]
    norms: frozenset[str]
    statistics: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    frozen: frozenset[str] = frozenset()
    together: int = TOGETHER  # images that its features are computed of at once

    @cached_property
    def blocks(self) -> tuple[frozenset[str], ...]:
        """The names of the tensors of each block before the head, as "last:3" counts them."""
        return patterns.blocks(self.module, self.head)


class Model(Settings, ABC):
    """A network by name: `[model]` in the config. A new one costs one file in `zoo/`."""

    gives: ClassVar[str] = "scores"  # what its answer is: scores of classes, or boxes
    chosen_by: ClassVar[str] = "name"  # the setting that says which family of networks it is of

    # group: GroupNorm instead of BatchNorm; batch: the model's own BatchNorm; frozen: that with the
    # pretrained statistics, scale and shift, which then neither learn nor move; auto: frozen with
    # pretrained weights that have BatchNorm, else group
    norm: Literal["auto", "group", "batch", "frozen"] = "auto"
    # a local file of pretrained weights (safetensors or .pth), or the name of published ones that
    # `fedsight data get` fetches: mobilenet-weights, efficientnet-lite0, -lite1 or -lite2
    weights: Path | None = Field(None, strict=False)
    # of that file, or its first 8 or more hex digits; required with a file, known with a name
    sha256: str | None = None
    # layers whose outputs, averaged and at their highest over the image, the head sees instead of
    # the last features ("blocks.3"); what comes after them is left out
    taps: Annotated[tuple[str, ...], Field(strict=False)] = ()
    # for each of these layers, into how many rows and columns of cells it is divided: the head
    # then also sees the mean of each cell, which tells where in the image an output is high; with
    # [3, 1], those of the nine cells of the first layer, and none of the second; empty: none at all
    grids: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = ()
    # how many values the head sees: a linear layer and a ReLU before it make so many of the
    # network's features; 0: no such layer
    bottleneck: int = Field(0, ge=0)
    # how many random features, a frozen and seeded function of the last ones, the head sees instead
    # of them; 0: none
    lift: int = Field(0, ge=0)
    lift_by: random_features.Kind = "linear"  # products with random directions; or ReLUs of them
    seed: int | None = None  # of the initial weights; None: the program's seed
    groups: Annotated[tuple[ModelGroup, ...], Field(strict=False)] = ()  # sites with other networks

    @abstractmethod
    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """The bare module for images [b, channels, height, width], and its head layers' names.

        Draws its initial weights from torch's default generator, which `build` has seeded.
        Raises ModelError when the name is unknown or the image does not fit.
        """

    def model_post_init(self, context: Any) -> None:
        """Without weights, "auto" is decided at once; published ones have a known hash."""
        if self.norm == "auto" and not self.pretrains:
            self.__dict__["norm"] = "group"
        if self.published is not None:
            self.__dict__["sha256"] = self.published.sha256

    @property
    def published(self) -> Published | None:
        """The published weights that it starts from, if they are given by name."""
        return published(self.weights)

    def anchored(self, base: Path) -> Self:
        """A name stays a name."""
        return self if self.published is not None else super().anchored(base)

    def needs(self) -> tuple[str, ...]:
        """Published weights."""
        return () if self.published is None else (self.published.name,)

    @property
    def pretrains(self) -> bool:
        """Whether the network starts from pretrained weights."""
        return self.weights is not None

    @property
    def fits_published(self) -> bool:
        """Whether it starts from published weights that are those of this network."""
        known, given = self.published, (self.family, getattr(self, "architecture", None))
        return known is not None and given == (known.model, known.architecture)

    @property
    def family(self) -> str | None:
        """Where its architecture is from, under whose name weights of it are published."""
        return self.registered

    @property
    def rebuildable(self) -> bool:
        """Whether others can build the same initial network: from the seed, and from published
        weights if it has any, where they have fetched them (`needs`)."""
        return self.fits_published or bool(self == self.fresh())

    def grouped(self, number: int) -> Model:
        """The network of group `number`: this one with the group's settings, or the one it names.

        Raises ConfigError with every setting that does not fit.
        """
        group, where = self.groups[number], f"model.groups.{number}"
        kind: type[Model] = type(self)
        if group.name is not None and group.name != self.registered:
            try:
                kind = models.get(group.name)
            except ConfigError as error:
                (found,) = error.problems
                raise ConfigError([Problem(f"{where}.name", found.cause, found.cure)]) from None
        names = kind.model_fields if kind is type(self) else ("seed",)
        given = {name: getattr(self, name) for name in names if name != "groups"}
        unknown = [
            Problem(f"{where}.{key}", "there is no such setting", nearest(key, kind.model_fields))
            for key in group.settings
            if key not in kind.model_fields
        ]
        if unknown:
            raise ConfigError(unknown)
        try:
            return kind.model_validate({**given, **group.settings})
        except ValidationError as error:
            raise ConfigError(problems_of(where, kind, error)) from None

    def settled(self) -> Self:
        """The same model with norm = "auto" decided by the weights; as it is if none can be read.

        Only the program's file of weights shows what they need, and sites and finished runs build
        the network without it.
        """
        if self.norm != "auto" or self.weights is None:
            return self
        if self.published is not None:  # all of them have BatchNorm
            return self.model_copy(update={"norm": "frozen"})
        found = found_norms(self.weights, self.sha256 or "")
        if found is None:
            return self
        return self.model_copy(update={"norm": "group" if found == "none" else "frozen"})

    def fresh(self) -> Self:
        """The same network before any pretraining: what a trained vector is bound to."""
        return self.settled().model_copy(update={"weights": None, "sha256": None})

    def answer(self, height: int, width: int, classes: int) -> OutputShape:
        """The shape of the network's answer to one image; None for a side that may be any."""
        return (classes,)

    def build(self, channels: int, height: int, width: int, classes: int, seed: int) -> Network:
        """A freshly initialised network (same seed, same weights), pretrained if asked for.

        Nobody else's random state is touched. Raises ModelError when the name is unknown, the
        image too small, the weights unfit, or the memory too small for them.
        """
        try:
            return self._built(channels, height, width, classes, seed)
        except (RuntimeError, TypeError) as error:
            if not ran_out(error):
                raise
            cause = f"the network '{self.title}' has more weights than there is memory for"
            cure = "set smaller numbers in [model], or choose another network"
            raise ModelError(cause, cure) from error

    def _built(self, channels: int, height: int, width: int, classes: int, seed: int) -> Network:
        if self.norm == "auto" and (known := self.settled()).norm != "auto":
            return known.build(channels, height, width, classes, seed)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would also reseed every accelerator, for good.
            torch.default_generator.manual_seed(derive(seed, "init"))
            module, heads = self.make(channels, height, width, classes)
            if self.norm == "group":
                module = to_group_norm(module)
            image = (channels, height, width)
            probe(module, image, self.answer(height, width, classes), self.title)
            head, of = self._head(module, tuple(heads)), self._weights_of()
            notes: tuple[str, ...] = ()
            if of == "network":
                notes = self._pretrain(module, head)
            if self.taps:
                module = self._tapped(module, image, classes)
                head = self._head(module, (HEAD,))
            if of == "taps":
                notes = self._pretrain(module, head)
            if self.bottleneck:
                head = self._head(module, (narrow(module, head, self.bottleneck, self.title),))
            if of == "bottleneck":
                notes = self._pretrain(module, head)
            if self.lift:
                given = (self.lift, self.lift_by, seed)
                head = self._head(module, (random_features.lift(module, head, *given, self.title),))
            if of == "lift":
                notes = self._pretrain(module, head)
        if self.norm == "frozen":
            count = sum(is_batch_norm(part) for part in module.modules())
            module = freeze_norms(module)
            if count and self.pretrains:
                notes = (*notes, FROZEN.format(f"{count} BatchNorm layer{'s' * (count > 1)}"))
        still = {name for name, value in module.named_parameters() if not value.requires_grad}
        return Network(
            module,
            head,
            norm_names(module),
            statistic_names(module),
            notes,
            frozen_names(module) | still,
        )

    def _tapped(self, module: nn.Module, image: tuple[int, int, int], classes: int) -> nn.Module:
        """The network whose head sees `taps` of `module`, for images of shape [c, h, w]."""
        return tapped(module, self.taps, self.grids, image, classes, self.title)

    def _head(self, module: nn.Module, layers: tuple[str, ...]) -> frozenset[str]:
        """The names of the parameters in `layers`; ModelError for a layer that has none."""
        names = [name for name, _ in module.named_parameters()]
        for layer in layers:
            if not any(name.startswith(f"{layer}.") for name in names):
                known = {name.rpartition(".")[0] for name in names} - {""}
                raise ModelError(
                    f"the head of {self.title} is called '{layer}', and no layer with parameters "
                    "has that name",
                    nearest(layer, known),
                )
        return frozenset(n for n in names if n.startswith(tuple(f"{one}." for one in layers)))

    def _weights_of(self) -> Literal["network", "taps", "bottleneck", "lift"]:
        """Which network the weights are of: a run leaves those of one with its taps, bottleneck and
        lift."""
        changed = self.taps or self.bottleneck or self.lift
        if not changed or self.weights is None or self.published is not None:
            return "network"
        names = list(read_weights(self.weights, self.sha256 or ""))
        if self.lift and any(name.endswith(random_features.TENSOR) for name in names):
            return "lift"
        if self.bottleneck and any(name.endswith(bottleneck.TENSOR) for name in names):
            return "bottleneck"
        tapped = self.taps and any(name.startswith(f"{BODY}.") for name in names)
        return "taps" if tapped else "network"

    def _pretrain(self, module: nn.Module, head: frozenset[str]) -> tuple[str, ...]:
        if self.weights is None:
            return ()
        known = self.published
        if known is None:
            return load_weights(module, self.weights, self.sha256 or "", head)
        return load_weights(module, known.path, known.sha256, head, known.rename)

    @property
    def signed(self) -> bool:
        """Whether the head sees random features that are as often below 0 as above."""
        return self.lift > 0 and self.lift_by == "linear"

    @property
    def title(self) -> str:
        """What messages call this network."""
        return str(getattr(self, "architecture", None) or self.registered or type(self).__name__)

    def check(self) -> list[Problem]:
        """What can be told wrong without building."""
        problems = []
        if self.taps and self.gives != "scores":
            cause = f"only classifiers have taps, and {self.title} gives {self.gives}"
            problems.append(Problem("model.taps", cause, "leave it out"))
        if len(set(self.taps)) != len(self.taps):
            cause = "model.taps names a layer twice"
            problems.append(Problem("model.taps", cause, "name each layer once"))
        if self.grids and len(self.grids) != len(self.taps):
            cause = f"it has {len(self.grids)} numbers, and model.taps {len(self.taps)} layers"
            cure = "write a grid for each layer, 1 where it has none, or leave it out"
            problems.append(Problem("model.grids", cause, cure))
        if self.bottleneck and self.gives != "scores":
            cause = f"only classifiers have a bottleneck, and {self.title} gives {self.gives}"
            problems.append(Problem("model.bottleneck", cause, "leave it out"))
        if self.lift and self.gives != "scores":
            cause = f"only classifiers have random features, and {self.title} gives {self.gives}"
            problems.append(Problem("model.lift", cause, "leave it out"))
        if self.weights is None:
            if self.sha256 is not None:
                cause = "the SHA-256 of a weights file is set, but no weights file"
                cure = "set model.weights, or leave model.sha256 out"
                problems.append(Problem("model.sha256", cause, cure))
            if self.norm == "frozen":
                cause = "norm = 'frozen' needs pretrained weights, and none are set"
                cure = "set model.weights and model.sha256, or norm = 'group'"
                problems.append(Problem("model.norm", cause, cure))
            return problems
        if (known := self.published) is not None:
            if self.fits_published:
                return []
            cause = f"the weights '{known.name}' are those of {known.architecture}"
            keeps_name = self.chosen_by == "name" and self.family == known.model
            chosen = self.registered if keeps_name else known.model
            cure = (
                f'set model.{self.chosen_by} = "{chosen}" and model.architecture = '
                f'"{known.architecture}"'
            )
            return [Problem("model.weights", cause, cure)]
        if trouble := unusable(self.weights):
            problems.append(Problem("model.weights", *trouble))
        cure = f"run `sha256sum {self.weights}` and write the result here"
        if self.sha256 is None:
            cause = "pretrained weights need their SHA-256, so that the file can be verified"
            problems.append(Problem("model.sha256", cause, cure))
        elif not re.fullmatch(r"[0-9a-fA-F]{8,64}", self.sha256):
            cause = f"'{self.sha256}' is not a SHA-256, nor its first 8 or more hex digits"
            problems.append(Problem("model.sha256", cause, cure))
        return problems


models: Registry[Model] = Registry("model", "fedsight.models.zoo")
