"""Federations whose sites have different networks: what `[[model.groups]]` goes together with.

A group's network is a part of the one that `[model]` describes, which is the one that travels: of
each tensor it has the leading block (HeteroFL, Diao et al. 2021, equation 2). So a site's vector is
a selection of the common one, and an update is that of the selected values, with zeros elsewhere.
Each value's mean is over the sites that train it (equation 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from fedsight.core.errors import ConfigError, Problem
from fedsight.core.registry import nearest
from fedsight.core.selection import Selection
from fedsight.models.group import ModelGroup, group_of

if TYPE_CHECKING:
    from fedsight.core.layout import Layout
    from fedsight.models.base import Model
    from fedsight.program.program import Program


def problems(program: Program) -> Iterator[Problem]:
    """What can be said without the networks."""
    model, algorithm = program.model, program.algorithm
    if not model.groups:
        return
    for number in range(len(model.groups)):
        try:
            yield from model.grouped(number).check()
        except ConfigError as error:
            yield from error.problems
    if model.weights is not None:
        cause = "the weights fit one network, and the sites have different ones (model.groups)"
        yield Problem("model.weights", cause, "leave model.weights out, or model.groups")
    if not algorithm.equips:
        yield from _parts_problems(program)


def elsewhere(program: Program) -> Iterator[Problem]:
    """What sites on other machines cannot have: the weights that groups start from. What sites
    adopt is of the network in `[model]` alone."""
    for number, group in enumerate(program.model.groups):
        cure = "leave it out; networks of groups that start from weights can be simulated"
        if group.settings.get("weights") is not None:
            cause = "the sites of a federation open no file of weights that a program names"
            yield Problem(f"model.groups.{number}.weights", cause, cure)
        elif _pretrains(program.model, number):
            cause = "the sites of a federation adopt no pretrained weights for a group's network"
            yield Problem(f"model.groups.{number}", cause, cure)


def _pretrains(model: Model, number: int) -> bool:
    """Whether the network of a group starts from weights; not if it has a problem, told before."""
    try:
        return model.grouped(number).pretrains
    except ConfigError:
        return False


def _parts_problems(program: Program) -> Iterator[Problem]:
    """What networks that are parts of one do not go together with."""
    model, algorithm = program.model, program.algorithm
    frozen = "the frozen tensors of a narrower network are not part of those of the full one"
    if program.adapter.adapts:
        yield Problem("adapter.name", frozen, "leave out [adapter], or model.groups")
    if program.train.only:
        yield Problem("train.only", frozen, "leave out train.only, or model.groups")
    if model.taps or model.lift:
        where = "model.taps" if model.taps else "model.lift"
        cause = (
            "it adds a frozen layer or another head, which the networks of groups would not share"
        )
        yield Problem(where, cause, "leave it out, or model.groups")
    for section, other in (("start", program.start), ("finish", program.finish)):
        if other is not None:
            cause = (
                f"{other.registered} adds features of one network, and sites have different ones"
            )
            yield Problem(section, cause, f"leave out [{section}], or model.groups")
    if program.task.prepares:
        cause = f"the task '{program.task.registered}' prepares one network for each site's classes"
        yield Problem("model.groups", cause, "leave it out")
    if program.aggregation.needs_replies:
        cause = "a site sends zeros for what it does not train, and this rule would count them"
        cure = "set aggregation.name = 'mean', or leave out model.groups"
        yield Problem("aggregation.name", cause, cure)
    if program.codec.up.steps:
        cause = "a codec may change the zeros that a site sends for what it does not train"
        cure = "leave out codec.up.steps, or model.groups"
        yield Problem("codec.up.steps", cause, cure)
    if program.rounds.buffered:
        cause = "late replies count for less, and values would be divided as if all counted in full"
        cure = "set rounds.mode = 'synchronous', or leave out model.groups"
        yield Problem("rounds.mode", cause, cure)
    if not algorithm.nests:
        cause = (
            f"the server's step of {algorithm.registered} does not treat each value of the update "
            "by itself, and a site with a narrower network updates only some of them"
        )
        cure = "choose one that does, for example fedavg, fedprox, fedopt, fedbn, fedper or ditto"
        yield Problem("algorithm.name", cause, cure)


def site_problems(
    groups: Sequence[ModelGroup], sites: Iterable[str], complete: bool = True
) -> Iterator[Problem]:
    """Patterns that name no site, if these are all (`complete`), and sites that are in two
    groups."""
    names = list(sites)
    for number, group in enumerate(groups):
        where = f"model.groups.{number}.sites"
        for pattern in group.sites:
            named = any(ModelGroup(sites=(pattern,)).pattern(name) for name in names)
            if complete and not named:
                yield Problem(where, f"no site is called '{pattern}'", nearest(pattern, names))
        for name in names:
            first = group_of(groups[:number], name)
            if first is not None and group.pattern(name) is not None:
                cause = f"site '{name}' is in this group and in group {first}"
                yield Problem(where, cause, "name each site once")
                break


def layout_problems(whole: Layout, part: Layout, number: int, equal: bool) -> list[Problem]:
    """Whether the network of group `number` is a part of the one that travels; `equal`: of its
    size, because no network travels but what the algorithm has added."""
    try:
        selection = Selection.of(whole, part)
    except ValueError as error:
        if equal:
            return [_other_features(number)]
        cause = f"the network of this group is not a part of the network in [model]: {error}"
        cure = (
            "let [model] be the widest network, and groups the same one with smaller settings, "
            "for example width"
        )
        return [Problem(f"model.groups.{number}", cause, cure)]
    return [_other_features(number)] if equal and not selection.everything else []


def _other_features(number: int) -> Problem:
    cause = "the sites exchange features, and this group's network does not have as many as [model]"
    cure = "set bottleneck to the same number in [model] and in each group"
    return Problem(f"model.groups.{number}", cause, cure)
