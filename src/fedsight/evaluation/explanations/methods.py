"""The methods that say which pixels speak for an answer: Grad-CAM, integrated gradients, occlusion
and attention rollout; all but the last by Captum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsight.core.errors import DataError, ModelError
from fedsight.core.extras import install, missing
from fedsight.core.registry import nearest
from fedsight.evaluation.explanations.absence import absent
from fedsight.evaluation.explanations.integrals import attributed
from fedsight.evaluation.explanations.layers import chosen_layer
from fedsight.evaluation.explanations.rollout import readable, rollout
from fedsight.evaluation.explanations.scores import Scored, together

TOGETHER = 128  # images that go through the network at once, if they are small
INTEGRATED = "integrated-gradients"
WINDOWS = 7  # side by side across an image; half as far apart


@dataclass(frozen=True)
class Network:
    """A model's score, and what methods have to know of the model besides."""

    scored: Scored
    head: frozenset[str] = field(default_factory=frozenset)  # the names of the head's parameters
    layer: str | None = None  # that Grad-CAM is made of; None: the last one with maps
    exact: bool = True  # whether integrals are complete; if not, they have few steps


Heat = Callable[[Network, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """A method by name: what makes heat [n, h, w] of (network, images, what scores are about).

    Heat is positive where the image speaks for the answer. `follows`: it follows gradients;
    `attention`: it needs a network that attends to patches; `captum`: it is Captum's.
    """

    title: str
    paper: str
    heat: Heat
    follows: bool = False
    attention: bool = False
    captum: bool = True


def grad_cam(network: Network, x: Tensor, about: Tensor) -> Tensor:
    """The maps of a layer, each weighted by the mean gradient of the score by it, added up and
    enlarged to the image (Selvaraju et al. 2017, equations 1 and 2, before the ReLU)."""
    from captum.attr import LayerGradCam

    scored = network.scored
    name = chosen_layer(scored, x, network.layer, network.head)
    layer = scored.model.get_submodule(name)
    maps: Any = LayerGradCam(scored, layer).attribute(x, additional_forward_args=about)
    folded = scored.folded(maps.detach().float())
    found = F.interpolate(folded, size=x.shape[2:], mode="bilinear", align_corners=False)
    return found[:, 0]


def integrated_gradients(network: Network, x: Tensor, about: Tensor) -> Tensor:
    """The gradient, integrated on the way from the image without detail to the image, times the
    difference (Sundararajan et al. 2017, equation 1); of all channels together."""
    return attributed(network.scored, x, about, network.exact)[0].sum(1)


def occlusion(network: Network, x: Tensor, about: Tensor) -> Tensor:
    """By how much the score falls on average when a window over a pixel hides all detail (Zeiler
    and Fergus 2014, section 4.2)."""
    from captum.attr import Occlusion

    channels, *sides = x.shape[1:]
    window = [max(1, round(side / WINDOWS)) for side in sides]
    apart = [max(1, side // 2) for side in window]
    at_once = max(1, together(x, TOGETHER) // len(x))
    with torch.no_grad():
        made: Any = Occlusion(network.scored).attribute(
            x, (channels, *window), (channels, *apart), absent(x),
            additional_forward_args=about, perturbations_per_eval=at_once,
        )  # fmt: skip
    heat: Tensor = made[:, 0].float()
    return heat


def attention_rollout(network: Network, x: Tensor, about: Tensor) -> Tensor:
    """How much of each patch reaches the answer through the attention of all layers, whatever the
    answer is (Abnar and Zuidema 2020, equation 1)."""
    found = rollout(network.scored, x)
    return F.interpolate(found[:, None], size=x.shape[2:], mode="bilinear", align_corners=False)[
        :, 0
    ]


METHODS: Mapping[str, Method] = {
    "grad-cam": Method("Grad-CAM", "Selvaraju et al. 2017", grad_cam, follows=True),
    INTEGRATED: Method(
        "integrated gradients", "Sundararajan et al. 2017", integrated_gradients, follows=True
    ),
    "occlusion": Method("occlusion", "Zeiler and Fergus 2014", occlusion),
    "attention-rollout": Method(
        "attention rollout", "Abnar and Zuidema 2020", attention_rollout,
        attention=True, captum=False,
    ),
}  # fmt: skip


def chosen(network: Network, names: Sequence[str] | None, x: Tensor) -> tuple[str, ...]:
    """The methods with these names; None: all that the network allows, which is tried on an image
    `x` [1, c, h, w], whatever it shows.

    Raises DataError for an unknown name, no name, and a layer that is for no method; ModelError for
    a method that the network does not allow, or whose extra is not installed.
    """
    for name in names or ():
        if name not in METHODS:
            raise DataError(f"there is no method '{name}'", nearest(name, METHODS))
    if names is not None and not names:
        raise DataError("no method of explanation is named", f"name one: {', '.join(METHODS)}")
    if network.layer is not None:
        if names is not None and "grad-cam" not in names:
            raise DataError(
                "a layer is for Grad-CAM alone, which is not asked for",
                "leave out the layer, or add the method grad-cam",
            )
        chosen_layer(network.scored, x, network.layer, network.head)
    found = dict.fromkeys(METHODS if names is None else names)
    hindered = {name: why for name in found if (why := _hindrance(network, name, x))}
    if hindered and (names is not None or len(hindered) == len(found)):
        raise next(iter(hindered.values()))
    kept = tuple(name for name in found if name not in hindered)
    _require_captum(kept)
    return kept


def resolved(network: Network, names: Iterable[str], x: Tensor) -> Network:
    """With the name of the layer that Grad-CAM is made of for images `x`; None if it is not among
    the methods with these names."""
    if "grad-cam" not in names:
        return replace(network, layer=None)
    layer = chosen_layer(network.scored, x, network.layer, network.head)
    return replace(network, layer=layer)


def heat_of(network: Network, name: str, x: Tensor, about: Tensor) -> Tensor:
    """What a method makes of images [n, c, h, w]: [n, h, w], positive for the answer; 0 everywhere
    in an image of which it makes anything that is not finite."""
    return finite(METHODS[name].heat(network, x, about))


def finite(heat: Tensor) -> Tensor:
    """Heat [n, h, w], 0 everywhere in an image of which any is not finite."""
    whole = heat.flatten(1).isfinite().all(1)
    return torch.where(whole[:, None, None], heat, 0.0)


def _hindrance(network: Network, name: str, x: Tensor) -> ModelError | None:
    """Why a network does not allow a method, as far as an image `x` [1, c, h, w] shows it."""
    method = METHODS[name]
    if method.attention and not readable(network.scored.model):
        return ModelError(
            "attention rollout needs a network that attends to patches of the image by the plain "
            "attention of timm or PyTorch, and this one does not",
            "leave --method out for the methods that the network allows",
        )
    if method.follows and not network.scored.differentiable:
        return ModelError(
            f"{method.title} follows gradients, and none lead from this detector's boxes to the "
            "pixels",
            "choose --method occlusion",
        )
    try:
        if name == "grad-cam":
            chosen_layer(network.scored, x, network.layer, network.head)
        elif method.attention:
            rollout(network.scored, x)
    except ModelError as error:
        return error
    return None


def _require_captum(names: Iterable[str]) -> None:
    needed = [METHODS[name].title for name in names if METHODS[name].captum]
    if needed and missing("explain"):
        raise ModelError(
            f"{', '.join(needed)}: these methods need the package 'captum', which is not installed",
            install("explain"),
        )
