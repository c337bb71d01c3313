"""How images from different devices are made to look alike, each image by itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fedsight.core.errors import Problem

Harmonise = Literal["none", "image", "histogram", "site"]
Distribution = Literal["uniform", "normal"]  # stated ones, for the template of a histogram
ByImage = Literal["image", "histogram"]
LEAST = 1 / 255  # standard deviation: a blank image has none to divide by
MOST = 4096  # quantiles of a template
_NORMAL, _STEPS = NormalDist(0.5, 0.2), 32


@dataclass(frozen=True)
class Look:
    """What each image is made to look like, from its own pixels alone.

    `image`: every channel gets the mean and the standard deviation that the network expects.
    `histogram`: the values of every channel get the distribution of the `template`, whose quantiles
    it lists at equal steps (Gonzalez and Woods, Digital Image Processing, section 3.3).
    """

    kind: ByImage
    template: tuple[float, ...] = ()

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Look:
        """From plain values, as JSON has them; TypeError or ValueError if they are not a look."""
        if set(table) != {"kind", "template"} or table["kind"] not in get_args(ByImage):
            raise ValueError("expected a look with a kind and a template")
        template = table["template"]
        if not isinstance(template, list | tuple) or len(template) > MOST:
            raise TypeError("expected the quantiles of a template as a list")
        found = cls(table["kind"], tuple(template))
        wrong = template_wrong(found.template) if found.kind == "histogram" else bool(template)
        if wrong or any(type(value) is not float for value in template):
            raise ValueError("the quantiles of a template go from 0 to 1 and do not fall")
        return found

    def apply(self, pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Pixels [b, c, h, w] in [0, 1] as they look; `mean` and `std` are what is expected."""
        if self.kind == "image":
            own = pixels.mean((2, 3), keepdim=True)
            spread = (pixels - own).square().mean((2, 3), keepdim=True).sqrt().clamp(min=LEAST)
            shape = (1, pixels.shape[1], 1, 1)
            goal, width = (torch.tensor(v, device=pixels.device).view(shape) for v in (mean, std))
            return (pixels - own) / spread * width + goal
        return matched(pixels, torch.tensor(self.template, device=pixels.device))


def matched(pixels: Tensor, quantiles: Tensor) -> Tensor:
    """Pixels [b, c, h, w] whose values in every channel have the distribution of the `quantiles`
    [k], which are at equal steps from 0 to 1.

    Equal values stay equal: they get the quantile in the middle of those that they take up.
    """
    rows = pixels.flatten(2).contiguous()
    ordered = rows.sort(dim=2).values
    first = torch.searchsorted(ordered, rows, right=False)
    last = torch.searchsorted(ordered, rows, right=True)
    place = (first + last).to(rows.dtype) / (2 * rows.shape[2]) * (len(quantiles) - 1)
    low = place.floor().clamp(max=len(quantiles) - 2).long()
    below, above = quantiles[low], quantiles[low + 1]
    return torch.lerp(below, above, place - low).view_as(pixels)


def quantiles_of(template: Distribution | Sequence[float]) -> tuple[float, ...]:
    """The quantiles of a stated distribution on [0, 1], or those that are given.

    `normal` has mean 0.5 and standard deviation 0.2, without what is outside.
    """
    if template == "uniform":
        return (0.0, 1.0)
    if template == "normal":
        low, high = _NORMAL.cdf(0.0), _NORMAL.cdf(1.0)
        places = [low + (high - low) * step / _STEPS for step in range(_STEPS + 1)]
        return tuple(min(1.0, max(0.0, _NORMAL.inv_cdf(place))) for place in places)
    return tuple(float(value) for value in template)


def template_wrong(quantiles: Sequence[float]) -> bool:
    """Whether these are not the quantiles of values from 0 to 1."""
    if not 2 <= len(quantiles) <= MOST or not all(map(math.isfinite, quantiles)):
        return True
    inside = min(quantiles) >= 0 and max(quantiles) <= 1
    rising = all(a <= b for a, b in itertools.pairwise(quantiles))
    return not (inside and rising)


def problems(
    harmonise: Harmonise, template: Distribution | Sequence[float], stated: Sequence[bool]
) -> list[Problem]:
    """What is wrong with the settings; `stated`: whether site_mean and site_std are given."""
    found = []
    if harmonise != "histogram" and template != "uniform":
        cause = f"data.harmonise is '{harmonise}', so a template would be without effect"
        cure = "set data.harmonise = 'histogram', or leave the template out"
        found.append(Problem("data.template", cause, cure))
    if harmonise == "histogram" and template_wrong(quantiles_of(template)):
        cause = "the template is not a list of quantiles: numbers from 0 to 1 that do not fall"
        cure = (
            "give the quantiles of a public image's pixels at equal steps, from the least to the "
            "largest, or 'uniform' or 'normal'"
        )
        found.append(Problem("data.template", cause, cure))
    if any(stated) and harmonise != "site":
        cause = f"data.harmonise is '{harmonise}', so a site's numbers would be without effect"
        cure = "set data.harmonise = 'site', or leave data.site_mean and data.site_std out"
        found.append(Problem("data.site_mean", cause, cure))
    if any(stated) and not all(stated):
        cause = "data.site_mean and data.site_std are only useful together"
        found.append(Problem("data.site_mean", cause, "give both, or neither"))
    return found
