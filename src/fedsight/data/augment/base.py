"""What an augmentation is: a random change to training images, drawn from a seeded generator.

The draws come from the generator that is passed in, never from PyTorch's own, and are made on the
CPU. So they are the same with every engine, number of workers and device, and at a site that
protects its images nobody else can repeat them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from fedsight.core import part_lists
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings

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
    x: Tensor,
    chosen: Sequence[Augmentation],
    generator: Generator,
    look: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Mixture | None]:
    """Apply augmentations in order to pixels [b, c, h, w] in [0, 1]; None: nothing was mixed.

    `look` harmonises pixels, after which they are not in [0, 1]: it comes after the changes of each
    image, which keep pixels in [0, 1], and before images of different sites are mixed.
    """
    mixing = [one for one in chosen if isinstance(one, MixingAugmentation)]
    for one in chosen:
        if not isinstance(one, MixingAugmentation):
            x = one.apply(x, generator)
    if look is not None:
        x = look(x)
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
    return part_lists.read(value, Augmentation, augmentations, "train.augment", _EXAMPLE)


def uniform(count: int, low: float, high: float, generator: Generator) -> list[float]:
    """`count` numbers between `low` and `high`."""
    return (low + (high - low) * torch.rand(count, generator=generator).double()).tolist()
