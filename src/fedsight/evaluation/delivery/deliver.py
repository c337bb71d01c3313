"""Delivers a model to a site at the end of a run: chooses it, writes it, and measures it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fedsight.client.memory import MemoryStore
from fedsight.client.step import Client
from fedsight.coordinator.store import RunStore
from fedsight.core.files import file_name, make_folder, refuse_links, write_atomically
from fedsight.core.threads import one_thread
from fedsight.core.types import Metrics
from fedsight.evaluation.delivery.base import SiteModels
from fedsight.evaluation.delivery.choice import HeldOut, decided, offsets
from fedsight.evaluation.evidence import Evidence, Witness
from fedsight.evaluation.figures import Evaluator
from fedsight.evaluation.generalisation.exam import Exam, examined
from fedsight.evaluation.trust.of_site import trusted_at
from fedsight.evaluation.trust.saved import keep, place_of
from fedsight.program.federation import Federation
from fedsight.program.program import Speed


@dataclass(frozen=True)
class SharedModel:
    """What the federation trained: the vector [size] of its layout, where the sites' memories are,
    and the folder in which their models are written."""

    vector: Tensor
    memory: Path
    folder: Path

    def state(self, federation: Federation, number: int) -> dict[str, Tensor]:
        """The shared model's tensors by name, as site `number` has them: of its network, and with
        what it has of its own, part or whole."""
        member, site = federation.member(number), federation.partition.name(number)
        vector = self.vector
        if member is not federation:
            vector = member.initial.clone()
            travelling = self.vector[federation.layout.travelling]
            vector[member.layout.travelling] = member.received(travelling)
        own = MemoryStore(self.memory).latest(site).get("personal")
        return with_own(member, vector, own)


@dataclass(frozen=True)
class Delivered:
    """What a site got: the choice as values for JSON, the metric sums of its test view (those of
    other views are empty), what its figure rests on, and how the model does on images that it knows
    and on corrupted ones."""

    choice: Mapping[str, Any]
    sums: list[Metrics]
    evidence: Evidence | None
    exam: Exam | None


def with_own(federation: Federation, vector: Tensor, own: Tensor | None) -> dict[str, Tensor]:
    """The tensors by name of the model `vector` [size], with what a site has of its `own`."""
    layout = federation.layout
    if own is not None:
        vector = vector.clone()
        vector[federation.program.own(layout)] = own
    return layout.state_dict(vector)


def deliver(
    federation: Federation, site: int, shared: SharedModel, client: Client, speed: Speed
) -> Delivered | None:
    """Choose what `site` gets, and write it; None if no site has images to choose by.

    `client` has the model that the site trained alone.
    """
    if federation.validating is None or federation.program.task.whole:
        return None
    held_out = HeldOut.of(federation, site)
    name, layout, alone = federation.partition.name(site), client.layout, client.vector.cpu()
    there, odds = shared.state(federation, site), offsets(federation, site)
    ratios = None if odds is None else torch.from_numpy(odds).float()
    at = SiteModels(client, speed, layout.vector(there), alone.clone(), ratios)
    with one_thread():
        program = federation.program
        plain = not (program.differs(federation.network) or program.privacy.protects)
        choice = decided(at, held_out, plain)
        at.load(choice.taken.vector)
        path = delivered_path(shared.folder, name)
        refuse_links(shared.folder.parent, shared.folder.name)
        make_folder(path.parent)
        write_atomically(path, save(layout.state_dict(choice.taken.vector)))
        trust = trusted_at(federation, site, client)
        there_too = place_of(shared.folder, name)
        refuse_links(shared.folder, there_too.parent.name)
        make_folder(there_too)
        keep(RunStore(there_too), trust, path)
        evaluator = Evaluator(client.federation)
        sums = _measured(evaluator, site, client)
        evidence = Witness(evaluator, client).of(site)
        exam = examined(federation, evaluator, client, site)
        told = {**choice.plain(), "trust": trust.summary}
        return Delivered(told, sums, evidence, exam)


def delivered_path(folder: Path, site: str) -> Path:
    """The file of a site's model in the folder of all of them (`RunStore.delivered`)."""
    return folder / f"{file_name(site)}.safetensors"


def _measured(evaluator: Evaluator, site: int, client: Client) -> list[Metrics]:
    """The sums of the view that the site's figure is measured on; the others are empty."""
    federation, number = evaluator.federation, evaluator.view(site)
    return [
        client.measure_all(federation.tested(view)) if at == number else {}
        for at, view in enumerate(federation.views)
    ]
