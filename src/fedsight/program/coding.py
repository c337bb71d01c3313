"""How a program's vectors are encoded, and what `[codec]` goes together with.

Under secure aggregation values are masked, and no shorter form of what is masked exists. But with
the same random bits at all sites (a rotation, a choice of values) a linear codec's sum is the codec
of the sum. So sites round, mask and send what it leaves, and the coordinator decodes the mean
(Konecny et al. 2016, section 3; Suresh et al. 2017, section 3, with the rotation of the round).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fedsight.compression.difference import Difference
from fedsight.compression.pipeline import Pipeline
from fedsight.core.errors import ModelError, Problem
from fedsight.core.layout import Kind
from fedsight.core.rng import derive
from fedsight.core.types import Derived, PartSpec

if TYPE_CHECKING:
    from torch import Tensor

    from fedsight.compression.settings import Codecs
    from fedsight.core.layout import Layout
    from fedsight.program.federation import Federation
    from fedsight.program.program import Program


def difference_of(program: Program, layout: Layout) -> Difference | None:
    """How models are encoded on their way to the sites; None if they are sent whole."""
    pipeline = program.codec.down.pipeline
    if pipeline is None:
        return None
    return Difference(pipeline.fitted(layout), layout.shared.stop, layout.travelling.stop)


def order_bytes(program: Program, layout: Layout) -> int:
    """Bytes of the model of an order to a site that has the last one."""
    difference = difference_of(program, layout)
    return 4 * layout.travelling.stop if difference is None else difference.bytes


def other_bytes(federation: Federation) -> int:
    """Bytes of the algorithm's other vectors in an order, which are sent as they are."""
    program, layout = federation.program, federation.layout
    state = program.init(federation.initial[layout.shared])
    return 4 * sum(value.numel() for value in program.shared(state).values())


def slowest_order(federation: Federation) -> int:
    """Bytes of the order for which a round after the first waits. Where not all sites take part in
    each round, one or the other has skipped the last, and is sent all of the model."""
    program, layout = federation.program, federation.layout
    skipped = program.rounds.cohort is not None
    model = 4 * layout.travelling.stop if skipped else order_bytes(program, layout)
    return model + other_bytes(federation)


def masked(program: Program) -> Pipeline | None:
    """The codec whose sum is rounded and masked; None without one, or without masks."""
    return program.codec.up.pipeline if program.secure.rounds_values else None


def part_specs(
    program: Program, lengths: Mapping[str, int], layout: Layout, derived: Derived | None
) -> dict[str, PartSpec]:
    """The parts of an update of `layout`, whose vectors have these lengths, as they are sent; after
    the update itself comes what is `derived` of it, a value for each that the coordinator moves.

    Raises ModelError if an algorithm moves others than it derives.
    """
    if (linear := masked(program)) is not None:
        return {part: PartSpec((linear.left(length),)) for part, length in lengths.items()}
    pipeline = program.codec.up.pipeline
    codec = None if pipeline is None else pipeline.fitted(layout)
    specs = {part: PartSpec((length,), codec=codec) for part, length in lengths.items()}
    if derived is not None:
        if derived.values != (moved := layout.length(Kind.MOVED)):
            raise ModelError(
                f"the algorithm '{program.algorithm.registered}' moves {moved:,} values of the "
                f"model, and derives {derived.values:,} of an update",
                "have its `moves` and its `derived` name the same tensors",
            )
        shape = (lengths["delta"] + derived.values,)
        specs["delta"] = replace(specs["delta"], shape=shape, derived=derived)
    return specs


def added_specs(program: Program) -> dict[str, PartSpec]:
    """The parts that a mechanism adds: a few values, which are not encoded for a masked sum."""
    codec = None if masked(program) else program.codec.up.pipeline
    return {part: PartSpec((n,), codec=codec) for part, n in program.privacy.parts().items()}


def round_key(program: Program, round: int, part: str) -> int:
    """Of the random bits that all sites share in a round."""
    return derive(program.train_seed, "round", round, "codec.up", part)


def decoded_mean(
    program: Program, parts: Mapping[str, Tensor], lengths: Mapping[str, int], round: int
) -> Mapping[str, Tensor]:
    """The mean of each part, float64 in its length, of what masked sums were made of."""
    linear = masked(program)
    if linear is None:
        return parts
    found = {
        part: linear.expand(parts[part].float(), length, round_key(program, round, part)).double()
        for part, length in lengths.items()
    }
    return {**parts, **found}


def _of_products(codec: Codecs) -> Iterator[Problem]:
    """Codecs whose errors the coordinator would multiply with one another."""
    for number, step in enumerate(codec.up.steps):
        if not step.precise:
            cause = (
                f"the coordinator multiplies values of single updates, and the error of a product "
                f"of what '{step.registered}' rounds may be larger than the product"
            )
            cure = (
                "take float16, quantise with more bits or a smaller block, or eden with at least 3 "
                "bits"
            )
            yield Problem(f"codec.up.steps.{number}", cause, cure)
    if codec.down.steps:
        cause = (
            "sites would train from a decoded model, and the algorithm corrects the mean for the "
            "coordinator's own"
        )
        yield Problem("codec.down.steps", cause, "leave out codec.down.steps")


def problems(program: Program) -> Iterator[Problem]:
    """What can be said without the network."""
    yield from program.codec.check()
    codec, rounds = program.codec, program.rounds
    if codec.up.steps and not program.algorithm.parts:
        cause = "the algorithm sends whole numbers only, which no codec encodes"
        yield Problem("codec.up.steps", cause, "leave out codec.up.steps")
    if program.algorithm.derives:
        yield from _of_products(codec)
    if not codec.down.steps:
        return
    without = "leave out codec.down.steps"
    if not program.algorithm.parts:
        cause = "the algorithm sends no update of a model, and a difference is to one"
        yield Problem("codec.down.steps", cause, without)
    if rounds.buffered:
        cause = "sites of buffered rounds skip models, and a difference is to the last one"
        cure = "set rounds.mode = 'synchronous', or leave out codec.down.steps"
        yield Problem("codec.down.steps", cause, cure)
    if rounds.ema is not None:
        cause = (
            "the average would have to be sent whole, and what is measured is the model that sites "
            "have"
        )
        yield Problem("rounds.ema", cause, "leave it out, or codec.down.steps")
