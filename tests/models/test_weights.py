"""Pretrained weights: hashes, formats, heads, first layers, and what does not fit."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedsight.core.errors import ModelError
from fedsight.models.base import Network, models
from fedsight.models.weights import load_weights, read_weights


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def small(channels: int = 1, classes: int = 10, seed: int = 0, **settings) -> Network:
    return models.get("small_cnn")(**settings).build(channels, 8, 8, classes, seed)


def saved(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path) if path.suffix == ".pth" else save_file(state, path)
    return path


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("digits", [8, 64])
def test_a_fitting_file_is_loaded_whole(tmp_path: Path, name: str, digits: int) -> None:
    source = small(seed=1)
    path = saved(source.module.state_dict(), tmp_path / name)
    network = small(seed=2, weights=str(path), sha256=digest(path)[:digits].upper())
    assert network.notes == ()
    for key, value in source.module.state_dict().items():
        assert torch.equal(network.module.state_dict()[key], value)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_wrapped_table_is_unwrapped(tmp_path: Path, key: str) -> None:
    path = tmp_path / "w.pth"
    torch.save({key: {"a": torch.ones(2)}, "epoch": 3}, path)
    assert list(read_weights(path, digest(path))) == ["a"]


def test_a_head_for_other_classes_starts_afresh_with_a_note(tmp_path: Path) -> None:
    source = small(classes=5, seed=1)
    path = saved(source.module.state_dict(), tmp_path / "w.pth")
    network, fresh = small(seed=2, weights=str(path), sha256=digest(path)), small(seed=2)
    assert "head is newly initialised" in network.notes[0]
    assert torch.equal(network.module.head.weight, fresh.module.head.weight)
    assert torch.equal(network.module.conv0.weight, source.module.conv0.weight)


def test_a_file_without_a_head_will_do(tmp_path: Path) -> None:
    state = {k: v for k, v in small().module.state_dict().items() if not k.startswith("head")}
    path = saved(state, tmp_path / "w.safetensors")
    assert small(weights=str(path), sha256=digest(path)).notes


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_colour_weights_answer_alike_on_equal_channels(tmp_path: Path, channels: int) -> None:
    source = small(channels=3, seed=1)
    path = saved(source.module.state_dict(), tmp_path / "w.pth")
    network = small(channels, weights=str(path), sha256=digest(path))
    assert "3 channels became" in network.notes[0]
    grey = torch.rand(2, 1, 8, 8)
    expected = source.module(grey.expand(2, 3, 8, 8))
    assert torch.allclose(network.module(grey.expand(2, channels, 8, 8)), expected, atol=1e-5)


def test_batch_norm_weights_start_a_group_norm_network(tmp_path: Path) -> None:
    source = small(norm="batch", seed=1)
    source.module.norm0.weight.data.fill_(3)
    path = saved(source.module.state_dict(), tmp_path / "w.pth")
    network = small(norm="group", weights=str(path), sha256=digest(path))
    assert network.module.norm0.weight.eq(3).all()
    assert "statistics were left out" in network.notes[0]
    kept = small(norm="batch", weights=str(path), sha256=digest(path))
    assert kept.notes == ()


def test_side_heads_in_the_file_are_left_out(tmp_path: Path) -> None:
    state = {**small().module.state_dict(), "aux1.fc.weight": torch.ones(2)}
    path = saved(state, tmp_path / "w.pth")
    assert "auxiliary heads" in small(weights=str(path), sha256=digest(path)).notes[0]


def test_misfits_are_named(tmp_path: Path) -> None:
    state = small().module.state_dict()
    del state["norm1.bias"]
    state["conv1.weight"] = torch.ones(2, 2)
    state["conv7.weight"] = torch.ones(1)
    path = saved(state, tmp_path / "w.pth")
    with pytest.raises(ModelError) as caught:
        small(weights=str(path), sha256=digest(path))
    for piece in (
        "1 missing (norm1.bias)",
        "conv1.weight (2, 2) instead of (32, 16, 3, 3)",
        "1 unknown to the model (conv7.weight)",
        str(path),
    ):
        assert piece in caught.value.cause


def test_batch_norm_needs_its_statistics(tmp_path: Path) -> None:
    path = saved(small().module.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"4 missing \(norm0.running_mean"):
        small(norm="batch", weights=str(path), sha256=digest(path))


def test_a_deeper_sibling_is_refused(tmp_path: Path) -> None:
    path = saved(small(blocks=3).module.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"unknown to the model \(conv2.weight"):
        small(weights=str(path), sha256=digest(path))


def test_another_hash_is_refused(tmp_path: Path) -> None:
    path = saved(small().module.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=f"SHA-256 {digest(path)}, not 00000000"):
        small(weights=str(path), sha256="00000000")
    with pytest.raises(ModelError, match="no hash to check"):
        small(weights=str(path))
    with pytest.raises(ModelError, match="cannot be read"):
        small(weights=str(tmp_path / "none.pth"), sha256="00000000")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", None])
def test_a_corrupt_file_is_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = saved(small().module.state_dict(), tmp_path / name)
    path.write_bytes(path.read_bytes()[:5000] if content is None else content)
    with pytest.raises(ModelError, match=r"cannot be read"):
        small(weights=str(path), sha256=digest(path))


class Harm:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit",))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": Harm()}, path)
    with pytest.raises(ModelError, match="cannot be read"):
        read_weights(path, digest(path))


@pytest.mark.parametrize("content", [[torch.ones(1)], {"a": 3}])
def test_something_else_than_a_table_of_tensors_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(ModelError, match="not a table of tensors"):
        read_weights(path, digest(path))


def test_a_grouped_first_layer_is_not_adapted(tmp_path: Path) -> None:
    path = saved({"0.weight": torch.ones(4, 1, 1, 1)}, tmp_path / "w.pth")
    module = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4, bias=False))
    assert load_weights(module, path, digest(path), frozenset()) == ()
    assert module[0].weight.eq(1).all()
