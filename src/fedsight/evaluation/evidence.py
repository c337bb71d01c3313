"""What a site's figure rests on, kept so that two models can be compared on the same images."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedsight.client.bound_model import CHUNK
from fedsight.client.step import Client
from fedsight.core.intervals import paired
from fedsight.core.threads import one_thread
from fedsight.core.types import Batch, Metrics, Sum, add_metrics
from fedsight.evaluation.figures import Evaluator, Mix
from fedsight.program.site_data import SiteData

GROUPS = 20  # of images that are left out in turn
T = 2.093024  # of Student's distribution with GROUPS - 1 degrees of freedom: 95 % lie within
LEAST = 2 * GROUPS  # images; from fewer a spread cannot be estimated

Weights = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evidence:
    """One model on one site's test images: which answers are `right` [n], where the figure is a
    share of right answers, or else `replicates`, figures of parts of the images.

    They are figures without each of GROUPS groups of images in turn, or, if `drawn`, of people
    drawn again and again; another model's are of the same parts.
    """

    right: npt.NDArray[np.bool_] | None = None
    replicates: tuple[float, ...] = ()
    drawn: bool = False

    def plain(self) -> dict[str, Any]:
        """The evidence as values for JSON."""
        if self.right is None:
            known = [None if np.isnan(value) else value for value in self.replicates]
            return {"replicates": known, "drawn": self.drawn}
        packed = base64.b64encode(np.packbits(self.right).tobytes()).decode()
        return {"right": packed, "images": len(self.right)}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Evidence:
        """The evidence that `plain` describes.

        Raises KeyError, TypeError or ValueError for what `plain` does not make.
        """
        if "right" not in plain:
            found = (np.nan if value is None else float(value) for value in plain["replicates"])
            return cls(None, tuple(found), plain["drawn"])
        packed = np.frombuffer(base64.b64decode(plain["right"]), np.uint8)
        images = plain["images"]
        if type(images) is not int or -(-images // 8) != len(packed):  # numpy makes room for any
            raise ValueError(f"{len(packed)} bytes do not hold the answers of {images} images")
        return cls(np.unpackbits(packed, count=images).astype(bool))


class Witness:
    """Makes the evidence of one model; what is measured of a view serves all sites tested on it."""

    def __init__(self, evaluator: Evaluator, client: Client) -> None:
        self._evaluator, self._client = evaluator, client
        self._left: dict[int, list[Metrics]] = {}  # by view: the sums without each group
        self._right: dict[int, npt.NDArray[np.bool_]] = {}

    def of(self, site: int) -> Evidence | None:
        """What the figure of `site` rests on, for the model that the client has loaded.

        None if the site is not tested, or its figure has no spread that could be estimated.
        """
        evaluator, client = self._evaluator, self._client
        number = evaluator.view(site)
        if number is None:
            return None
        federation, task = evaluator.federation, evaluator.federation.program.task
        data = federation.tested(federation.views[number])
        with one_thread():
            if task.whole:
                scores = task.replicates(client.measure_all(data))
                return Evidence(None, tuple(scores), drawn=True) if scores else None
            if task.share:
                if number not in self._right:
                    self._right[number] = _right(client, data)
                return Evidence(self._right[number])
            if len(data) < LEAST:
                return None
            if number not in self._left:
                parts = _groups(data, federation.program.seed)
                self._left[number] = without_each([client.measure_all(part) for part in parts])
        mix = evaluator.mix_of(site)
        return Evidence(None, tuple(evaluator.score(left, mix) for left in self._left[number]))


def _right(client: Client, data: SiteData) -> npt.NDArray[np.bool_]:
    found = answered(client, data, client.federation.program.task.right)
    return np.asarray(found.numpy(), dtype=bool)


def answered(client: Client, data: SiteData, ask: Callable[[nn.Module, Batch], Tensor]) -> Tensor:
    """What `ask` makes [n, ...] of the images and the model that the client has loaded, on the
    CPU."""
    client.model.eval()
    with client.inputs(data) as read, torch.inference_mode():
        chunks = torch.arange(len(data)).split(CHUNK)
        return torch.cat([ask(client.model, read(chunk)).cpu() for chunk in chunks])


def _groups(data: SiteData, seed: int) -> list[SiteData]:
    """GROUPS parts of nearly equal size, the same whatever the model."""
    order = np.random.RandomState(seed % 2**32).permutation(len(data))
    return [some(data, torch.from_numpy(order[at::GROUPS])) for at in range(GROUPS)]


def some(data: SiteData, positions: Tensor) -> SiteData:
    """The images at `positions` [n] of those of a site."""
    return replace(data, indices=data.indices[positions], origins=data.origins[positions])


def without_each(groups: list[Metrics]) -> list[Metrics]:
    """The sums of all groups but one, for each."""
    total = add_metrics(groups)
    return [
        {name: Sum(one.total - left[name].total, one.count - left[name].count)
         for name, one in total.items()}
        for left in groups
    ]  # fmt: skip


def weights(labels: npt.NDArray[np.int64], mix: Mix | None) -> Weights:
    """How much each test image counts in a site's figure [n]; they sum to 1, or are all 0."""
    if mix is None:
        return np.full(len(labels), 1 / max(1, len(labels)))
    each = mix[labels] / np.bincount(labels, minlength=len(mix))[labels]
    return np.asarray(each / each.sum() if each.sum() else each)


