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

    Sites of the roster have their place, and keep it: where one of them leaves no room for more,
    those in `found` that declare the most are too many. None if it is not single sites: the program
    is then wrong for all of them.
    """
    held, errors = {**found, **roster}, dict[str, DeployError]()
    while held and (culprits := _culprits(program, held)):
        if culprits.keys() & roster.keys():
            culprits = _crowding(program, held, roster)
        if not culprits or len(culprits) == len(held):
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
    images = max(sizes)
    if (part := _overflowing(federation, images)) is not None:
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


def _crowding(
    program: Program, held: Mapping[str, Declaration], roster: Mapping[str, Declaration]
) -> dict[str, DeployError]:
    """The sites in `held` for which the sums have no room beside the roster's largest; and why."""
    largest = max(sorted(roster), key=lambda name: roster[name].train)
    images = roster[largest].train
    federation = _counted(program, held)
    if (part := _overflowing(federation, images)) is None:
        return {}
    excess = max(1, len(held) - min(_rooms(federation, images).values()))
    new = sorted(held.keys() - roster.keys(), key=lambda name: (-held[name].train, name))
    return {
        name: DeployError(
            f"for site '{name}' there is no room in this run: site '{largest}', which joined it "
            f"before, declares {images:,} training images, and with another site the sum of "
            f"'{part}' may leave 64 bits",
            "let the algorithm use fewer bits per value, or, if that number is false, revoke site "
            f"'{largest}'; then start the run again",
        )
        for name in new[:excess]
    }


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
    rooms = _rooms(federation, largest)
    return next((part for part, most in rooms.items() if most < federation.terms), None)


def _rooms(federation: Federation, largest: int) -> dict[str, int]:
    """How many sites the sum of each integer part has room for with so many images at one."""
    return {
        part: LIMIT // spec.bound
        for part, spec in federation.integers_of(largest).items()
        if isinstance(spec, PartSpec) and spec.bound
    }


def _counted(program: Program, held: Mapping[str, Declaration]) -> Federation:
    """A federation of as many sites, with one image each: numbers of images are given later."""
    one = next(iter(held.values()))
    train = Part(RemoteImages(len(held)), np.zeros(len(held), np.int64))
    dataset = Dataset(train, train, one.classes, one.preprocess)
    partition = Groups([np.array([number]) for number in range(len(held))], sorted(held))
    return Federation(program, dataset, partition, ())
