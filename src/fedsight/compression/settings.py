"""How vectors are encoded on their way: `[codec.up]` and `[codec.down]` in the config."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_serializer

from fedsight.compression.base import Codec, codecs
from fedsight.compression.pipeline import Pipeline
from fedsight.core import part_lists
from fedsight.core.errors import Problem
from fedsight.core.settings import Settings

MOST_STEPS = 8  # each may write as many bytes again as the values have
_EXAMPLE = 'write steps = ["rotate", {name = "quantise", bits = 4}]'


def _reader(where: str) -> Callable[[Any], Any]:
    return lambda value: part_lists.read(value, Codec, codecs, where, _EXAMPLE)


class _Way(Settings):
    """Codecs in one direction; `steps` is written as in a config."""

    steps: tuple[Codec, ...] = ()

    @field_serializer("steps")
    def _written(self, steps: tuple[Codec, ...]) -> list[Any]:
        return part_lists.written(steps)

    @property
    def pipeline(self) -> Pipeline | None:
        """The codec; None if values are sent unchanged."""
        return Pipeline(self.steps) if self.steps else None


class Up(_Way):
    """From the sites to the coordinator: `[codec.up]`."""

    # what encodes an update, one after the other: names, or tables with settings; none: float32
    steps: Annotated[
        tuple[Codec, ...],
        BeforeValidator(_reader("codec.up.steps")),
        Field(strict=False, max_length=MOST_STEPS),
    ] = ()
    # whether what the encoding left out is added to the site's next update; its memory keeps it
    feedback: bool = False


class Down(_Way):
    """From the coordinator to the sites: `[codec.down]`."""

    # what encodes the difference to the vector that a site has: names, or tables with settings;
    # none: whole vectors, float32
    steps: Annotated[
        tuple[Codec, ...],
        BeforeValidator(_reader("codec.down.steps")),
        Field(strict=False, max_length=MOST_STEPS),
    ] = ()


class Codecs(Settings):
    """How vectors are encoded on their way: `[codec]`."""

    up: Up = Up()
    down: Down = Down()

    @property
    def steps(self) -> tuple[Codec, ...]:
        """All steps, of both directions."""
        return (*self.up.steps, *self.down.steps)

    def check(self) -> list[Problem]:
        """Steps that do not go with one another."""
        problems = []
        for where, way in (("codec.up.steps", self.up), ("codec.down.steps", self.down)):
            for number, step in enumerate(way.steps[:-1]):
                if not step.left(1 << 20):
                    cause = (
                        f"'{step.registered}' leaves no values, so a step after it has nothing to "
                        "encode"
                    )
                    cure = f"put '{step.registered}' last"
                    problems.append(Problem(f"{where}.{number + 1}", cause, cure))
        if self.up.feedback and not self.up.steps:
            cause = "updates are sent unchanged, so nothing is left out"
            cure = "set codec.up.steps, or leave it out"
            problems.append(Problem("codec.up.feedback", cause, cure))
        return [*problems, *self._check_growth()]

    def _check_growth(self) -> Iterator[Problem]:
        """Steps whose errors would add up, where each is corrected by the next."""
        for number, step in enumerate(self.up.steps):
            if self.up.feedback and not step.contracts:
                cause = (
                    f"the error of '{step.registered}' may be larger than the update, so what is "
                    "left out would grow from round to round"
                )
                cure = (
                    "leave out feedback, or set scaled = false (random-k), more bits or a smaller "
                    "block (quantise), or take eden"
                )
                yield Problem(f"codec.up.steps.{number}", cause, cure)
        for number, step in enumerate(self.down.steps):
            if not step.contracts:
                cause = (
                    f"the error of '{step.registered}' may be larger than the difference, so what "
                    "sites have would move away from the model"
                )
                cure = (
                    "set scaled = false (random-k), more bits or a smaller block (quantise), or "
                    "take eden"
                )
                yield Problem(f"codec.down.steps.{number}", cause, cure)
