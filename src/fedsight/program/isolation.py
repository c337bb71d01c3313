"""Whether a loss and a network are fit to protect single images, tried on two that do not exist.

DP-SGD shows them one image at a time (`client/per_image.py`) and restores buffers in between, so
the images of a batch cannot mix. What is left is what Python objects remember: a running average of
class counts, a queue of features. An image would change the gradients of those after it, which
no clip bounds.

Where features are summed (closed forms), each image's must not depend on others in the batch.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsight.core.errors import Problem
from fedsight.core.rng import generator
from fedsight.core.types import Batch
from fedsight.data.base import Dataset
from fedsight.data.detection import boxes
from fedsight.models.base import Network
from fedsight.models.features import features
from fedsight.program import looks
from fedsight.program.program import Program
from fedsight.tasks.base import Task
from fedsight.tasks.loss_module import LossModule

_PADDED_ROWS = 7
_OTHERWISE = "or protect whole sites with privacy.name = 'local' or 'central'"


def problems(program: Program, dataset: Dataset, network: Network) -> list[Problem]:
    """Problems of the task's loss and the network where single images are protected."""
    if program.privacy.unit != "example":
        return []
    if seen := looks.coupled(program, dataset):
        return seen
    if not program.algorithm.phases(program.train.length):
        return _mixed(program.task, network, dataset)
    with torch.random.fork_rng(devices=[]):
        try:
            found = _tried(program.task, copy.deepcopy(network.module).cpu(), dataset)
        except Exception as error:  # a user's code
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            cause = f"loss or network fail on one image alone, as DP-SGD shows them: {why}"
            cure = f"write them so that a batch of one image is possible, {_OTHERWISE}"
            return [Problem("task", cause, cure)]
    return [] if found is None else [Problem("task", *found)]


def _mixed(task: Task, network: Network, dataset: Dataset) -> list[Problem]:
    """The problem of features of an image that another one changes, beside it or before it."""
    alone = replace(network, module=copy.deepcopy(network.module).cpu().eval())
    one, other = _images(task, dataset)
    both = Batch(torch.cat([one.x, other.x]), torch.cat([one.y, other.y]))
    with torch.no_grad():
        found = [seen[0] for seen, _ in features(alone, [one, both, one])]
    if all(torch.equal(found[0], again) for again in found[1:]):
        return []
    cause = (
        "the features of an image depend on other images, beside it in a batch or before it, so no "
        "bound holds for what one image changes in sums of them"
    )
    cure = "choose a network that computes every image by itself, or set privacy.name = 'none'"
    return [Problem("model", cause, cure)]


def _tried(task: Task, module: nn.Module, dataset: Dataset) -> tuple[str, str] | None:
    """Cause and cure of what is wrong."""
    one, other = _images(task, dataset)
    loss = LossModule(task, module.train())
    first = _gradient(loss, one)
    _gradient(loss, other)
    again = _gradient(loss, one)
    if not bool(first.isfinite().all()):
        cause = "the loss of one image alone has no finite gradient, and DP-SGD needs it"
        return cause, f"use a loss that is defined for a single image, {_OTHERWISE}"
    if dataset.train.targets is None and not bool(first.any()):
        cause = "the loss of one image alone teaches nothing: it compares images with one another"
        return cause, f"use a loss that is defined for a single image, {_OTHERWISE}"
    if not torch.allclose(first, again, rtol=1e-4, atol=1e-6 * float(first.abs().max())):
        cause = (
            "loss or network remember images: the same image has another gradient after a second "
            "image, so clipping each does not bound what one image changes"
        )
        return cause, f"keep nothing from call to call (averages, queues, counters), {_OTHERWISE}"
    return _padded(loss, one, dataset)


def _padded(loss: LossModule, one: Batch, dataset: Dataset) -> tuple[str, str] | None:
    """What is wrong if the gradient of an image with boxes depends on how far they are padded."""
    found = dataset.train.targets
    if found is None or not boxes.are_boxes(found):
        return None
    side = min(dataset.preprocess.height, dataset.preprocess.width)
    alone = boxes.pack([[(0.0, 0.0, 0.0, side / 2, side / 2)]], [[]])
    short, long = (
        _gradient(loss, Batch(one.x, y)) for y in (alone, boxes.widened(alone, _PADDED_ROWS))
    )
    if torch.allclose(short, long, rtol=1e-4, atol=1e-6 * float(short.abs().max())):
        return None
    cause = (
        "the loss of an image depends on how many rows its boxes are padded to, which are those of "
        "the fullest image, so clipping each does not bound what one image changes"
    )
    cure = (
        f"leave rows of padding out of means (fedsight.data.detection.boxes.trimmed), {_OTHERWISE}"
    )
    return cause, cure


def _images(task: Task, dataset: Dataset) -> tuple[Batch, Batch]:
    """Two invented images, each as a batch of its own, of different classes where there are any."""
    size, classes = dataset.preprocess, len(dataset.classes)
    shape = (2, 1, size.channels, size.height, size.width)
    x = torch.rand(shape, generator=generator(0, "isolation"))
    if dataset.train.targets is None:
        labels = torch.tensor([[0], [classes - 1]])
        return Batch(x[0], labels[0]), Batch(x[1] * 2 - 1, labels[1])
    y = task.blank(classes).expand(1, *dataset.train.targets.shape[1:])
    return Batch(x[0], y), Batch(x[1] * 2 - 1, y)


def _gradient(loss: LossModule, batch: Batch) -> Tensor:
    """For all parameters that learn [d]; random numbers are the same in every call, and the
    network's buffers stay as they are."""
    torch.default_generator.manual_seed(0)
    found = functional_call(loss, loss.copied_buffers(), (batch.x, batch.y))
    learning = [value for value in loss.parameters() if value.requires_grad]
    gradients = torch.autograd.grad(found, learning, materialize_grads=True)
    return torch.cat([one.flatten() for one in gradients])
