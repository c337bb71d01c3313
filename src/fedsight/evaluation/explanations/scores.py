"""What an explanation explains: the score of one answer as a function of the pixels.

Explained are the score of a class, the likeness of two faces, and the score of one box.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.core.errors import ModelError
from fedsight.models.detector import Detector, HeatmapDetector
from fedsight.models.embedding import Embedding
from fedsight.models.views import averaged
from fedsight.tasks.base import Task

PIXELS = 2**20  # of the images that go through the network at once, unless one has more
LEAST = 1e-6  # probabilities whose log-odds are taken are this far from 0 and 1


def together(x: Tensor, most: int) -> int:
    """How many images of the size of `x` [n, c, h, w] go through the network at once."""
    return max(1, min(most, PIXELS // x.shape[2:].numel()))


class Scored(nn.Module, ABC):
    """Scores [n] of normalised images [n, c, h, w], each `about` something of its own [n, k].

    A class number [n, 1]; the unit vector of the other face [n, d]; or a box [n, 5]: class, left,
    top, right, bottom in pixels of the images.
    """

    differentiable: ClassVar[bool] = True  # whether gradients lead from the score to the pixels

    def __init__(self, model: nn.Module) -> None:
        """`model` is in evaluation mode."""
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, x: Tensor, about: Tensor) -> Tensor:
        """The score that is explained [n], before any squashing."""

    @abstractmethod
    def shown(self, x: Tensor, about: Tensor) -> Tensor:
        """The figure that people read [n]: a probability, or for faces the cosine."""

    def about(self, given: Tensor) -> Tensor:
        """What the scores are about, for this model: here, what is `given` [n, k]."""
        return given

    def folded(self, maps: Tensor) -> Tensor:
        """What a layer made of the images, or of several looks at each: [looks n, ...] -> [n, ...].

        Looks are added up where they lie on the image."""
        return maps

    def watched(self, x: Tensor) -> Tensor:
        """Whatever the model makes of the images [n, c, h, w], with every layer called once."""
        found: Tensor = self.model(x)
        return found


class ClassScore(Scored):
    """The score of a class: what the network gives it, or the log-odds of its probability."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__(model)
        self.task = task

    def forward(self, x: Tensor, about: Tensor) -> Tensor:
        """[n] for class numbers [n, 1]."""
        scores = self.model(x).float() if self.task.scored else self._odds(x)
        return scores.gather(1, about.long()).squeeze(1)

    def shown(self, x: Tensor, about: Tensor) -> Tensor:
        """The probability of the class [n]."""
        return self.task.predict(self.model, x).gather(1, about.long()).squeeze(1)

    def _odds(self, x: Tensor) -> Tensor:
        return torch.logit(self.task.predict(self.model, x), LEAST)


class PairScore(Scored):
    """The cosine of a face and of another one, whose vector `about` is."""

    model: Embedding

    def forward(self, x: Tensor, about: Tensor) -> Tensor:
        """Cosines [n] of faces [n, c, h, w] and unit vectors [n, d]."""
        cosines: Tensor = (self._embedded(x) * about).sum(1)
        return cosines

    def shown(self, x: Tensor, about: Tensor) -> Tensor:
        """The cosine [n], from -1 to 1."""
        return self.forward(x, about)

    def about(self, given: Tensor) -> Tensor:
        """The unit vectors [n, d] of the other faces, which are `given` as images [n, c, h, w]."""
        with torch.no_grad():
            return self._embedded(given)

    def folded(self, maps: Tensor) -> Tensor:
        """The face as it is, and its mirror image mirrored back."""
        plain, mirrored = maps.chunk(2)
        return plain + mirrored.flip(-1)

    def watched(self, x: Tensor) -> Tensor:
        """The vectors [n, d]."""
        return self._embedded(x)

    def _embedded(self, x: Tensor) -> Tensor:
        """As `Embedding.embed`, with both looks in one batch, so that each layer is called once."""
        looks: Tensor = self.model.body(torch.cat([x, x.flip(3)])).float()
        plain, mirrored = looks.chunk(2)
        return F.normalize(plain + mirrored, dim=1)


