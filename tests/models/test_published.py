"""Published weights by name: they fit their network tensor by tensor, and mean what they meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedsight.core.errors import ConfigError
from fedsight.data.fetch.cache import fetch
from fedsight.models.published import PUBLISHED
from fedsight.models.zoo.from_timm import TimmModel
from fedsight.program import config

# Logits of classes 0 to 2 and the three highest (class, logit) that the network of the package
# efficientnet-lite-pytorch 0.1.0 computes from these weights for `waves(size)`.
KNOWN = {
    "efficientnet-lite0": ((0.1926, 0.6998, 1.8387), {701: 3.6607, 405: 3.4146, 21: 3.2104}),
    "efficientnet-lite1": ((-0.0647, -0.1380, 1.4660), {557: 4.7555, 701: 4.7209, 437: 4.5830}),
    "efficientnet-lite2": ((-0.1212, 0.9951, 0.3821), {974: 3.7739, 437: 3.6891, 795: 3.4401}),
}


def waves(size: int) -> torch.Tensor:
    return torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size).sin_()


@pytest.mark.parametrize("name", KNOWN)
def test_logits_are_those_of_the_original_network_in_the_original_order(name: str) -> None:
    fetch(name, print)
    known = PUBLISHED[name]
    model = TimmModel(architecture=known.architecture, weights=Path(name))
    network = model.build(3, known.size, known.size, 1000, seed=0)
    with torch.no_grad():
        logits = network.module.eval()(waves(known.size))[0]
    first, highest = KNOWN[name]
    torch.testing.assert_close(logits[:3], torch.tensor(first), atol=2e-4, rtol=0)
    values, classes = logits.topk(3)
    assert classes.tolist() == list(highest)
    torch.testing.assert_close(values, torch.tensor([*highest.values()]), atol=2e-4, rtol=0)
    (note,) = network.notes  # no tensor was missing, misshapen or left over
    assert "BatchNorm layers of the network keep their pretrained statistics" in note


def table(tmp_path: Path, **model: object) -> dict[str, object]:
    (tmp_path / "images").mkdir(exist_ok=True)
    return {
        "data": {"name": "folder", "path": str(tmp_path / "images"), "size": 96},
        "model": {"name": "timm", "architecture": "tf_efficientnet_lite0", **model},
    }


def test_images_are_prepared_as_the_weights_expect_unless_said_otherwise(tmp_path: Path) -> None:
    of, _ = config.parse(table(tmp_path, weights="efficientnet-lite0"), tmp_path)
    assert (of.data.mean, of.data.std, of.model.norm) == ((0.5,) * 3, (0.5,) * 3, "frozen")
    assert of.model.sha256 == "57934424"
    plain, _ = config.parse(table(tmp_path), tmp_path)
    assert (plain.data.mean, plain.model.norm) == (None, "group")
    assert of.fingerprint != plain.fingerprint
    stated = table(tmp_path, weights="efficientnet-lite0")
    stated["data"] |= {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}  # type: ignore[operator]
    of, _ = config.parse(stated, tmp_path)
    assert of.data.mean == (0.1, 0.2, 0.3)
    assert of.data.preprocess(1, 8, 8).mean == (pytest.approx(0.2),)


def test_weights_that_are_missing_or_another_network_s_name_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIGHT_CACHE", str(tmp_path / "empty"))
    program, speed = config.parse(
        table(tmp_path, weights="efficientnet-lite0", architecture="tf_efficientnet_lite1"),
        tmp_path,
    )
    with pytest.raises(ConfigError) as caught:
        config.check(program, speed)
    cures = {problem.where: problem.cure for problem in caught.value.problems}
    assert cures["model.name"] == "run: fedsight data get efficientnet-lite0"
    assert 'model.architecture = "tf_efficientnet_lite0"' in cures["model.weights"]
