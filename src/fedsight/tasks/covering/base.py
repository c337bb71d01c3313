"""What a task gives so that its answers can be made large enough to cover the truth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from fedsight.core.errors import DataError
from fedsight.core.types import Batch
from fedsight.tasks.covering.levels import STEPS, Tally
from fedsight.tasks.presentation import Answer

if TYPE_CHECKING:
    from fedsight.tasks.base import Task


@dataclass(frozen=True)
class Covered:
    """An answer that is as large as was asked for, and the labels that it holds, the surest
    first."""

    answer: Answer
    classes: tuple[str, ...]


class Covering(ABC):
    """How much of the truth a task's answers lose, level by level, and what they are at a level.

    A task names one as its `covering`. Where losses never fall as levels rise, and units are
    exchangeable, nothing else is needed for a guarantee (`evaluation/trust/risk.py`).
    """

    kind: ClassVar[str]  # by which the report tells what is covered
    guarantees: ClassVar[tuple[str, ...]] = ("mixture", "site", "class")
    # what is made large enough one after the other, each from other held-out images
    parts: ClassVar[tuple[str, ...]] = ("answer",)
    # whether a unit has one class, so that what a site's mix loses follows from what classes lose
    mixes: ClassVar[bool] = False
    classless: ClassVar[bool] = False  # whether sites' mixes of classes make no difference
    least_class: ClassVar[int] = 0  # the first class that an answer can have
    unnoised: ClassVar[str] = ""  # why noise on the losses is not enough, or too much
    # which test images of a site count
    tested: ClassVar[str] = "test images like the site's own"
    abstains: ClassVar[bool] = False  # whether a set of one label is an answer without doubt

    def groups(self, part: str, classes: int) -> int:
        """How many groups of units are told apart: all, and those of each class."""
        return 1 + classes

    def by_class(self, classes: int) -> bool:
        """Whether there are groups of each class."""
        return any(self.groups(part, classes) > classes for part in self.parts)

    def site_groups(self, part: str) -> int:
        """How many of them are told apart at a single site."""
        return 1

    def steps(self, part: str) -> int:
        """How many levels there are."""
        return STEPS

    def largest(self, classes: int) -> int:
        """How large an answer can be, in what `Tally.sizes` counts."""
        return 1

    def rounded(self, part: str, level: int) -> int:
        """A level that is used, at most this one."""
        return level

    def group(self, part: str, levels: Mapping[str, Tensor]) -> int:
        """The group whose losses choose this part's level, given those of earlier parts."""
        return 0

    def few(self, units: int, coverage: float, least: int) -> DataError:
        """So many held-out units are too few for this coverage, and `least` are enough."""
        return DataError(
            f"{units} held-out inputs are too few for sets with a coverage of {coverage:g}",
            f"hold out at least {least}, with rounds.validation, or ask for a lower coverage",
        )

    def more(self, least: int) -> str:
        """What a site should do whose own model has too few test images: so many are enough."""
        return f"have at least {least} {self.tested}, or ask for a lower coverage"

    def also(self, task: Task) -> Mapping[str, float]:
        """Further coverages that the summary tells, by what the task calls them."""
        return {}

    def told(self, levels: Mapping[str, Tensor]) -> dict[str, float]:
        """What the summary says of the levels [classes], where all classes share them."""
        return {}

    @abstractmethod
    def counted(self, part: str, task: Task, model: nn.Module, batch: Batch) -> Tally:
        """The losses of a batch's units, of one part."""

    def shown(self, part: str, task: Task, model: nn.Module, batch: Batch) -> Tally:
        """The losses of units that only show what came of a level."""
        return self.counted(part, task, model, batch)

    @abstractmethod
    def answers(
        self, task: Task, model: nn.Module, x: Tensor, classes: tuple[str, ...],
        levels: Mapping[str, Tensor],
    ) -> list[Covered]:  # fmt: skip
        """The answers for normalised images [b, c, h, w] at the `levels` [classes] of each part."""
