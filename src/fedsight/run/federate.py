"""From a program to a federation: open the images, divide them, decide what is tested."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fedsight.core.errors import ConfigError
from fedsight.data.base import Dataset
from fedsight.data.partition import Partition
from fedsight.engine.base import Federation, View
from fedsight.run.program import Program

LISTED = 200  # sites that get figures of their own; a larger population is shown by its first


def federate(program: Program) -> Federation:
    """Open the program's data and divide them.

    Raises DataError for unusable images or an impossible split, and ConfigError for what the
    program asks of a population or a model that they do not have.
    """
    dataset = program.data.open()
    if problems := program.task.check(dataset):
        raise ConfigError(problems)
    partition = program.split.divide(dataset.train, len(dataset.classes), program.seed)
    if problems := program.rounds.check(len(partition)):
        raise ConfigError(problems)
    federation = Federation(program, dataset, partition, ())
    network = federation.network()
    if problems := program.check_network(network):
        raise ConfigError(problems)
    differ = program.differs(network) or program.shift.kind != "none"
    federation = replace(federation, views=tuple(_views(dataset, partition, differ)))
    tested = {
        "" if view.site is None else partition.name(view.site): dataset.test.labels[view.indices]
        for view in federation.views
    }
    if problems := program.task.check_tested(tested):
        raise ConfigError(problems)
    return federation


def listed(partition: Partition) -> range:
    """The sites that get figures of their own."""
    return range(min(len(partition), LISTED))


def _views(dataset: Dataset, partition: Partition, differ: bool) -> Iterator[View]:
    """What is tested; `differ`: sites have models of their own or see the world differently."""
    everything = np.arange(len(dataset.test))
    if dataset.test.sites is not None:
        # The source says whose test image is whose; what belongs to no listed site is tested too.
        origins = np.asarray(dataset.test.sites)
        left = np.ones(len(everything), dtype=bool)
        for site in listed(partition):
            mine = origins == partition.name(site)
            if mine.any():
                left &= ~mine
                yield View(site, everything[mine])
        if left.any():
            yield View(None, everything[left])
        return
    if differ:
        for site in listed(partition):
            yield View(site, everything)
        return
    yield View(None, everything)
