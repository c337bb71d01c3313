"""A finished run's model, ready to be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedsight.client.memory import MemoryStore
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import StoreError
from fedsight.core.selection import Selection
from fedsight.data.base import Preprocess, Source
from fedsight.evaluation.delivery.deliver import delivered_path
from fedsight.inference.trusted import Trusting
from fedsight.models.base import Model, Network
from fedsight.models.group import group_of
from fedsight.models.low_rank import merge
from fedsight.program.program import Program
from fedsight.tasks.base import Task


@dataclass(frozen=True)
class Saved:
    """A trained network in evaluation mode, and everything needed to use it."""

    module: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...]
    task: Task
    name: str
    fingerprint: str
    model: Mapping[str, Any] = field(default_factory=dict)  # the `[model]` table of the program
    source: Source | None = None  # what it learned from; it defines how texts become words
    trust: Trusting = field(default_factory=Trusting)  # what is known of its answers
    head: frozenset[str] = frozenset()  # the names of the head's parameters


def load(run: Path, site: str | None = None) -> Saved:
    """The trained model of the run folder `run`; with `site`, the one that this site got.

    The folder of a deployed site's own recogniser holds one model, that site's.

    Raises StoreError when the run is not finished, has no such site, or keeps a part of the model
    at the sites and none is named.
    """
    store = RunStore(run)
    program, _ = store.program()
    facts = store.read_json("run.json")
    path = store.model
    if not path.is_file():
        raise StoreError(f"{run} is not finished", f"finish it with: fedsight resume {run}")
    try:
        size = Preprocess.of(facts["preprocess"])
        classes, sites = tuple(facts["classes"]), [entry["name"] for entry in facts["sites"]]
        if site is None and "recogniser" in facts:
            site = facts["recogniser"]["site"]
        if not all(isinstance(name, str) for name in (*classes, *sites)):
            raise TypeError("a name is not a text")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{run / 'run.json'} is broken: {error!r}", "run it again") from error
    if program.data.harmonise == "site":
        size = _seen_at(store, facts["sites"], size, site)
    model = _model_of(program, store, sites, site)
    network = _built(program, model, size, len(classes))
    layout = program.layout(network)
    given = path if "recogniser" in facts and site in sites else _delivered(store, site)
    if given is not None:
        vector = layout.vector(_tensors(given))
    else:
        if model is program.model:
            vector = layout.vector(_tensors(path))
        else:  # a part of the common one
            whole = program.layout(_built(program, program.model, size, len(classes)))
            vector = layout.read(network.module)
            common = whole.vector(_tensors(path))[whole.travelling]
            vector[layout.travelling] = Selection.of(whole, layout).taken(common)
        if program.own(layout).stop > program.own(layout).start and program.differs(network):
            own = _personal(store, sites, program.rounds.rounds, site)
            if own.shape != vector[program.own(layout)].shape:
                cause = f"the memory of site '{site}' in {run} is not of this model"
                raise StoreError(cause, "restore it from a copy, or run it again")
            vector[program.own(layout)] = own
        elif site is not None and not program.model.groups and program.data.harmonise != "site":
            _require_shared(store, sites, site, program.trust.guarantee == "site")
    if not bool(torch.isfinite(vector).all()):  # its answers would look like any others
        raise StoreError(f"{path} holds weights that are not finite", "run it again")
    layout.bind(network.module, vector)
    return Saved(
        merge(network.module).eval(),
        size,
        classes,
        program.task,
        program.name, program.fingerprint, model.table(), program.data,
        Trusting.at(store, program.task, len(classes), site, given not in (None, path)),
        network.head,
    )  # fmt: skip


def _built(program: Program, model: Model, size: Preprocess, classes: int) -> Network:
    """The network of a program, or of a group of its sites, before training."""
    given = (size.channels, size.height, size.width, classes, program.model_seed)
    return program.adapter.adapt(model.fresh().build(*given), program.model_seed)


def _model_of(program: Program, store: RunStore, names: Sequence[str], site: str | None) -> Model:
    """The network of a site; None: the one that all sites' networks are parts of.

    Raises StoreError where networks differ and the site is unknown.
    """
    if not program.model.groups or site is None:
        return program.model
    if site not in names:
        raise StoreError(
            f"{store.folder} has no model for site '{site}'",
            f"sites of this run: {', '.join(names[:10])}",
        )
    number = group_of(program.model.groups, site)
    return program.model if number is None else program.model.grouped(number)


def _delivered(store: RunStore, site: str | None) -> Path | None:
    """The file of the model that a site of a simulation got, if sites chose any."""
    path = None if site is None else delivered_path(store.delivered, site)
    return path if path is not None and path.is_file() else None


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} is broken: {error}", "run it again") from error


def _require_shared(store: RunStore, names: Sequence[str], site: str, own_sets: bool) -> None:
    """StoreError unless the sites of the run chose models, of which this one got the shared one, or
    have sets of their own of it."""
    if not store.delivered.is_dir() and not own_sets:
        raise StoreError(
            f"the sites of {store.folder} share one model; '{site}' has none of its own",
            "leave out --site",
        )
    if site not in names:
        raise StoreError(
            f"{store.folder} has no model for site '{site}'",
            f"sites of this run: {', '.join(names[:10])}",
        )


def _seen_at(store: RunStore, sites: Any, size: Preprocess, site: str | None) -> Preprocess:
    """How the images of a site are prepared: normalised by their own mean and deviation.

    StoreError if no site is named, or its numbers are not in the run, as they stay at real sites.
    """
    looks: dict[str, Any] = {entry["name"]: entry.get("look") for entry in sites}
    if site is None:
        raise StoreError(
            f"in {store.folder} each site's images are normalised by their own mean and deviation",
            f"name a site with --site (run.for_site in Python): {', '.join([*looks][:10])}",
        )
    try:
        found = looks[site]
        return Preprocess.of({**asdict(size), "mean": found["mean"], "std": found["std"]})
    except (KeyError, TypeError, ValueError):
        raise StoreError(
            f"{store.folder} has no mean and deviation of the images of site '{site}'",
            "name a site of this run; those of real sites stay there: set data.harmonise = 'image' "
            "for a model that is to be used elsewhere",
        ) from None


def _personal(store: RunStore, names: list[str], rounds: int, site: str | None) -> Tensor:
    if site is None:
        raise StoreError(
            f"in {store.folder} each site has its own part of the model",
            f"name a site with --site (run.for_site in Python): {', '.join(names[:10])}",
        )
    memory = MemoryStore(store.memory).load(site, rounds + 1)
    if "personal" not in memory:
        raise StoreError(
            f"{store.folder} has no model for site '{site}'",
            f"sites of this run: {', '.join(names[:10])}",
        )
    return memory["personal"]
