"""Object detectors: the interface for the detection task, and common building blocks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.core.errors import ModelError
from fedsight.models import heatmap
from fedsight.models.base import Model
from fedsight.models.probe import OutputShape
from fedsight.models.views import Views, averaged

MOST = 100  # objects found in an image; COCO counts no more


class Detector(nn.Module):
    """A network that finds objects: the interface that the detection task uses."""

    classes: int
    views: Views = 1  # of an image that its boxes are the mean of; its loss is that of one

    @abstractmethod
    def loss(self, x: Tensor, targets: Tensor, labelled: Tensor) -> Tensor:
        """The training loss, scalar, of images [b, c, h, w] with `targets` [b, most, 5].

        Targets are as in `fedsight.data.detection.boxes`. `labelled` [b, classes] says which
        classes were annotated in an image; the others must not be trained as background.
        """

    @abstractmethod
    def find(self, x: Tensor) -> Tensor:
        """The objects in images [b, c, h, w]: [b, MOST, 6], highest score first.

        A row is (class, score, left, top, right, bottom) in pixels of x; score 0 is padding.
        """

    def find_by(self, x: Tensor, suppress: heatmap.Suppression) -> Tensor:
        """As `find`, removing duplicates with `suppress`, which an exporter can record.

        Raises ModelError for a detector that removes them in its own way.
        """
        raise ModelError(
            f"a {type(self).__name__} finds its boxes in a way that cannot be recorded in a file",
            "export it with --format safetensors, or train a detector such as small_detector",
        )


def has_views(module: nn.Module) -> bool:
    """Whether a network's answers are means over several views of an image: they cannot be made of
    what its first layers made of one."""
    return isinstance(module, Detector) and module.views > 1


class DetectorModel(Model):
    """A model whose module is a `Detector`: for the task `detect` only."""

    gives: ClassVar[str] = "boxes"

    def answer(self, height: int, width: int, classes: int) -> OutputShape:
        """A grid of heat maps and box distances."""
        return (classes + 4, None, None)


class HeatmapDetector(Detector):
    """A detector with output grid [b, classes + 4, h/stride, w/stride] for images [b, c, h, w]."""

    def __init__(
        self,
        body: nn.Module,
        classes: int,
        stride: int,
        image: tuple[int, int],
        views: Views = 1,
    ) -> None:
        """`body` is the network that outputs the grid; boxes are read from its mean over `views` of
        an image (`models.views`), and cut at the edges of images of this height and width."""
        super().__init__()
        self.body = body
        self.classes, self.stride, self.views = classes, stride, views
        # Not read from x: that is what the first layers made of images, where these are frozen.
        self.image = image

    def forward(self, x: Tensor) -> Tensor:
        """Heat maps' logits [b, classes], and logarithms of the distances to a box's sides [4]."""
        grid: Tensor = self.body(x)
        return grid

    def loss(self, x: Tensor, targets: Tensor, labelled: Tensor) -> Tensor:
        """Focal loss of the heat maps and GIoU loss of the boxes (`models.heatmap`)."""
        return heatmap.loss(self(x), targets, labelled, self.stride)

    def find(self, x: Tensor) -> Tensor:
        """Peaks of the heat maps (`models.heatmap`), cut at the edges of the images."""
        return self.find_by(x, heatmap.kept_boxes)

    def find_by(self, x: Tensor, suppress: heatmap.Suppression) -> Tensor:
        """As `find`, with another way to remove duplicates."""
        grid = averaged(self, x, self.views)
        found = heatmap.find(grid, self.classes, self.stride, MOST, suppress=suppress)
        return self._cut(found)

    def _cut(self, found: Tensor) -> Tensor:
        height, width = map(float, self.image)
        sides = [torch.inf, torch.inf, width, height, width, height]
        edge = torch.tensor(sides, device=found.device)
        return torch.minimum(found, edge.to(found.dtype))


class HeatmapModel(DetectorModel):
    """A model whose module is a `HeatmapDetector`."""

    # mirrored and turned views of an image that its boxes are the mean of, wherever the model is
    # used: 2: also mirrored left to right; 4: and top to bottom; 8: and across the diagonal, for
    # views from above. Each takes as long as one; training sees one
    views: Views = 1

    def detector(
        self, body: nn.Module, classes: int, stride: int, image: tuple[int, int]
    ) -> HeatmapDetector:
        """The detector on `body`, for images of this height and width.

        Raises ModelError for images whose views' grids do not fit upon one another.
        """
        height, width = image
        if self.views > 1 and (height % stride or width % stride):
            raise ModelError(
                f"boxes cannot be the mean of {self.views} views of images of {height} x {width} "
                f"pixels: mirrored, the grid's cells of {stride} pixels lie elsewhere",
                f"set data.size to a multiple of {stride}, or model.views = 1",
            )
        if self.views == 8 and height != width:
            raise ModelError(
                f"images of {height} x {width} pixels cannot be turned across the diagonal",
                "set model.views = 4, or a square data.size",
            )
        return HeatmapDetector(body, classes, stride, image, self.views)


def layer(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> list[nn.Module]:
    """Convolution, norm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class Pyramid(nn.Module):
    """Feature maps of decreasing size, joined from the smallest up (Lin et al., FPN, 2017).

    Each stage takes the previous stage's map; the last `len(channels)` maps are joined, and the
    largest of them goes through a convolution and the two output layers.
    """

    def __init__(
        self, stages: Iterable[nn.Module], channels: tuple[int, ...], width: int, classes: int
    ) -> None:
        """`channels` of the maps to join, largest map first; `width` is that of the joined map."""
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.sides = nn.ModuleList(nn.Sequential(*layer(c, width, kernel=1)[:2]) for c in channels)
        self.smooth = nn.Sequential(*layer(width, width), *layer(width, width))
        self.heat = nn.Conv2d(width, classes, 1)
        self.box = nn.Conv2d(width, 4, 1)
        for output, bias in ((self.heat, -2.2), (self.box, 0.5)):
            # Starts by predicting objects in a tenth of the cells (Lin et al. 2017), three wide.
            nn.init.normal_(output.weight, std=0.05)
            nn.init.constant_(output.bias, bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, classes + 4, h', w']."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        maps = maps[-len(self.sides) :]
        joined = self.sides[-1](maps[-1])
        for side, map_ in zip(list(self.sides)[-2::-1], maps[-2::-1], strict=True):
            joined = side(map_) + F.interpolate(joined, size=map_.shape[2:], mode="nearest")
        joined = self.smooth(F.relu(joined))
        return torch.cat([self.heat(joined), self.box(joined)], 1)
