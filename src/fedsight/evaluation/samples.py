"""A few test images with the model's answers, mistakes first, for the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedsight.client.memory import MemoryStore
from fedsight.client.step import Client
from fedsight.core.rng import generator
from fedsight.core.threads import one_thread
from fedsight.data.base import Readable
from fedsight.evaluation.marks import marked
from fedsight.program.federation import Federation, SiteData
from fedsight.tasks.presentation import Sample

EXAMINED = 256  # test images, drawn at random
MISTAKES, RIGHT = 24, 8  # shown


def answers(federation: Federation, vector: Tensor, memory: MemoryStore) -> list[dict[str, Any]]:
    """Up to 24 mistakes, in the task's order, then 8 correct answers, from 256 random test images.

    Where sites have personal models or see shifted images, these are the first site's answers.
    """
    client = Client(federation)
    view = federation.views[0]
    kept = memory.load(federation.partition.name(view.site), 10**9) if view.site is not None else {}
    client.load(vector, kept)
    client.model.eval()
    data = federation.tested(view)
    draws = generator(federation.program.seed, "report", "samples")
    positions = torch.randperm(len(data), generator=draws)[:EXAMINED]
    with torch.inference_mode(), one_thread():
        batch = client.batch(data, positions)
        found = federation.program.task.samples(client.model, batch, federation.dataset.classes)
    wrong = [sample for sample in found if not sample.right][:MISTAKES]
    right = [sample for sample in found if sample.right][:RIGHT]
    return [_shown(data, positions, sample) for sample in (*wrong, *right)]


def _shown(data: SiteData, positions: Tensor, sample: Sample) -> dict[str, Any]:
    """A sample as plain values, with its picture, or with an excerpt if it is a text."""
    facts = asdict(sample)
    chosen = positions[list(facts.pop("positions"))]
    facts.pop("marks")
    images, numbers = data.part.images, data.indices[chosen].tolist()
    facts["name"] = ", ".join(images.name(number) for number in numbers)
    if isinstance(images, Readable):
        return {**facts, "image": None, "text": " | ".join(map(images.excerpt, numbers))}
    picture = marked(_picture(data.pixels(chosen)), sample.marks)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return {**facts, "image": base64.b64encode(file.getvalue()).decode()}


def _picture(pixels: Sequence[Tensor] | Tensor) -> Image.Image:
    """Images [c, h, w] in [0, 1], side by side."""
    wide = torch.cat(list(pixels), dim=2)
    values = (wide.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(values[:, :, 0] if len(wide) == 1 else values))
