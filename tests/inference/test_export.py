"""Exported files give the network's own answers, and say how to prepare an image."""

import io
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open

import fedsight.inference.export as exporting
from fedsight.core.errors import FedSightError, ModelError, StoreError
from fedsight.data.base import Preprocess
from fedsight.data.text.texts import row
from fedsight.inference.export import ExportedModel, export
from fedsight.inference.saved import Saved
from fedsight.models.base import models
from fedsight.tasks.classification import Classification
from fedsight.tasks.ordinal import Ordinal

CLASSES = ("T-shirt", "Größe", "裤子")


def saved(name: str = "small_cnn", channels: int = 1, side: int = 12, **settings) -> Saved:
    model = models.get(name)(**settings)
    module = model.build(channels, side, side, len(CLASSES), 3).module.eval()
    preprocess = Preprocess(
        channels, side, side, "crop", (0.3, 0.4, 0.5)[:channels], (0.2, 0.3, 0.4)[:channels]
    )
    return Saved(module, preprocess, CLASSES, Classification(), "garments", "f" * 64, model.table())


def pixels(one: Saved, count: int) -> torch.Tensor:
    p = one.preprocess
    generator = torch.Generator().manual_seed(9)
    return torch.rand(count, p.channels, p.height, p.width, generator=generator)


def expected(one: Saved, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return one.task.predict(one.module, one.preprocess.normalise(x)).numpy()


def check_metadata(found: dict[str, str], one: Saved) -> None:
    assert tuple(json.loads(found["labels"])) == CLASSES
    preprocess = json.loads(found["preprocess"])
    assert Preprocess(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in preprocess.items()}
    ) == (one.preprocess)
    assert json.loads(found["model"]) == one.model
    assert json.loads(found["task"])["name"] == "classify"
    assert (found["name"], found["fingerprint"]) == (one.name, one.fingerprint)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("small_cnn", {}),
        ("torchvision", {"architecture": "squeezenet1_1"}),
        ("timm", {"architecture": "test_efficientnet", "norm": "batch"}),
    ],
)
def test_onnx_answers_like_the_network_for_any_batch(tmp_path: Path, name, settings) -> None:
    one = saved(name, **settings) if name == "small_cnn" else saved(name, 3, 64, **settings)
    path = export(one, "onnx", tmp_path / "deep" / "m.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [given], [answer] = session.get_inputs(), session.get_outputs()
    p = one.preprocess
    assert (given.name, given.shape[1:]) == ("pixels", [p.channels, p.height, p.width])
    assert isinstance(given.shape[0], str)  # any number of images
    assert (answer.name, answer.shape[1:]) == ("probabilities", [3])
    for count in (1, 7):
        x = pixels(one, count)
        [out] = session.run(None, {"pixels": x.numpy()})
        assert np.abs(out - expected(one, x)).max() <= 1e-5
    check_metadata({p.key: p.value for p in onnx.load(path).metadata_props}, one)
    onnx.checker.check_model(onnx.load(path))
    assert [entry.name for entry in path.parent.iterdir()] == ["m.onnx"]


def test_onnx_reads_texts_as_the_numbers_of_their_words(tmp_path: Path) -> None:
    words = 9
    module = models.get("text_bag")(buckets=64, near=2).build(1, 1, words, 3, 3).module.eval()
    preprocess = Preprocess(1, 1, words, mean=(0.0,), std=(1.0,), modality="text")
    one = Saved(module, preprocess, CLASSES, Classification(), "texts", "f" * 64, {})
    session = onnxruntime.InferenceSession(export(one, "onnx", tmp_path / "m.onnx"))
    [given] = session.get_inputs()
    assert (given.name, given.shape[1:]) == ("words", [1, 1, words])
    rows = [row(text.split(), words) for text in ("one two", "a longer text of some words")]
    x = torch.tensor(rows).float().view(2, 1, 1, words)
    [out] = session.run(None, {"words": x.numpy()})
    assert np.abs(out - expected(one, x)).max() <= 1e-5
    assert np.abs(out[0] - out[1]).max() > 1e-3


def test_onnx_answers_in_grades(tmp_path: Path) -> None:
    one = replace(saved(), task=Ordinal())
    session = onnxruntime.InferenceSession(export(one, "onnx", tmp_path / "m.onnx"))
    x = pixels(one, 3)
    [out] = session.run(None, {"pixels": x.numpy()})
    assert np.abs(out - expected(one, x)).max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "settings"), [("small_cnn", {}), ("timm", {"architecture": "test_resnet"})]
)
def test_torchscript_answers_like_the_network(tmp_path: Path, name, settings) -> None:
    one = saved(name, **settings) if name == "small_cnn" else saved(name, 3, 32, **settings)
    path = export(one, "torchscript", tmp_path / "m.pt")
    extra = dict.fromkeys(("labels", "preprocess", "model", "task", "name", "fingerprint"), "")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")
        loaded = torch.jit.load(io.BytesIO(path.read_bytes()), _extra_files=extra)
    for count in (1, 4):
        x = pixels(one, count)
        assert np.abs(loaded(x).detach().numpy() - expected(one, x)).max() <= 1e-5
    check_metadata({k: v.decode() if isinstance(v, bytes) else v for k, v in extra.items()}, one)


