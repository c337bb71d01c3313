"""What an augmentation is: a random change to training images, drawn from a seeded generator.

The draws come from the generator that is passed in, never from PyTorch's own, and are made on the
CPU. So they are the same with every engine, number of workers and device, and at a site that
protects its images nobody else can repeat them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import ValidationError
from torch import Generator, Tensor

from fedsight.core.errors import ConfigError, Problem
from fedsight.core.registry import Registry, nearest
from fedsight.core.settings import Settings, problems_of

_EXAMPLE = 'write augment = ["flip", {name = "mixup", alpha = 0.2}]'


class Augmentation(Settings):
    """A random change to images. A new one takes one file in `data/augment/`."""

    moves: ClassVar[bool] = False  # moves the content of an image
    coloured: ClassVar[bool] = False  # is defined for 1 or 3 channels only

    @abstractmethod
    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        """Change pixels [b, c, h, w] in [0, 1], each image independently of the others.

        They keep their shape and range, and are not changed in place.
        """


@dataclass(frozen=True)
class Mixture:
    """How the images of a batch were mixed: each has the weight `own`, the one before it the rest.

    Batches are shuffled, so the one before is as good as any.
    """

    own: float

    def of(self, targets: Tensor) -> Tensor:
        """Targets [b, ...] that can be averaged, mixed like the images."""
        return self.own * targets + (1 - self.own) * targets.roll(1, 0)


class MixingAugmentation(Augmentation):
    """Mixes each image of a batch with another one, and their targets in the same proportion.

    It is applied after all others. If several are listed, one is drawn for each batch.
    """

    @abstractmethod
    def mix(self, x: Tensor, generator: Generator) -> tuple[Tensor, Mixture]:
        """Mixed pixels [b, c, h, w], and how they were mixed."""

    def apply(self, x: Tensor, generator: Generator) -> Tensor:
        """Mixed pixels, without the targets."""
        return self.mix(x, generator)[0]


augmentations: Registry[Augmentation] = Registry("augmentation", "fedsight.data.augment")


def augment(
    x: Tensor, chosen: Sequence[Augmentation], generator: Generator
) -> tuple[Tensor, Mixture | None]:
    """Apply augmentations in order to pixels [b, c, h, w] in [0, 1]; None: nothing was mixed."""
    mixing = [one for one in chosen if isinstance(one, MixingAugmentation)]
    for one in chosen:
        if not isinstance(one, MixingAugmentation):
            x = one.apply(x, generator)
    if not mixing or len(x) < 2:
        return x, None
    drawn = 0
    if len(mixing) > 1:
        drawn = int(torch.randint(len(mixing), (1,), generator=generator))
    return mixing[drawn].mix(x, generator)


def read(value: Any) -> Any:
    """The augmentations in a config's list of names and tables; other values are left as they are.

    Raises ConfigError for an unknown name, or settings that an augmentation does not have.
    """
    if not isinstance(value, list | tuple):
        return value
    problems: list[Problem] = []
    found: list[Augmentation] = []
    for number, item in enumerate(value):
        try:
            found.append(_read(item, f"train.augment.{number}"))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return tuple(found)


def _read(item: Any, where: str) -> Augmentation:
    if isinstance(item, Augmentation):
        return item
    table = {"name": item} if isinstance(item, str) else item
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        cause = f"{item!r:.80} is neither the name of an augmentation nor a table with its name"
        raise ConfigError([Problem(where, cause, _EXAMPLE)])
    values = {key: value for key, value in table.items() if key != "name"}
    try:
        kind = augmentations.get(table["name"])
        return kind.model_validate(values)
    except ConfigError as error:
        raise ConfigError([Problem(where, one.cause, one.cure) for one in error.problems]) from None
    except ValidationError as error:
        problems = [
            Problem(
                f"{where}.{key}",
                "there is no such setting",
                nearest(str(key), kind.model_fields) if kind.model_fields else "leave it out",
            )
            for key in values
            if key not in kind.model_fields
        ]
        if not problems:
            problems = problems_of(where, kind, error)
        raise ConfigError(problems) from None


def written(chosen: Sequence[Augmentation]) -> list[Any]:
    """The list for a config: names, and tables for those that have settings."""
    tables = (one.table() for one in chosen)
    return [table if len(table) > 1 else table["name"] for table in tables]


def uniform(count: int, low: float, high: float, generator: Generator) -> list[float]:
    """`count` numbers between `low` and `high`."""
    return (low + (high - low) * torch.rand(count, generator=generator).double()).tolist()
