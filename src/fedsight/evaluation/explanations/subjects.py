"""What is explained of a run's test images: the answer to each, drawn from all sites."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fedsight.core.errors import DataError
from fedsight.core.rng import generator
from fedsight.data.base import Readable
from fedsight.evaluation.explanations.scores import BoxScore, PairScore, Scored
from fedsight.program.federation import Federation
from fedsight.program.site_data import SiteData
from fedsight.program.views import View

MOST_VIEWS = 16  # sites whose images are drawn
TOGETHER = 64  # images that are asked at once


@dataclass(frozen=True)
class Subject:
    """A test image whose answer is explained: where it is, the network's input [c, h, w], what the
    score is about [k] (for faces the other image [c, h, w]), and the answer in a word."""

    data: SiteData
    position: int
    site: str
    x: Tensor
    given: Tensor
    label: str


def subjects(
    federation: Federation, scored: Scored, images: int, site: int | None = None
) -> list[Subject]:
    """At most so many test images of the sites, or of one site, that the model has an answer to; of
    the common ones where the site has none of its own.

    Raises DataError where the images are not here, are texts, or none has an answer.
    """
    own = [view for view in federation.views if site is None or view.site == site]
    views = own or [view for view in federation.views if view.site is None]
    step = max(1, -(-len(views) // MOST_VIEWS))
    views = views[::step]
    found: list[Subject] = []
    draws = generator(federation.program.seed, "explanations")
    for number, view in enumerate(views, 1):
        share = -(-(images - len(found)) // (len(views) - number + 1))
        found += [*_of_view(federation, scored, view, share, draws)]
    if not found:
        raise DataError(
            "no test image has an answer that could be explained",
            "train longer, or for a detector lower task.shown",
        )
    return found[:images]


def _of_view(
    federation: Federation, scored: Scored, view: View, images: int, draws: Generator
) -> Iterator[Subject]:
    data = federation.tested(view)
    if isinstance(data.part.images, Readable):
        raise DataError(
            "the run learned from texts, and only answers to images are explained",
            "use a run that learned from images",
        )
    site = "" if view.site is None else federation.partition.name(view.site)
    order, found = torch.randperm(len(data), generator=draws), 0
    for some in order.split(TOGETHER):
        x = federation.batch(data, some).x.contiguous()
        answers = [*_answers(federation, scored, data, some, x)]
        for place, given, label in answers[: images - found]:
            yield Subject(data, int(some[place]), site, x[place], given, label)
            found += 1
        if found >= images:
            return


def _answers(
    federation: Federation, scored: Scored, data: SiteData, some: Tensor, x: Tensor
) -> Iterator[tuple[int, Tensor, str]]:
    """(position in the batch, what the score is about, the answer) of those that have one."""
    task, classes = federation.program.task, federation.dataset.classes
    if isinstance(scored, PairScore):
        labels = data.labels()
        for place, position in enumerate(some.tolist()):
            same = torch.nonzero(labels == labels[position]).flatten()
            others = same[same != position]
            if len(others):
                other = others[position % len(others)]
                yield place, federation.batch(data, other[None]).x[0].contiguous(), "same person"
        return
    if isinstance(scored, BoxScore):
        for place, (first, *_) in enumerate(scored.boxes(x)):
            if float(first[1]) >= max(float(getattr(task, "shown", 0.0)), 1e-6):
                yield place, torch.cat([first[:1], first[2:]]), classes[int(first[0])]
        return
    with torch.no_grad():
        best = task.predict(scored.model, x).argmax(1)
    for place, number in enumerate(best.tolist()):
        yield place, torch.tensor([float(number)]), classes[number]
