"""Whether the network can train on one image alone, where a site or the batch size asks for it.

BatchNorm in training mode normalises each channel over the batch and its pixels, which a single
value does not allow.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch

from fedsight.core.errors import Problem
from fedsight.data.base import Preprocess
from fedsight.data.partition import Partition
from fedsight.models.base import Network
from fedsight.program.program import Program

_CURE = "set model.norm = 'group', or 'frozen' for a pretrained model"


def problems(
    program: Program,
    size: Preprocess,
    network: Network,
    partition: Partition,
    sites: Iterable[int],
) -> list[Problem]:
    """The problem of a site with one image, or of batches of one, under BatchNorm.

    `size` is that of the network's input, and `sites` train it.
    """
    if not network.statistics or program.privacy.unit == "example":
        return []
    if program.train.batch == 1:
        cause, cure = "train.batch is 1", f"{_CURE}, or raise train.batch"
    else:
        lone = next((one for one in sites if partition.size(one) == 1), None)
        if lone is None:
            return []
        cause = f"site '{partition.name(lone)}' has a single training image"
        cure = f"{_CURE}, give the site more images, or leave it out"
    module = copy.deepcopy(network.module).cpu().train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            module(torch.zeros(1, size.channels, size.height, size.width))
        except ValueError as error:  # torch's own check; its words speak of tensors
            if "more than 1 value per channel" not in str(error):
                raise
            cause = f"{cause}, and BatchNorm cannot train on one alone at this image size"
            return [Problem("model.norm", cause, cure)]
    return []
