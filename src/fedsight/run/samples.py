"""A few test images with the model's answers, mistakes first, for the report."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedsight.core.rng import generator
from fedsight.engine.base import Federation
from fedsight.engine.client import Client
from fedsight.engine.inline import one_thread
from fedsight.engine.memory import MemoryStore

LOOKED_AT = 256  # test images, drawn at random
MISTAKES, RIGHT = 24, 8  # shown


def answers(federation: Federation, vector: Tensor, memory: MemoryStore) -> list[dict[str, Any]]:
    """Up to 24 mistakes, the surest first, then 8 right answers, of 256 random test images.

    Where sites have their own models or see the world differently, the first site's answers.
    """
    client = Client(federation)
    view = federation.views[0]
    kept = memory.load(federation.partition.name(view.site), 10**9) if view.site is not None else {}
    client.load(vector, kept)
    client.model.eval()
    data = federation.tested(view)
    draws = generator(federation.program.seed, "report", "samples")
    positions = torch.randperm(len(data), generator=draws)[:LOOKED_AT]
    with torch.inference_mode(), one_thread():
        batch = federation.batch(data, positions)
        probabilities = federation.program.task.predict(client.model, batch.x)
    sure, predicted = probabilities.max(1)
    wrong = predicted != batch.y
    order = torch.argsort(sure, descending=True, stable=True)
    shown = [*order[wrong[order]][:MISTAKES].tolist(), *order[~wrong[order]][:RIGHT].tolist()]
    pixels = data.pixels(positions[shown])
    classes, images = federation.dataset.classes, federation.dataset.test.images
    return [
        {
            "image": _png(pixels[place]),
            "name": images.name(int(data.indices[positions[number]])),
            "truth": classes[int(batch.y[number])],
            "predicted": classes[int(predicted[number])],
            "probability": float(sure[number]),
            "truth_probability": float(probabilities[number, batch.y[number]]),
        }
        for place, number in enumerate(shown)
    ]


def _png(pixels: Tensor) -> str:
    """[c, h, w] in [0, 1] -> base64 of a PNG."""
    values = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(values[:, :, 0] if len(pixels) == 1 else values))
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
