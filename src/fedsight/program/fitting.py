"""Whether the networks of groups, and an algorithm's sums, fit the opened data and its sites."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedsight.core.errors import ConfigError, FedSightError, Problem
from fedsight.core.settings import Settings
from fedsight.core.sums import LIMIT
from fedsight.core.types import PartSpec
from fedsight.data.base import Dataset
from fedsight.data.partition import Partition
from fedsight.models.group import group_of
from fedsight.program import isolation, lone_image, networks
from fedsight.program.fingerprints import is_own, own_place

if TYPE_CHECKING:
    from fedsight.program.federation import Federation
    from fedsight.program.program import Program


def group_problems(federation: Federation, complete: bool = True) -> list[Problem]:
    """What is wrong with the networks of groups of sites, and with the sites that they name.

    `complete`: all sites are here, so that a name of none of them is a mistake. Otherwise it may be
    that of a site which has not come.
    """
    program, data, partition = federation.program, federation.dataset, federation.partition
    groups = program.model.groups
    if not groups:
        return []
    names = [partition.name(site) for site in range(len(partition))]
    if found := list(networks.site_problems(groups, names, complete)):
        return found
    for site, name in enumerate(names):
        number, member = group_of(groups, name), federation.member(site)
        if number is None or "_sound" in member.__dict__:
            continue
        network = member.network
        found += program.check_network(network)
        found += isolation.problems(program, data, network)
        equal = program.algorithm.equips
        found += networks.layout_problems(federation.layout, member.layout, number, equal)
        member.__dict__["_sound"] = True
    return found


def lone_problems(federation: Federation) -> list[Problem]:
    """The problem of each network with a single image at one of the sites that train it."""
    program, partition = federation.program, federation.partition
    groups, size = program.model.groups, federation.dataset.preprocess
    trained: dict[int | None, Sequence[int]] = {None: range(len(partition))}
    if groups:
        numbers = [group_of(groups, partition.name(site)) for site in range(len(partition))]
        trained = {
            number: [site for site, own in enumerate(numbers) if own == number]
            for number in dict.fromkeys(numbers)
        }
    found: list[Problem] = []
    for sites in trained.values():
        network = federation.member(sites[0]).network
        found += lone_image.problems(program, size, network, partition, sites)
    return found


def trainable(program: Program, dataset: Dataset, partition: Partition) -> Dataset:
    """The data set with what the task has to say of whose images each site trains on.

    Raises ConfigError where the task cannot learn from these. Sites that do not tell the classes of
    their images are not judged, and then no other is refused for them.
    """
    trained = _Trained(dataset, partition)
    if trained.complete and (problems := program.task.check_trained(trained)):
        raise ConfigError(problems)
    return replace(dataset, notes=(*dataset.notes, *program.task.notes(trained)))


class _Trained(Mapping[str, npt.NDArray[np.int64]]):
    """The class numbers [n] of the images that each site trains on, by site, of those that tell.

    They are looked up when a task asks: few do, and there may be a million sites.
    """

    def __init__(self, dataset: Dataset, partition: Partition) -> None:
        self._labels, self._untold = dataset.train.labels, frozenset(dataset.untold)
        self._partition = partition

    @cached_property
    def _sites(self) -> dict[str, int]:
        """The number of each site."""
        names = (self._partition.name(site) for site in range(len(self._partition)))
        return {name: site for site, name in enumerate(names) if name not in self._untold}

    @property
    def complete(self) -> bool:
        """Whether all sites tell."""
        return not self._untold or len(self) == len(self._partition)

    def __getitem__(self, name: str) -> npt.NDArray[np.int64]:
        return self._labels[self._partition.indices(self._sites[name])]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def integer_problems(federation: Federation) -> list[Problem]:
    """What is wrong with the integer parts that the program's algorithm declares."""
    if found := federation.program.privacy.problems(federation.plan):
        return found
    specs, terms = federation.integers, federation.terms
    for part, spec in specs.items():
        if not isinstance(spec, PartSpec) or not spec.exact:
            cause = f"the integer part '{part}' is not described by a PartSpec of torch.int64"
            return [Problem("algorithm", cause, "correct what `integer_parts` returns")]
        if part in federation.program.parts:
            cause = f"two parts of a reply are called '{part}'"
            found.append(Problem("algorithm", cause, "rename the integer part"))
        if spec.bound is not None and spec.bound * terms > LIMIT:
            cause = (
                f"the sum of '{part}' over {terms} sites, each up to {spec.bound:,}, may leave 64 "
                "bits"
            )
            cure = "let the algorithm use fewer bits per value, or let fewer sites take part"
            found.append(Problem("algorithm", cause, cure))
    return found


@contextlib.contextmanager
def blamed(part: Settings, kind: type[FedSightError]) -> Iterator[None]:
    """An error in the code of a part that is the user's own says so, as one of `kind`."""
    try:
        yield
    except FedSightError:
        raise
    except Exception as error:
        if not is_own(type(part)):
            raise
        place = own_place(error)
        raise kind(
            f"{type(part).__name__} fails: {type(error).__name__}: {error}"
            + (f" ({place})" if place else ""),
            "correct its code",
        ) from error
