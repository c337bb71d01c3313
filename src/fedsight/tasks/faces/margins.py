"""Margin losses over cosines: a person's own vector must be closer than others by a margin."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Margin = Literal["arcface", "cosface"]
CLOSE = 0.9  # cosine to one's own vector that is close enough (Yu et al. 2020)


def margin_loss(
    cosines: Tensor, y: Tensor, own: Tensor, kind: Margin, margin: float, scale: float
) -> Tensor:
    """Softmax over the site's own people with a margin on the true one, scalar.

    `cosines` [b, people], `y` [b] numbers of people, `own` [k] the numbers of the site's people,
    ascending. People of other sites affect neither the loss nor the gradient.

    ArcFace (Deng et al. 2019, equation 3): cos(angle + margin); past the angle where that would
    rise again, cos(angle) - margin sin(margin), as in the authors' code. CosFace (Wang et al. 2018,
    equation 4): cos(angle) - margin. With a margin of 0 both are the normalised softmax.
    """
    mine = cosines[:, own]
    target = torch.searchsorted(own, y)
    truth = torch.arange(len(own), device=y.device) == target[:, None]
    if kind == "cosface":
        held = mine - margin
    else:
        safe = mine.clamp(-1 + 1e-6, 1 - 1e-6)  # the angle's slope is infinite at 0 and pi
        held = safe * math.cos(margin) - (1 - safe**2).sqrt() * math.sin(margin)
        past = mine <= math.cos(math.pi - margin)
        held = torch.where(past, mine - margin * math.sin(margin), held)
    return F.cross_entropy(scale * torch.where(truth, held, mine), target)


def positive_loss(cosines: Tensor, y: Tensor) -> Tensor:
    """Squared hinge that pulls images to their own vector: max(0, 0.9 - cos)^2, mean, scalar.

    The positive part of the loss in the experiments of FedAwS (Yu et al. 2020), for a site that
    has no one to compare with: a softmax loss over one person is always 0.
    """
    return (CLOSE - cosines.gather(1, y[:, None])).clamp(min=0).square().mean()


def spread_loss(vectors: Tensor, starts: Tensor, reach: float) -> Tensor:
    """Squared hinge that keeps each person's vector within `reach` of where it started, scalar.

    `vectors`, `starts` [people, d], unit. In FedAwS the server pushes people's vectors apart, so
    it must see them. Here they stay at the site, so each is kept near a direction that was
    drawn at random: two people of any two sites are then at least their starts' distance (about
    1.41 in many dimensions) less twice the reach apart, by the triangle inequality.
    """
    # Not torch.linalg.norm: its gradient is NaN at 0, where every vector starts.
    distance = ((vectors - starts).square().sum(1) + 1e-12).sqrt()
    return (distance - reach).clamp(min=0).square().sum()


def among_images(vectors: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines [k, people] of images with the people of a batch, and which of these each shows [k].

    `vectors` [b, d] are unit vectors of the images, `y` [b] numbers of people. A person is the mean
    of its images in the batch, without the one that is compared (Wan et al. 2018, equations 8 and
    9). An image whose person has no other image there is compared with nothing: k is b less those.
    """
    names, place = y.unique(return_inverse=True)
    sums = vectors.new_zeros(len(names), vectors.shape[1]).index_add(0, place, vectors)
    images = torch.bincount(place, minlength=len(names))
    known = images[place] > 1
    vectors, place = vectors[known], place[known]
    cosines = vectors @ F.normalize(sums, dim=1).T
    rest = (vectors * F.normalize(sums[place] - vectors, dim=1)).sum(1)
    own = torch.arange(len(names), device=y.device) == place[:, None]
    return torch.where(own, rest[:, None], cosines), place
