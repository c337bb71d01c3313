"""What sites that do not label all classes go together with, and which classes those are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedsight.core.errors import DataError, Problem
from fedsight.data.base import Dataset
from fedsight.data.labelled import check_labelled, unlabelled
from fedsight.data.partition import Partition

if TYPE_CHECKING:
    from fedsight.program.program import Program

_WHERE = "data.labelled"


def problems(program: Program) -> Iterator[Problem]:
    """What can be said without the images."""
    if program.data.labelled is not None:
        yield from _unsuited(program)


def _unsuited(program: Program) -> Iterator[Problem]:
    """Losses and sums that cannot leave a class out."""
    cure = "leave out the images of sites that do not label all classes, and data.labelled"
    if not program.task.masks:
        cause = (
            f"the loss of the task '{program.task.registered}' cannot leave out the classes that a "
            "site does not label"
        )
        yield Problem(_WHERE, cause, f"choose classify, multilabel, segment or detect, or {cure}")
    for algorithm in (program.algorithm, program.start, program.finish):
        if algorithm is not None and algorithm.counts and algorithm.contrasts:
            cause = (
                f"in the sums of {algorithm.registered} an image counts against all classes but "
                "its own, also those that its site does not label"
            )
            yield Problem(_WHERE, cause, f"choose another algorithm, or {cure}")
    if program.algorithm.on_public:
        cause = (
            f"in the mean scores of {program.algorithm.registered} a site counts for all classes, "
            "also those that it does not label"
        )
        yield Problem(_WHERE, cause, f"choose another algorithm, or {cure}")


def opened_problems(program: Program, dataset: Dataset, partition: Partition) -> list[Problem]:
    """What is wrong with the classes that sites label, once the images are opened."""
    return [
        *declared_problems(program, dataset, partition),
        *_contradicted(program, dataset, partition),
    ]


def site_problems(program: Program, dataset: Dataset, partition: Partition) -> list[Problem]:
    """The same for the images of one site of several: what others label is not known."""
    return [
        *stated_problems(program, dataset, partition),
        *_contradicted(program, dataset, partition),
    ]


def declared_problems(program: Program, dataset: Dataset, partition: Partition) -> list[Problem]:
    """The same without looking at labels: those of other machines may not be told."""
    found, table = stated_problems(program, dataset, partition), hidden(dataset, partition)
    if found or table is None:
        return found
    for label in torch.nonzero(table[:-1].all(0)).flatten().tolist():
        cause = f"no site labels the class '{dataset.classes[label]}'"
        cure = "take it out of data.classes, or name the sites that label it"
        found.append(Problem(_WHERE, cause, cure))
    return found


def stated_problems(program: Program, dataset: Dataset, partition: Partition) -> list[Problem]:
    """Names of sites or classes that there are not, and sites that label nothing.

    None of these depends on what other sites label.
    """
    if dataset.labelled is None:
        return []
    if found := list(_unsuited(program)):
        return found
    names = [partition.name(site) for site in range(len(partition))]
    try:
        check_labelled(dataset.labelled, names, dataset.classes)
    except DataError as error:
        return [Problem(_WHERE, error.cause, error.cure)]
    table = hidden(dataset, partition)
    if table is None:
        return []
    if program.task.takes == "masks" and bool(table[:, 0].any()):
        cause = f"'{dataset.classes[0]}' is the background, and what is not labelled counts as it"
        cure = "name it among the labelled classes of every site"
        return [Problem(_WHERE, cause, cure)]
    for site in torch.nonzero(table[:-1].all(1)).flatten().tolist():
        cause = f"site '{partition.name(site)}' labels none of the classes"
        cure = "name those that it labels, or leave the site out"
        found.append(Problem(_WHERE, cause, cure))
    return found


def _contradicted(program: Program, dataset: Dataset, partition: Partition) -> Iterator[Problem]:
    """Images of a class that their site says it does not label, where an image has one class."""
    table = hidden(dataset, partition)
    if table is None or not program.task.classed:
        return
    owners = np.asarray(dataset.test.sites or [], dtype=str)
    for site in torch.nonzero(table[:-1].any(1)).flatten().tolist():
        name = partition.name(site)
        own = dataset.test.labels[owners == name] if len(owners) else dataset.test.labels[:0]
        labels = np.concatenate([dataset.train.labels[partition.indices(site)], own])
        counts = np.bincount(labels, minlength=len(dataset.classes))
        for label in np.flatnonzero((counts > 0) & table[site].numpy()).tolist():
            cause = (
                f"site '{name}' does not label '{dataset.classes[label]}', and {counts[label]} of "
                "its images have this label"
            )
            cure = "add the class to those that the site labels, or correct the labels"
            yield Problem(_WHERE, cause, cure)


def hidden(dataset: Dataset, partition: Partition) -> Tensor | None:
    """Which classes each site does not label [sites + 1, classes], the last row is of no site.

    None if every site labels all.
    """
    if dataset.labelled is None:
        return None
    table = torch.zeros(len(partition) + 1, len(dataset.classes), dtype=torch.bool)
    for site in range(len(partition)):
        table[site, unlabelled(dataset.labelled, partition.name(site), dataset.classes)] = True
    return table if bool(table.any()) else None


def names_hidden(dataset: Dataset, partition: Partition, site: int) -> list[str]:
    """The names of the classes that a site does not label."""
    chosen = unlabelled(dataset.labelled, partition.name(site), dataset.classes)
    return [dataset.classes[label] for label in chosen]
