"""How vectors are encoded on their way: `[codec.up]` and `[codec.down]` in the config."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, field_serializer, model_validator

from fedsight.compression.base import Codec, Packer, codecs
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


class Line(Settings):
    """How fast a site's line is, in bits a second."""

    uplink: float = Field(gt=0)  # from the site
    downlink: float = Field(gt=0)  # to the site


class Codecs(Settings):
    """How vectors are encoded on their way: `[codec]`."""

    # auto: the most faithful steps with which a site's order and reply take at most `seconds` on
    # the slowest line, or the fastest; None: those of [codec.up] and [codec.down]
    name: Literal["auto"] | None = None
    seconds: float = Field(10.0, gt=0)  # of the transfers of a round, with auto
    # bits a second from the slowest site, for auto; None: measured in a federation, and in a
    # simulation 8 * timing.bytes_per_second
    uplink: float | None = Field(None, gt=0)
    downlink: float | None = Field(None, gt=0)  # likewise, bits a second to the slowest site
    up: Up = Up()
    down: Down = Down()
    _measured: Line | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _chooses_or_names(self) -> Self:
        if self.auto and self.steps:
            raise ValueError("name = 'auto' chooses the steps: leave out up and down")
        return self

    @property
    def auto(self) -> bool:
        """Whether the steps are chosen by the line. They are not part of what is written then."""
        return self.name == "auto"

    @property
    def line(self) -> Line | None:
        """The slowest site's, as stated, or as measured; None if neither is known."""
        if self.uplink is None or self.downlink is None:
            return self._measured
        return Line(uplink=self.uplink, downlink=self.downlink)

    def measured(self, line: Line) -> Self:
        """The same for a measured line, which is no part of what is written."""
        found = self.model_copy()
        found._measured = line
        return found

    def table(self) -> dict[str, Any]:
        """The settings as plain values, without steps that were chosen."""
        found = super().table()
        return {k: v for k, v in found.items() if k not in ("up", "down")} if self.auto else found

    def steps_table(self) -> dict[str, Any]:
        """The steps of both directions as plain values, also if they were chosen."""
        return {"up": self.up.table(), "down": self.down.table()}

    @property
    def steps(self) -> tuple[Codec, ...]:
        """All steps, of both directions."""
        return (*self.up.steps, *self.down.steps)

    def check(self) -> list[Problem]:
        """Steps that do not go with one another."""
        problems = []
        for where, way in (("codec.up.steps", self.up), ("codec.down.steps", self.down)):
            for number, step in enumerate(way.steps[:-1]):
                if isinstance(step, Packer):
                    cause = f"'{step.registered}' shortens what all other steps have made"
                    cure = f"put '{step.registered}' last"
                    problems.append(Problem(f"{where}.{number}", cause, cure))
                elif not step.left(1 << 20) and not isinstance(way.steps[number + 1], Packer):
                    cause = (
                        f"'{step.registered}' leaves no values, so a step after it has nothing to "
                        "encode"
                    )
                    cure = f"put '{step.registered}' last"
                    problems.append(Problem(f"{where}.{number + 1}", cause, cure))
            for number, step in enumerate(way.steps[1:], start=1):
                if step.shaped:
                    cause = (
                        f"'{step.registered}' encodes the tensors of a layer, and after another "
                        "step there are none"
                    )
                    cure = f"put '{step.registered}' first"
                    problems.append(Problem(f"{where}.{number}", cause, cure))
        if self.up.feedback and not self.up.steps:
            cause = "updates are sent unchanged, so nothing is left out"
            cure = "set codec.up.steps, or leave it out"
            problems.append(Problem("codec.up.feedback", cause, cure))
        default = type(self)()
        for key in ("seconds", "uplink", "downlink"):
            if not self.auto and getattr(self, key) != getattr(default, key):
                cause = "no steps are chosen by the line, so this would be without effect"
                problems.append(Problem(f"codec.{key}", cause, "set codec.name = 'auto'"))
        if (self.uplink is None) != (self.downlink is None):
            where = "codec.uplink" if self.uplink is None else "codec.downlink"
            cause = "the line is known in one direction only"
            problems.append(Problem(where, cause, "set both, or leave out both"))
        return [*problems, *self._check_growth(), *self._check_products()]

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

    def _check_products(self) -> Iterator[Problem]:
        """Steps that round factors so roughly that the error of a product may be larger than it,
        where each error is corrected by the next."""
        corrected = [("codec.down.steps", self.down.steps)]
        if self.up.feedback:
            corrected.append(("codec.up.steps", self.up.steps))
        for where, steps in corrected:
            if not steps or not steps[0].shaped:
                continue
            for number, step in enumerate(steps[1:], start=1):
                if not step.precise:
                    cause = (
                        f"'{steps[0].registered}' multiplies what '{step.registered}' rounds, so "
                        "what is left out may be more than what is sent, and grow"
                    )
                    cure = (
                        "take float16, quantise with more bits or a smaller block, or eden with at "
                        "least 3 bits"
                    )
                    yield Problem(f"{where}.{number}", cause, cure)