def difference(first: Evidence, second: Evidence, weight: Weights) -> tuple[float, float] | None:
    """The 95 % interval of the first model's figure minus the second's, or None if unknown.

    Right answers are compared image by image, each with its `weight` [n]; they rest on as many
    images as would give the same spread if all counted alike. Other figures are compared part by
    part: by the jackknife (Tukey 1958), or by the middle 95 % of people drawn anew.
    """
    if first.right is not None and second.right is not None:
        if not weight.sum():
            return None
        mine = float(weight[first.right & ~second.right].sum())
        other = float(weight[second.right & ~first.right].sum())
        return paired(mine, other, effective(weight))
    apart = np.subtract(first.replicates, second.replicates)
    if not len(apart) or not np.isfinite(apart).all():
        return None
    if first.drawn:
        low, high = np.percentile(apart, [2.5, 97.5])
        return float(low), float(high)
    half = T * float(np.sqrt((GROUPS - 1) / GROUPS * np.square(apart - apart.mean()).sum()))
    return float(apart.mean()) - half, float(apart.mean()) + half


def effective(weight: Weights) -> float:
    """The number of images with equal weights on which a mean would have the same spread."""
    return float(weight.sum() ** 2 / np.square(weight).sum()) if weight.any() else 0.0


def verdict(interval: tuple[float, float] | None) -> str:
    """`better` or `worse` beyond chance, or `no difference shown`."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "no difference shown"
    return "better" if interval[0] > 0 else "worse"


def compared(
    evaluator: Evaluator, site: int, federated: Evidence | None, alone: Evidence | None
) -> dict[str, Any]:
    """How the federated model compares with the site's own, as `comparison.json` says it.

    `tested` is the number of test images that the figures rest on; `low` and `high` are the 95 %
    interval of their difference, null if it is not known.
    """
    number = evaluator.view(site)
    if number is None or federated is None or alone is None:
        tested = 0 if number is None else len(evaluator.federation.views[number].indices)
        return {"tested": tested, "low": None, "high": None, "verdict": verdict(None)}
    labels = evaluator.federation.dataset.test.labels[evaluator.federation.views[number].indices]
    weight = weights(labels, evaluator.mix_of(site))
    found = difference(federated, alone, weight)
    low, high = (None, None) if found is None else found
    tested = int((weight > 0).sum())
    return {"tested": tested, "low": low, "high": high, "verdict": verdict(found)}
