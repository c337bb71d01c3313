"""An object detector on a network of timm that is built of blocks, such as EfficientNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import nn

from fedsight.core.errors import ModelError, Problem
from fedsight.models.base import models
from fedsight.models.detector import HeatmapModel, Pyramid
from fedsight.models.norms import to_group_norm
from fedsight.models.published import Rename
from fedsight.models.weights import load_weights
from fedsight.models.zoo.from_timm import TimmModel

_STEM = ("conv_stem", "bn1")  # what comes before the blocks
_STAGES = "body.stages"


@models.add("timm_detector", task="detect", source="Lin et al., FPN, CVPR 2017; timm, Apache-2.0")
class TimmDetector(HeatmapModel):
    """Objects by heat maps (TTFNet) on a feature pyramid over a network of timm.

    The network is one that timm builds of a stem and blocks: an EfficientNet, a MobileNet, a
    MnasNet. With `weights` it starts from what a classifier has learnt; the pyramid is new. All
    maps from 1/`stride` of the image down to the network's last one are joined.
    """

    architecture: str = "tf_efficientnet_lite0"
    width: int = Field(64, ge=4, multiple_of=4)  # channels of the joined map
    stride: Literal[4, 8] = 8  # pixels of a cell of the grid
    # how many times larger the network sees the image: classifiers have learnt objects of a hundred
    # pixels and not of twenty
    enlarge: Literal[1, 2] = 1

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Takes images that the network takes; raises ModelError for one without blocks."""
        network: Any = self._classifier.make(channels, height, width, classes)[0]
        if not all(hasattr(network, part) for part in (*_STEM, "blocks", "feature_info")):
            raise ModelError(
                f"'{self.architecture}' of timm is not built of a stem and blocks, which a "
                "detector is built on",
                "choose an EfficientNet or a MobileNet, such as tf_efficientnet_lite0",
            )
        finest = self.stride * self.enlarge
        maps = [one for one in network.feature_info if one["reduction"] >= finest]
        stages = self._stages(network, [one["stage"] for one in maps])
        body = Pyramid(stages, tuple(one["num_chs"] for one in maps), self.width, classes)
        if self.norm == "frozen":  # new layers have no statistics to freeze
            to_group_norm(body.sides)
            to_group_norm(body.smooth)
        return self.detector(body, classes, self.stride, (height, width)), ["body.heat", "body.box"]

    def _stages(self, network: Any, ends: Sequence[int]) -> Iterator[nn.Module]:
        """The network up to each of `ends`, which are numbers of blocks, under timm's names."""
        parts: dict[str, nn.Module] = {name: getattr(network, name) for name in _STEM}
        if self.enlarge > 1:
            larger = nn.Upsample(scale_factor=self.enlarge, mode="bilinear", align_corners=False)
            parts = {"enlarge": larger, **parts}
        begin = 0
        for end in ends:
            parts |= {str(at): network.blocks[at] for at in range(begin, end)}
            yield nn.Sequential(OrderedDict(parts))
            parts, begin = {}, end

    @property
    def family(self) -> str:
        """Its blocks are those of classifiers."""
        return "timm"

    @property
    def _classifier(self) -> TimmModel:
        return TimmModel(architecture=self.architecture)

    def _pretrain(self, module: nn.Module, head: frozenset[str]) -> tuple[str, ...]:
        if self.weights is None:
            return ()
        own = {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
        fresh = frozenset(name for name in own if not name.startswith(f"{_STAGES}."))
        known, place = self.published, _placed(module)
        file = (self.weights, self.sha256 or "") if known is None else (known.path, known.sha256)
        published = None if known is None else known.rename

        def rename(name: str) -> str | None:
            theirs = name if published is None else published(name)
            return None if theirs is None else place(theirs)

        return load_weights(module, *file, fresh, rename)

    def check(self) -> list[Problem]:
        """Problems of every model, timm missing, and an unknown architecture."""
        return [*self._classifier.check(), *super().check()]


def _placed(module: nn.Module) -> Rename:
    """The names of timm's classifier -> those of the detector: blocks.3.0.bn1.weight ->
    body.stages.1.3.0.bn1.weight; None for what comes after the blocks."""
    places = {
        name: f"{_STAGES}.{at}.{name}"
        for at, stage in enumerate(module.get_submodule(_STAGES).children())
        for name, _ in stage.named_children()
    }

    def rename(name: str) -> str | None:
        first, _, rest = name.removeprefix("blocks.").partition(".")
        if first in places:
            return f"{places[first]}.{rest}"
        # A detector's own names stay as they are; blocks that are not there are refused later.
        return name if name.startswith(("body.", "blocks.")) else None

    return rename
