"""Sites whose declared number of images is more, or fewer, than a program's sums and epsilon allow.

A site declares any number it likes. Without this, a single number that the privacy mechanism or the
64-bit sum has no room for would end the run for all sites, in nobody's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from fedsight.core.errors import DeployError
from fedsight.core.sums import LIMIT
from fedsight.core.types import PartSpec
from fedsight.data.base import Dataset, Part
from fedsight.data.partition import Groups
from fedsight.deploy.declaration import Declaration
from fedsight.deploy.remote_images import RemoteImages
from fedsight.privacy.mechanisms.example import Example, worst
from fedsight.program.federation import Federation
from fedsight.program.program import Program

_LEAVE_OUT = "or leave the site out, if it declares a false number"


def costly_sites(
    program: Program, found: Mapping[str, Declaration], roster: Mapping[str, Declaration]
) -> dict[str, DeployError]:
    """The sites in `found` whose numbers of images leave the sites of the roster, and all others,
    without a round within epsilon or with sums beyond 64 bits; and why.

    None if it is not single sites: the program is then wrong for all of them.
    """
    held, errors = {**found, **roster}, dict[str, DeployError]()
    while held and (culprits := _culprits(program, held)):
        if culprits.keys() & roster.keys() or len(culprits) == len(held):
            return {}
        errors |= culprits
        held = {name: one for name, one in held.items() if name not in culprits}
    return errors


def _culprits(program: Program, held: Mapping[str, Declaration]) -> dict[str, DeployError]:
    """The sites with the number of images that breaks the budget or a bound; none if none does."""
    federation = _counted(program, held)
    if program.algorithm.counts and program.check_network(federation.network):
        return {}  # the program is wrong, whatever the sites declare
    for images, cause, cure in _problems(federation, {one.train for one in held.values()}):
        return {
            name: DeployError(f"site '{name}' declares {images:,} training images: {cause}", cure)
            for name, one in sorted(held.items())
            if one.train == images
        }
    return {}


def _problems(federation: Federation, sizes: set[int]) -> Iterator[tuple[int, str, str]]:
    """Numbers of images that break something, with cause and cure."""
    mechanism = federation.program.privacy
    if isinstance(mechanism, Example) and not federation.plan.units:
        plan = replace(federation.accounted, sizes=tuple(sorted(sizes)))
        if not mechanism.rounds(plan):
            cause = f"not one round stays within epsilon {mechanism.epsilon:g} there"
            cure = f"raise it or privacy.noise_multiplier, {_LEAVE_OUT}"
            yield worst(mechanism, plan).sizes[0], cause, cure
    largest, terms = max(sizes), federation.terms
    for part, spec in federation.integers_of(largest).items():
        bound = spec.bound if isinstance(spec, PartSpec) else None
        if bound is not None and bound * terms > LIMIT:
            cause = f"the sum of '{part}' over {terms} sites may leave 64 bits"
            cure = f"let the algorithm use fewer bits per value, {_LEAVE_OUT}"
            yield largest, cause, cure


def _counted(program: Program, held: Mapping[str, Declaration]) -> Federation:
    """A federation of as many sites, with one image each: numbers of images are given later."""
    one = next(iter(held.values()))
    train = Part(RemoteImages(len(held)), np.zeros(len(held), np.int64))
    dataset = Dataset(train, train, one.classes, one.preprocess)
    partition = Groups([np.array([number]) for number in range(len(held))], sorted(held))
    return Federation(program, dataset, partition, ())
