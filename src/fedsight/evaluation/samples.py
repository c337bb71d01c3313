"""Test images with the model's answers, from all sites, for the report: mistakes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsight.client.bound_model import CHUNK
from fedsight.client.members import Members
from fedsight.client.memory import MemoryStore
from fedsight.client.step import Client
from fedsight.core.rng import generator
from fedsight.core.threads import one_thread
from fedsight.data.base import Readable
from fedsight.evaluation.pictures import beside, picture, plain, plain_areas, plain_mark
from fedsight.program.federation import Federation
from fedsight.program.site_data import SiteData
from fedsight.program.views import View
from fedsight.tasks.presentation import Sample

EXAMINED = 512  # test images in all, drawn at random, the same number at each site
LEAST, MOST_SITES = 32, 16  # images at a site, and sites, that are examined
MISTAKES, RIGHT = 24, 8  # shown
OF_A_KIND = 4  # mistakes of the same kind shown

Pair = tuple[str, str]  # truth and answer


@dataclass(frozen=True)
class _Found:
    """A sample with the images that its positions index, and the site that they are of."""

    sample: Sample
    data: SiteData
    positions: Tensor
    site: str  # empty: the shared test set

    @property
    def pair(self) -> Pair:
        return self.sample.truth, self.sample.predicted


def answers(
    federation: Federation,
    vector: Tensor,
    memory: MemoryStore,
    confusions: Mapping[Pair, int] | None = None,
) -> list[dict[str, Any]]:
    """Up to 24 mistakes from all sites, then 8 correct answers, as plain values with pictures.

    Mistakes of the same kind follow each other, up to 4 of each: the most frequent confusions
    first, or what `task.samples` puts first if the task confuses no classes. Where sites have
    personal models, a site's own model answers; a site that has never trained is left out.
    """
    found = list(_examined(federation, Members(federation, Client), vector, memory))
    wrong = [one for one in found if not one.sample.right]
    right = [one for one in found if one.sample.right]
    shown = (*_mistakes(wrong, confusions or {}), *_in_turn(right)[:RIGHT])
    return [_plain(one) for one in shown]


def _examined(
    federation: Federation, clients: Members[Client], vector: Tensor, memory: MemoryStore
) -> Iterator[_Found]:
    views = _chosen(federation)
    draws = generator(federation.program.seed, "report", "samples")
    task, classes = federation.program.task, federation.dataset.classes
    for view in views:
        site = "" if view.site is None else federation.partition.name(view.site)
        kept = memory.latest(site) if site else {}
        data = federation.tested(view)
        client = clients.loaded(vector, view.site, kept) if len(data) else None
        if client is None:
            continue
        client.model.eval()
        count = max(LEAST, EXAMINED // len(views))
        positions = torch.randperm(len(data), generator=draws)[: min(count, CHUNK * 2)]
        for some in (positions[:CHUNK],) if task.whole else positions.split(CHUNK):
            with torch.inference_mode(), one_thread():
                samples = task.samples(client.model, client.batch(data, some), classes)
            yield from (_Found(sample, data, some, site) for sample in samples)


def _chosen(federation: Federation) -> Sequence[View]:
    """The views that are examined: all, or as many as are shown, spread over them."""
    views = federation.views
    step = max(1, -(-len(views) // MOST_SITES))
    return views[::step]


def _mistakes(wrong: Sequence[_Found], confusions: Mapping[Pair, int]) -> list[_Found]:
    """Those that are shown: of each kind a few, in turn from each site."""
    if not confusions:
        return _in_turn(wrong)[:MISTAKES]
    seen = Counter(one.pair for one in wrong)
    kinds = sorted(seen, key=lambda pair: (-confusions.get(pair, 0), -seen[pair], pair))
    chosen = [
        one
        for pair in kinds
        for one in _in_turn([one for one in wrong if one.pair == pair])[:OF_A_KIND]
    ]
    return chosen[:MISTAKES]


def _in_turn(found: Sequence[_Found]) -> list[_Found]:
    """One of each site in turn, each site's in their order."""
    by_site: dict[str, list[_Found]] = {}
    for one in found:
        by_site.setdefault(one.site, []).append(one)
    longest = max(map(len, by_site.values()), default=0)
    return [own[at] for at in range(longest) for own in by_site.values() if at < len(own)]


def _plain(one: _Found) -> dict[str, Any]:
    """A sample as plain values, with its picture, or with an excerpt if it is a text."""
    sample = one.sample
    positions = one.positions[list(sample.positions)]
    numbers = one.data.indices[positions].tolist()
    images = one.data.part.images
    facts: dict[str, Any] = {
        "name": ", ".join(images.name(number) for number in numbers),
        "site": one.site,
        "truth": sample.truth,
        "predicted": sample.predicted,
        "probability": sample.probability,
        "truth_probability": sample.truth_probability,
        "right": sample.right,
        "overlap": sample.overlap,
    }
    if isinstance(images, Readable):
        return {**facts, "image": None, "text": " | ".join(map(images.excerpt, numbers))}
    shown = beside([picture(one.data, position) for position in positions.tolist()])
    facts |= plain(shown)
    facts["marks"] = [plain_mark(mark, shown) for mark in sample.marks]
    if sample.areas is not None:
        facts["areas"] = plain_areas(sample.areas, shown)
    return facts