class BoxScore(Scored, ABC):
    """What is explained of a detector."""

    model: Detector

    def boxes(self, x: Tensor) -> Tensor:
        """The objects in images [n, c, h, w], as `Detector.find` gives them [n, most, 6]."""
        with torch.no_grad():
            return self.model.find(x).float()


class HeatScore(BoxScore):
    """The highest score of a class within a box, of a detector that makes heat maps; explained is
    its smooth sibling, the logarithm of summed exponentials, which all cells of the box move.

    What is explained is what the network sees in the image as it is; what people read is the score
    that the detector gives, of the mean over its views."""

    model: HeatmapDetector

    def forward(self, x: Tensor, about: Tensor) -> Tensor:
        """Smooth maxima of logits [n] for boxes [n, 5]."""
        return self._heat(self.model(x), about).logsumexp(1)

    def shown(self, x: Tensor, about: Tensor) -> Tensor:
        """The score as the detector gives it [n], 0 to 1."""
        grid = averaged(self.model, x, self.model.views)
        return self._heat(grid, about).amax(1).sigmoid()

    def _heat(self, grid: Tensor, about: Tensor) -> Tensor:
        """The logits [n, cells] of a grid's cells that boxes [n, 5] touch; -inf elsewhere."""
        maps = grid[:, : self.model.classes].float()
        rows = torch.arange(len(maps), device=maps.device)
        heat = maps[rows, about[:, 0].long()]
        inside = self._inside(about[:, 1:], heat)
        found: Tensor = heat.masked_fill(~inside, -torch.inf).flatten(1)
        return found

    def _inside(self, boxes: Tensor, heat: Tensor) -> Tensor:
        """The cells of the grid [n, h, w] that a box touches."""
        left, top, right, bottom = (side[:, None] for side in boxes.unbind(1))
        height, width = heat.shape[1:]
        stride = self.model.stride
        down, across = (torch.arange(n, device=heat.device) * stride for n in (height, width))
        rows = (down <= bottom) & (down + stride >= top)
        columns = (across <= right) & (across + stride >= left)
        return rows[:, :, None] & columns[:, None, :]


class OverlapScore(BoxScore):
    """The best of a detector's boxes of a class: its score times its overlap with the box (Petsiuk
    et al. 2021, arXiv:2006.03204, equation 3)."""

    differentiable: ClassVar[bool] = False

    def forward(self, x: Tensor, about: Tensor) -> Tensor:
        """[n], 0 to 1, for boxes [n, 5]."""
        from torchvision.ops import box_iou

        found = self.model.find(x).float()
        scores = []
        for rows, box in zip(found, about, strict=True):
            overlap = box_iou(rows[:, 2:], box[None, 1:]).squeeze(1).nan_to_num()
            scores.append((rows[:, 1] * overlap * (rows[:, 0] == box[0])).max())
        return torch.stack(scores)

    def shown(self, x: Tensor, about: Tensor) -> Tensor:
        """The same [n]."""
        return self.forward(x, about)


def scored(task: Task, model: nn.Module) -> Scored:
    """What is explained of a task's model; ModelError for a task whose answers have no one score.

    `model` is in evaluation mode.
    """
    if isinstance(model, Embedding):
        return PairScore(model)
    if isinstance(model, HeatmapDetector):
        return HeatScore(model)
    if isinstance(model, Detector):
        return OverlapScore(model)
    if task.takes == "scores" and not task.placed:
        return ClassScore(model, task)
    raise ModelError(
        f"the answers of the task '{task.registered}' cannot be explained: they are made for each "
        "pixel, and show themselves what the model sees where",
        "explain a run that classifies images, compares faces or finds boxes",
    )
