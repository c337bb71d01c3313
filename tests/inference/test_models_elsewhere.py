"""The documented lines that use a model in other programs give FedSight's own answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from fedsight.data.base import Preprocess
from fedsight.inference.export import export
from fedsight.inference.predict import predict
from fedsight.inference.saved import Saved
from fedsight.models.base import models
from fedsight.models.norms import freeze_norms
from fedsight.tasks.classification import Classification

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "use-a-model-elsewhere.md"


def block(word: str) -> str:
    """The page's Python block with `word`."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    [found] = [one for one in blocks if word in one]
    return str(found)


def saved(name: str, norm: str, **settings: Any) -> Saved:
    model = models.get(name)(norm=norm, **settings)
    module = model.build(3, 32, 48, 2, 5).module.eval()
    size = Preprocess(3, 32, 48, "stretch", (0.4, 0.5, 0.3), (0.2, 0.3, 0.2))
    return Saved(module, size, ("cat", "dog"), Classification(), "pets", "f" * 64, model.table())


def test_the_onnx_recipe_answers_as_predict(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = saved("small_cnn", "group")
    export(one, "onnx", Path("export.onnx"))
    draws = torch.Generator().manual_seed(2)
    pixels = torch.randint(256, (71, 90, 3), generator=draws).byte().numpy()
    Image.fromarray(pixels).save("photo.png")
    space: dict[str, Any] = {}
    exec(block("onnxruntime"), space)
    [answer] = predict(one, [Path("photo.png")])
    assert space["label"] == answer.label
    assert float(space["probabilities"].max()) == pytest.approx(answer.probability, abs=1e-5)


@pytest.mark.parametrize("norm", ["group", "batch", "frozen"])
def test_safetensors_load_into_plain_timm(tmp_path: Path, monkeypatch, norm: str) -> None:
    monkeypatch.chdir(tmp_path)
    one = saved("timm", "batch" if norm == "frozen" else norm, architecture="resnet10t")
    if norm == "frozen":
        freeze_norms(one.module)
    export(one, "safetensors", Path("export.safetensors"))
    lines = block("to_group_norm")
    if norm != "group":
        lines = lines.replace("to_group_norm(timm", "(timm")
    space: dict[str, Any] = {}
    exec(lines, space)
    x = torch.randn(2, 3, 32, 48)
    assert type(space["network"]) is type(timm.create_model("resnet10t"))
    with torch.no_grad():
        torch.testing.assert_close(space["network"](x), one.module(x), atol=1e-5, rtol=1e-5)
