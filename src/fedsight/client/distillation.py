"""The coordinator's model learns public images from the scores of the sites' models."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsight.client import public
from fedsight.client.bound_model import BoundModel
from fedsight.client.training import learning
from fedsight.core.devices import drawing
from fedsight.core.layout import Kind
from fedsight.core.rng import derive, generator
from fedsight.core.threads import one_thread
from fedsight.models.norms import still
from fedsight.program.federation import Federation


def distilled(federation: Federation, vector: Tensor, targets: Tensor, round: int) -> Tensor:
    """The model `vector` [travelling] after it has learnt `targets` [public images, classes].

    With one thread on the CPU, and draws from the program's seed: equal on every machine.
    """
    program = federation.program
    bound = BoundModel(federation)
    kinds = {entry.name: entry.kind for entry in bound.layout.entries}
    path = ("round", round, "public")
    bound.load(vector, {})
    bound.model.train()
    for part in still(bound.model, lambda name: kinds.get(name) == Kind.FROZEN):
        part.eval()
    parameters = dict(bound.model.named_parameters())
    learns = learning(parameters, lambda name: kinds[name] == Kind.SHARED)
    draws = generator(program.train_seed, *path)
    dropout = drawing(torch.device("cpu"), derive(program.train_seed, *path, "dropout"))
    with one_thread(), dropout:
        public.learn(bound, learns, targets, program.train.lr, draws)
    return bound.vector[bound.layout.travelling].clone()
