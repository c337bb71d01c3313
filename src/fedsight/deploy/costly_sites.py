"""Sites whose declared number of images is more, or fewer, than a program's sums and epsilon allow.

A site declares any number it likes. Without this, a single number that the privacy mechanism or the
64-bit sum has no room for would end the run for all sites, in nobody's name.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    sizes = {one.train for one in held.values()}
    if (images := _unaffordable(federation, sizes)) is not None:
        return {
            name: DeployError(
                f"site '{name}' declares {images:,} training images, with which not one round "
                "stays within privacy.epsilon",
                "raise it or privacy.noise_multiplier, or leave the site out if its number is "
                "false",
            )
            for name in _with(images, held)
        }
    if (part := _overflowing(federation, max(sizes))) is not None:
        images = max(sizes)
        return {
            name: DeployError(
                f"site '{name}' declares {images:,} training images, with which the sum of "
                f"'{part}' may leave 64 bits",
                "let the algorithm use fewer bits per value, or leave the site out if its number "
                "is false",
            )
            for name in _with(images, held)
        }
    return {}


def _with(images: int, held: Mapping[str, Declaration]) -> list[str]:
    """The sites with so many training images."""
    return [name for name, one in sorted(held.items()) if one.train == images]


def _unaffordable(federation: Federation, sizes: set[int]) -> int | None:
    """The number of images that leaves no round within epsilon, if one does."""
    mechanism = federation.program.privacy
    if not isinstance(mechanism, Example) or federation.plan.units:
        return None
    plan = replace(federation.accounted, sizes=tuple(sorted(sizes)))
    return None if mechanism.rounds(plan) else worst(mechanism, plan).sizes[0]


def _overflowing(federation: Federation, largest: int) -> str | None:
    """The integer part whose sum may leave 64 bits with so many images at a site, if one may."""
    for part, spec in federation.integers_of(largest).items():
        bound = spec.bound if isinstance(spec, PartSpec) else None
        if bound is not None and bound * federation.terms > LIMIT:
            return part
    return None


def _counted(program: Program, held: Mapping[str, Declaration]) -> Federation:
    """A federation of as many sites, with one image each: numbers of images are given later."""
    one = next(iter(held.values()))
    train = Part(RemoteImages(len(held)), np.zeros(len(held), np.int64))
    dataset = Dataset(train, train, one.classes, one.preprocess)
    partition = Groups([np.array([number]) for number in range(len(held))], sorted(held))
    return Federation(program, dataset, partition, ())
