"""The settings of local training, `[train]`: optimiser, learning rate, batches, augmentation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_serializer, model_validator

from fedsight.core.errors import Problem
from fedsight.core.part_lists import written
from fedsight.core.settings import Settings
from fedsight.data.augment.base import Augmentation, MixingAugmentation, read
from fedsight.models.patterns import Patterns
from fedsight.tasks.base import Task


class Group(Settings):
    """Parameters with their own learning rate: `[[train.groups]]`."""

    params: Patterns  # names or patterns of tensors, "head" for the last layer
    lr: float = Field(gt=0)  # instead of train.lr; follows the same schedule


class Train(Settings):
    """Local training at a site: `[train]`."""

    # passes over the site's images in a round; None: 1, unless `steps` is set
    epochs: int | None = Field(None, ge=1, le=100_000)
    # in place of epochs: local steps in a round, as many at every site; each has exactly `batch`
    # images, from one pass after the other, at a site with fewer images, too
    steps: int | None = Field(None, ge=1, le=1_000_000)
    # images in a step; a single one that an epoch leaves over joins the last step
    batch: int = Field(32, ge=1)
    lr: float = Field(0.05, gt=0)
    optimiser: Literal["sgd", "adamw"] = "sgd"  # its state is reset in every round
    momentum: float = Field(0.0, ge=0, lt=1)  # of sgd
    beta1: float = Field(0.9, ge=0, lt=1)  # of adamw: decay of the mean gradient
    beta2: float = Field(0.999, ge=0, lt=1)  # of adamw: decay of the mean squared gradient
    weight_decay: float = Field(0.0, ge=0)
    # names or patterns of the tensors that learn ("head", "last:3" for the last three blocks and
    # the head, "blocks.6.*"); none: all of them
    only: Patterns = ()
    groups: Annotated[tuple[Group, ...], Field(strict=False)] = ()  # learning rates by name
    clip: float | None = Field(None, gt=0)  # largest norm of a step's gradient
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # of lr over the rounds
    # when schedule and warm-up change lr: at the start of each round, or at every local step
    schedule_by: Literal["round", "step"] = "round"
    warmup: int = Field(0, ge=0)  # rounds over which lr rises to its value
    # rounds after which schedule and warm-up begin again; `fedsight resume --rounds` adds one
    restarts: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = ()
    # the images of a pass: each once; balanced: as many of each class that the site has; or
    # independent: each drawn from all of the site's, whichever were drawn before (with replacement)
    sampling: Literal["shuffled", "balanced", "independent"] = "shuffled"
    augment: Annotated[tuple[Augmentation, ...], BeforeValidator(read), Field(strict=False)] = ()
    # of cohorts, the order of images, augmentation and dropout; None: the program's seed
    seed: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, given: Any) -> Any:
        """Where nothing says how long a round is, it is an epoch: as if that were written."""
        if not isinstance(given, Mapping) or given.get("steps") is not None:
            return given
        return {**given, "epochs": 1} if given.get("epochs") is None else given

    @field_serializer("augment")
    def _written(self, augment: tuple[Augmentation, ...]) -> list[Any]:
        return written(augment)

    @property
    def length(self) -> int:
        """How long a round trains at a site: so many `steps`, or epochs without them."""
        return self.steps or self.epochs or 1

    def lasting(self, length: int) -> Train:
        """The same for as many steps, or epochs, as `length` says."""
        return self.model_copy(update={"steps" if self.steps else "epochs": length})

    @property
    def plain(self) -> bool:
        """Whether training sees every image as it is."""
        return not self.augment

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed with one another."""
        return any(isinstance(one, MixingAugmentation) for one in self.augment)

    def unlike_sgd(self, *names: str) -> list[str]:
        """Which of these settings make local steps other than those of plain SGD at the round's
        learning rate, by their keys ("train.momentum")."""
        departs = {
            "optimiser": self.optimiser != "sgd",
            "momentum": self.momentum != 0,
            "weight_decay": self.weight_decay != 0,
            "groups": bool(self.groups),
            "clip": self.clip is not None,
            "schedule_by": self.schedule_by == "step",
        }
        return [f"train.{name}" for name in names if departs[name]]

    def check(self) -> list[Problem]:
        """Settings that do not go with one another."""
        problems = []
        if self.steps is not None and self.epochs is not None:
            cause = "train.epochs says how long a round trains, too"
            problems.append(Problem("train.steps", cause, "leave out one of the two"))
        if self.optimiser == "adamw" and self.momentum:
            cause = "AdamW does not use this kind of momentum"
            cure = "leave it out, and use train.beta1 for AdamW"
            problems.append(Problem("train.momentum", cause, cure))
        if self.schedule_by == "step" and self.schedule == "constant" and not self.warmup:
            cause = "the learning rate is constant, so there is nothing to change at each step"
            cure = 'set train.schedule = "cosine" or "linear", or train.warmup; or leave it out'
            problems.append(Problem("train.schedule_by", cause, cure))
        if self.mixes and self.batch == 1:
            cause = "images are mixed with others of their batch, and a batch has one image"
            problems.append(Problem("train.batch", cause, "raise it to at least 2"))
        return problems

    def check_task(self, task: Task) -> Iterator[Problem]:
        """Settings that `task` cannot be trained with."""
        for one in self.augment:
            if isinstance(one, MixingAugmentation) and not task.blends:
                cause = (
                    f"'{one.registered}' mixes images, and the task '{task.registered}' cannot "
                    "learn from mixed ones"
                )
                cure = "leave it out; the tasks 'classify', 'ordinal' and 'multilabel' can mix"
                yield Problem("train.augment", cause, cure)
            elif one.moves and task.placed:
                cause = f"'{one.registered}' moves the content of an image but not its targets"
                cure = "leave it out; the task may have its own setting for it"
                yield Problem("train.augment", cause, cure)
        if task.compares and self.batch == 1:
            cause = (
                f"the task '{task.registered}' compares images of a batch with one another, and a "
                "batch has one image"
            )
            cure = "raise it so that a batch holds most of a site's images"
            yield Problem("train.batch", cause, cure)
        if self.sampling == "balanced" and not task.classed:
            cause = (
                f"the task '{task.registered}' does not give each image one class, so classes "
                "cannot be seen equally often"
            )
            cure = "leave it out; the tasks 'classify' and 'ordinal' can"
            yield Problem("train.sampling", cause, cure)

    def check_images(self, channels: int) -> list[Problem]:
        """Augmentations that are not defined for images with so many channels."""
        return [
            Problem(
                "train.augment",
                f"'{one.registered}' is defined for images with 1 or 3 channels, and these have "
                f"{channels}",
                "leave it out",
            )
            for one in self.augment
            if one.coloured and channels not in (1, 3)
        ]

    def rate(self, round: int, rounds: int, done: float = 0.0) -> float:
        """The local learning rate in `round` (from 1) of `rounds`, with a share `done` of the round
        behind (0 at its start; see `schedule_by`).

        After each of `restarts` the schedule begins again (Loshchilov and Hutter 2017, section 3).
        """
        round, rounds = self._since_restart(round, rounds)
        if round <= self.warmup:
            return self.lr * (round + done) / (self.warmup + 1)
        past = (round - 1 + done - self.warmup) / max(1, rounds - self.warmup)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * past))
        return self.lr * (1 - past) if self.schedule == "linear" else self.lr

    def mean_rate(self, round: int, rounds: int, steps: int) -> float:
        """The mean of `rate` over the local `steps` of a round, each with those before it behind.

        In closed form, because a site may declare images for 10^12 of them: all schedules but the
        cosine are linear within a round, and a mean of cosines at equal distances is the one in
        their middle, times sin(n x) / (n sin x) for n of them and half their distance, x
        (Lagrange's identity). It differs from the sum over the steps by rounding only.
        """
        if self.schedule_by == "round" or not steps:
            return self.rate(round, rounds)
        middle = self.rate(round, rounds, (steps - 1) / (2 * steps))
        round, rounds = self._since_restart(round, rounds)
        if self.schedule != "cosine" or round <= self.warmup or steps == 1:
            return middle
        turn = math.pi / max(1, rounds - self.warmup) / 2  # half of what the round turns
        flatter = math.sin(turn) / (steps * math.sin(turn / steps))
        return self.lr / 2 + (middle - self.lr / 2) * flatter

    def _since_restart(self, round: int, rounds: int) -> tuple[int, int]:
        """The number of a round since the schedule last began, and of the rounds until it ends."""
        begin = max((last for last in self.restarts if last < round), default=0)
        end = min((last for last in self.restarts if last >= round), default=rounds)
        return round - begin, min(end, rounds) - begin
