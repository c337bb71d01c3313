"""What frozen layers make of the images, kept so that every image passes through them once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from fedsight.models.detector import Detector, has_views
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


@dataclass(frozen=True)
class _Latest:
    """Rows, and all that decides their bits: `facts` in one hash, and the hash of each tensor of
    the network but those in `learns`, on which no row depends."""

    facts: str
    tensors: Mapping[str, str]
    learns: frozenset[str]
    rows: Rows | None = None

    def same(self, other: _Latest) -> bool:
        """Whether both have the same rows. What learns in one of the two decides neither's."""
        free = self.learns | other.learns
        mine, theirs = (
            {name: found for name, found in one.tensors.items() if name not in free}
            for one in (self, other)
        )
        return self.facts == other.facts and mine == theirs


# The rows that were kept last in this process, if any. The next run reuses them if it has the same
# images and frozen layers, such as one that goes on from a closed-form head.
_latest: list[_Latest] = []


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
    made_of = _made_of(federation, module, prefix, learns, speed)
    if made_of is not None and any(made_of.same(one) for one in _latest):
        return Kept(prefix, learns, _latest[0].rows)
    _latest.clear()
    rows = Rows(
        sum(map(len, images_of(dataset))),
        torch.Size(prefix.shape).numel(),
        memory,
        disk,
        speed.cache_folder or folder,
    )
    if made_of is not None:
        _latest.append(replace(made_of, rows=rows))
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
    """All that a task makes of a batch: the loss, and in evaluation the sums of its figures.

    Of a detector also the boxes, because few sums show where a box is. One with several views of an
    image is not asked for what it finds: that is not made of what is kept.
    """

    task: Task
    classes: int

    def __call__(self, module: nn.Module, x: Tensor) -> Sequence[Tensor]:
        """Of normalised images `x` [b, c, h, w], with the targets of black ones."""
        y = torch.cat([self.task.blank(self.classes)] * len(x))
        loss = self.task.loss(module, Batch(x, y))
        if module.training or has_views(module):
            return [loss]
        sums = self.task.measure(module, Batch(x, y), self.classes)
        boxes = [module.find(x)] if isinstance(module, Detector) else []
        return [loss, *boxes, *(torch.as_tensor(one.total) for one in sums.values())]


def _made_of(
    federation: Federation,
    module: nn.Module,
    prefix: Prefix,
    learns: frozenset[str],
    speed: Speed,
) -> _Latest | None:
    """All that decides the bits of the rows; None if the images cannot be hashed.

    What frozen layers make of a few images says nothing of others: weights can be chosen so that
    another tensor shows in some images only, wherever in the network that is read. So every tensor
    counts, not those of the frozen layers alone.
    """
    program, dataset = federation.program, federation.dataset
    try:
        images = contents(dataset).hashes
    except DataError:
        return None
    if not images:
        return None
    model = program.model.fresh().meaning()
    model.pop("seed", None)  # what follows from it is in the tensors
    seen = prefix.activations(module, trial_images(prefix.image), TRIED)
    facts = [
        {name: value for name, value in images.items() if "labels" not in name},
        [str(dataset.preprocess), program.shift.meaning(), program.split_seed],
        [str(prefix), str(module), model, program.adapter.meaning(), _sha256(seen)],
        [speed.device, speed.threads, torch.__version__, instructions()],
    ]
    if federation.varies:  # which site sees an image decides how
        facts.append([program.split.meaning(), program.data.meaning(), program.rounds.validation])
    known = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return _Latest(known, {name: _sha256(value) for name, value in tensors.items()}, learns)


def _sha256(value: Tensor) -> str:
    return hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
