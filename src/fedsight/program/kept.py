"""What frozen layers make of the images, kept so that every image passes through them once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fedsight.core.devices import instructions
from fedsight.core.errors import DataError
from fedsight.core.layout import Kind, Layout
from fedsight.core.rows import Rows
from fedsight.core.types import Batch
from fedsight.data.base import Dataset, Images
from fedsight.data.contents import contents
from fedsight.models.prefix import TRIED, Prefix, find_prefix, trial_images
from fedsight.program.federation import Federation
from fedsight.program.program import Speed
from fedsight.tasks.base import Task

MEBI = 1 << 20


@dataclass(frozen=True)
class Kept:
    """The frozen layers of a federation's network, and the rows that its images have from them.

    `learns` are the names of all other tensors. A row is the input [values] of the first layer that
    is not frozen; images are numbered through the parts of the data set. None: they are not kept.
    """

    prefix: Prefix
    learns: frozenset[str]
    rows: Rows | None

    def suits(self, layout: Layout) -> bool:
        """Whether nothing in `layout` learns that is frozen here. Less may learn: a closed-form
        head starts from what is kept for the run that goes on from it."""
        return learning(layout) <= self.learns


# The rows that were kept last in this process. The next run reuses them if it has the same images
# and frozen layers, such as one that goes on from a closed-form head.
_latest: dict[str, Rows] = {}


def keep(federation: Federation, speed: Speed, folder: Path | None = None) -> None:
    """Let all processes of a run share what the frozen layers make of its images.

    What does not fit into memory goes to a file in `folder`, unless `speed` names another.
    """
    if federation.kept is None or not federation.kept.suits(federation.layout):
        federation.keep(kept_for(federation, federation.initial, speed, folder))


def kept_for(
    federation: Federation, initial: Tensor, speed: Speed, folder: Path | None = None
) -> Kept | None:
    """The frozen layers of the network with the weights `initial` [size]; None: it has none.

    They have none either where images must not meet: under DP-SGD every image is computed alone.
    """
    program, dataset = federation.program, federation.dataset
    learns = learning(federation.layout)
    if len(learns) == len(federation.layout.entries) or program.privacy.unit == "example":
        return None
    if program.task.whole or dataset.preprocess.modality != "image":
        return None
    size = dataset.preprocess
    module = bound_copy(federation, initial)
    answers = Answers(program.task, len(dataset.classes))
    image = (size.channels, size.height, size.width)
    prefix = find_prefix(module, image, learns, answers, speed.cache_at)
    if prefix is None:
        return None
    memory, disk = speed.cache * MEBI, speed.cache_disk * MEBI
    if not memory and not disk:
        return Kept(prefix, learns, None)
    identity = _identity(federation, module, prefix, speed)
    if identity is not None and identity in _latest:
        return Kept(prefix, learns, _latest[identity])
    _latest.clear()
    rows = Rows(
        sum(map(len, images_of(dataset))),
        torch.Size(prefix.shape).numel(),
        memory,
        disk,
        speed.cache_folder or folder,
    )
    if identity is not None:
        _latest[identity] = rows
    return Kept(prefix, learns, rows)


def learning(layout: Layout) -> frozenset[str]:
    """The names of the tensors that are not frozen."""
    return frozenset(entry.name for entry in layout.entries if entry.kind != Kind.FROZEN)


def bound_copy(federation: Federation, initial: Tensor) -> nn.Module:
    """A copy of the network, on the CPU, with weights of its own: `initial` [size]."""
    module = federation.build().module
    federation.layout.bind(module, initial.to("cpu", copy=True))
    return module


def images_of(dataset: Dataset) -> list[Images]:
    """The images of the parts, in the order in which they are numbered; shared ones once."""
    found: list[Images] = []
    for part in (dataset.train, dataset.test, dataset.validation):
        if part is not None and not any(part.images is one for one in found):
            found.append(part.images)
    return found


@dataclass(frozen=True)
class Answers:
    """All that a task makes of a batch: the loss, and in evaluation the sums of its figures."""

    task: Task
    classes: int

    def __call__(self, module: nn.Module, x: Tensor) -> Sequence[Tensor]:
        """Of normalised images `x` [b, c, h, w], with the targets of black ones."""
        y = torch.cat([self.task.blank(self.classes)] * len(x))
        loss = self.task.loss(module, Batch(x, y))
        if module.training:
            return [loss]
        sums = self.task.measure(module, Batch(x, y), self.classes)
        return [loss, *(torch.as_tensor(one.total) for one in sums.values())]


def _identity(
    federation: Federation, module: nn.Module, prefix: Prefix, speed: Speed
) -> str | None:
    """SHA-256 over all that decides the bits of the rows; None if the images cannot be hashed.

    Of the frozen layers it is their weights, and what they make of a few images.
    """
    program, dataset = federation.program, federation.dataset
    try:
        images = contents(dataset).hashes
    except DataError:
        return None
    if not images:
        return None
    weights, skipped = hashlib.sha256(), tuple(f"{name}." for name, _ in prefix.skipped)
    for name, value in module.state_dict().items():
        if name.startswith(skipped):
            weights.update(name.encode() + value.contiguous().numpy().tobytes())
    seen = prefix.activations(module, trial_images(prefix.image), TRIED)
    weights.update(seen.contiguous().numpy().tobytes())
    facts = [
        {name: value for name, value in images.items() if "labels" not in name},
        [str(dataset.preprocess), program.shift.meaning(), program.split_seed],
        [str(prefix), weights.hexdigest(), str(module)],
        [speed.device, speed.threads, torch.__version__, instructions()],
    ]
    if program.shift.kind != "none":  # which site sees an image decides how
        facts.append([program.split.meaning()])
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
