"""How faithful each method is to a run's model, on test images: what `explanations.json` says.

Each is compared, on the same images, with regions at random and with edges, and with what it shows
of a network that has learnt nothing; `verdicts.py` says what follows.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.core.rng import generator
from fedsight.evaluation.explanations.faithfulness import area, at_random, curves, edges, ranked
from fedsight.evaluation.explanations.methods import (
    Network,
    chosen,
    heat_of,
    resolved,
)
from fedsight.evaluation.explanations.overlays import panels
from fedsight.evaluation.explanations.randomisation import likeness, shuffled, silent
from fedsight.evaluation.explanations.scores import PairScore, scored
from fedsight.evaluation.explanations.subjects import Subject, subjects
from fedsight.evaluation.explanations.verdicts import (
    DELETION,
    EDGES,
    INSERTION,
    RANDOM,
    SHUFFLED,
    SILENT,
    judged,
    same_answers,
    spread,
)
from fedsight.evaluation.pictures import picture
from fedsight.evaluation.trust.measure import MASKED, NOISED
from fedsight.program.federation import Federation
from fedsight.tasks.presentation import Mark

FILE = "explanations.json"
FEWEST = 5  # images of which an interval says anything
SHOWN = 4  # images with pictures
TOGETHER = 16  # images that are explained at once

Figures = dict[str, list[Tensor]]


def measured(
    federation: Federation,
    network: Network,
    names: Sequence[str] | None = None,
    images: int = 100,
    site: int | None = None,
) -> dict[str, Any]:
    """The figures of methods by name (None: all that the network allows) on so many test images, of
    all sites or of one, as plain values.

    `network` is of the run's model in evaluation mode. Raises DataError where the images are not
    here, too few have an answer, or what leaves the sites is protected; ModelError for a method
    that the network does not allow.
    """
    _require_allowed(federation)
    found = subjects(federation, network.scored, images, site)
    if len(found) < FEWEST:
        cause = f"{len(found)} test images have an answer to explain, and {FEWEST} are needed"
        raise DataError(cause, "ask for more images, or of a model that finds more")
    first = found[0].x[None]
    names = chosen(network, names, first)
    network = resolved(network, names, first)
    rapid = replace(network, exact=False)
    other = shuffled(network.scored.model, federation.program.seed)
    blank = replace(rapid, scored=scored(federation.program.task, other))
    figures = _figures(rapid, blank, names, found, federation.program.seed)
    void = same_answers(*(torch.cat(values) for values in figures.pop("").values()))
    every = {
        name: {key: torch.cat(values).double() for key, values in own.items()}
        for name, own in figures.items()
    }
    baselines = {name: every.pop(name) for name in (RANDOM, EDGES)}
    return {
        "images": len(found),
        "layer": network.layer,
        "site": None if site is None else federation.partition.name(site),
        "common": site is not None and not found[0].site,
        "score": "cosine" if isinstance(network.scored, PairScore) else "probability",
        "methods": {
            name: {**_told(own), **judged(own, baselines, void)} for name, own in every.items()
        },
        "baselines": {name: _told(own) for name, own in baselines.items()},
        "shuffled_answers": void,
        "samples": [_sample(rapid, names, one) for one in found[:SHOWN]],
    }  # fmt: skip


def _require_allowed(federation: Federation) -> None:
    program = federation.program
    reason = NOISED if program.privacy.protects else MASKED if program.secure.masks else None
    if reason is not None:
        raise DataError(
            f"explanations of this run's test images are not measured: {reason}",
            "measure them in a simulation without these protections",
        )


def _asked(network: Network, some: Sequence[Subject]) -> tuple[Tensor, Tensor]:
    """The images [n, c, h, w] and what their scores are about [n, k], for this model."""
    given = torch.stack([one.given for one in some])
    return torch.stack([one.x for one in some]), network.scored.about(given)


def _figures(
    network: Network, blank: Network, names: Sequence[str], found: Sequence[Subject], seed: int
) -> dict[str, Figures]:
    """By method and baseline: its curves, and likeness to the heat of the shuffled network; by ""
    the scores of both networks."""
    figures: dict[str, Figures] = {}
    draws = generator(seed, "explanations", "random")

    def add(name: str, key: str, values: Tensor) -> None:
        figures.setdefault(name, {}).setdefault(key, []).append(values.detach())

    for start in range(0, len(found), TOGETHER):
        some = found[start : start + TOGETHER]
        (x, about), (_, other) = _asked(network, some), _asked(blank, some)
        with torch.no_grad():
            add("", "own", network.scored.shown(x, about))
            add("", SHUFFLED, blank.scored.shown(x, other))
        heats = {name: heat_of(network, name, x, about) for name in names}
        for name, heat in (*heats.items(), (RANDOM, at_random(x, draws)), (EDGES, edges(x))):
            deleted, inserted = curves(network.scored, x, about, ranked(heat, draws))
            add(name, DELETION, deleted)
            add(name, INSERTION, inserted)
            if name in heats:
                add(name, SHUFFLED, likeness(heat, heat_of(blank, name, x, other)))
                add(name, SILENT, silent(heat))
    return figures


def _told(figures: Mapping[str, Tensor]) -> dict[str, Any]:
    """Means with intervals, and the mean curves."""
    found: dict[str, Any] = {}
    for key in (DELETION, INSERTION):
        found[key] = spread(area(figures[key]))
        found[f"{key}_curve"] = figures[key].mean(0).tolist()
    return found


def _sample(network: Network, names: Sequence[str], one: Subject) -> dict[str, Any]:
    """A test image with its explanations as a picture for the report."""
    x, about = _asked(network, [one])
    heats = {name: heat_of(network, name, x, about)[0] for name in names}
    shown = picture(one.data, one.position)
    marks: tuple[Mark, ...] = ()
    if one.given.shape == (5,):
        left, top, right, bottom = one.given[1:].tolist()
        marks = (Mark(shown.shown((left, top, right, bottom)), one.label),)
    placed = shown.placement
    if placed is not None and shown.scale != 1:
        source = tuple(side * shown.scale for side in placed.source)
        placed = replace(placed, source=source)  # type: ignore[arg-type]
    file = io.BytesIO()
    panels(shown.image, heats, placed, marks).save(file, "PNG")
    with torch.no_grad():
        score = float(network.scored.shown(x, about))
    number = int(one.data.indices[one.position])
    return {
        "image": base64.b64encode(file.getvalue()).decode(),
        "name": one.data.part.images.name(number),
        "site": one.site,
        "label": one.label,
        "score": score,
    }