def test_safetensors_hold_the_weights_and_what_they_are_for(tmp_path: Path) -> None:
    one = saved()
    path = export(one, "safetensors", tmp_path / "m.safetensors")
    with safe_open(path, "pt") as file:
        check_metadata(file.metadata(), one)
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    fresh = saved()
    for value in fresh.module.parameters():
        value.data.zero_()
    fresh.module.load_state_dict(state)
    x = pixels(one, 3)
    assert np.array_equal(expected(fresh, x), expected(one, x))


def test_tied_and_shared_tensors_are_written_too(tmp_path: Path) -> None:
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    second.weight = first.weight
    one = Saved(
        torch.nn.Sequential(first, second),
        Preprocess(1, 2, 2),
        CLASSES,
        Classification(),
        "tied",
        "0",
    )
    path = export(one, "safetensors", tmp_path / "m.safetensors")
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("0.weight"), file.get_tensor("1.weight"))


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_the_extra(tmp_path: Path, monkeypatch, package) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FedSightError, match=f"'{package}'") as caught:
        export(saved(), "onnx", tmp_path / "m.onnx")
    assert "pip install 'fedsight[export]'" in caught.value.cure
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime_the_file_is_written_unchecked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export(saved(), "onnx", tmp_path / "m.onnx").stat().st_size > 1000


def test_a_file_that_answers_differently_is_not_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        ExportedModel,
        "forward",
        # What depends on the batch size in Python is a constant in a traced file.
        lambda self, x: torch.softmax(self.model(x) * (1.0 + len(x)), 1),
    )
    with pytest.raises(ModelError, match="deviates from the network"):
        export(saved(), "torchscript", tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []


def test_rounding_that_the_network_itself_amplifies_is_allowed(monkeypatch) -> None:
    one, model = saved(), ExportedModel(saved()).eval()
    noisy = ExportedModel(saved()).eval()
    original = ExportedModel.forward

    def forward(self: ExportedModel, x: torch.Tensor) -> torch.Tensor:
        exact = original(self, x)
        return exact + 1e-4 if self is model and x.dtype == torch.float32 else exact

    monkeypatch.setattr(ExportedModel, "forward", forward)
    exporting._compare(one, model, lambda x: noisy(x) - 2e-4, "ONNX")
    with pytest.raises(ModelError, match="deviates from the network"):
        exporting._compare(one, model, lambda x: noisy(x) - 2e-3, "ONNX")


def test_a_comparison_in_float64_leaves_the_network_as_it_was(tmp_path: Path, monkeypatch) -> None:
    one = saved("timm", 3, 32, architecture="test_efficientnet", norm="batch")
    before = {name: value.clone() for name, value in one.module.state_dict().items()}
    compared: list[torch.Tensor] = []

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        """As if the network amplified all rounding."""
        compared.append(b)
        return 1.0

    monkeypatch.setattr(exporting, "_apart", apart)
    export(one, "onnx", tmp_path / "m.onnx")
    assert len(compared) == 2 * 3  # two batches: the file, PyTorch and float64, each with each
    after = one.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    tensors = [*one.module.parameters(), *one.module.buffers()]
    assert not any(value.is_inference() for value in tensors), "it can still be trained"


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_a_network_that_cannot_be_expressed_is_an_error(
    tmp_path: Path, monkeypatch, format
) -> None:
    def broken(self: ExportedModel, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(ExportedModel, "forward", broken)
    with pytest.raises(ModelError, match=r"cannot be expressed in .*") as caught:
        export(saved(), format, tmp_path / "m")
    assert "safetensors" in caught.value.cure
    assert list(tmp_path.iterdir()) == []


def test_more_than_two_gibibytes_do_not_fit_into_onnx(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(exporting, "_ONNX_LIMIT", 100)
    with pytest.raises(ModelError, match="2 GiB"):
        export(saved(), "onnx", tmp_path / "m.onnx")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        export(saved(), "safetensors", tmp_path / "file" / "sub" / "m.safetensors")
    with pytest.raises(StoreError, match="cannot write"):
        export(saved(), "safetensors", tmp_path)
