"""How vectors are encoded on their way: `[codec.up]` in the config."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_serializer

from fedsight.compression.base import Codec, codecs
from fedsight.compression.pipeline import Pipeline
from fedsight.core import part_lists
from fedsight.core.errors import Problem
from fedsight.core.settings import Settings

_EXAMPLE = 'write steps = ["rotate", {name = "quantise", bits = 4}]'


def _read(value: Any) -> Any:
    return part_lists.read(value, Codec, codecs, "codec.up.steps", _EXAMPLE)


class Up(Settings):
    """From the sites to the coordinator: `[codec.up]`."""

    # what encodes an update, one after the other: names, or tables with settings; none: float32
    steps: Annotated[tuple[Codec, ...], BeforeValidator(_read), Field(strict=False)] = ()
    # whether what the encoding left out is added to the site's next update; its memory keeps it
    feedback: bool = False

    @field_serializer("steps")
    def _written(self, steps: tuple[Codec, ...]) -> list[Any]:
        return part_lists.written(steps)

    @property
    def pipeline(self) -> Pipeline | None:
        """The codec; None if values are sent unchanged."""
        return Pipeline(self.steps) if self.steps else None


class Codecs(Settings):
    """How vectors are encoded on their way: `[codec]`."""

    up: Up = Up()

    def check(self) -> list[Problem]:
        """Steps that do not go with one another."""
        problems = []
        for number, step in enumerate(self.up.steps[:-1]):
            if not step.left(1 << 20):
                problems.append(
                    Problem(
                        f"codec.up.steps.{number + 1}",
                        f"'{step.registered}' leaves no values, so a step after it has nothing to "
                        "encode",
                        f"put '{step.registered}' last",
                    )
                )
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
                problems.append(Problem(f"codec.up.steps.{number}", cause, cure))
        if self.up.feedback and not self.up.steps:
            cause = "updates are sent unchanged, so nothing is left out"
            cure = "set codec.up.steps, or leave it out"
            problems.append(Problem("codec.up.feedback", cause, cure))
        return problems
