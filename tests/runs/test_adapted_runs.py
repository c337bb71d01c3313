"""A run with an adapter, from the config file to the model that other programs read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import federations
import numpy as np
import onnxruntime
import pytest
import timm
import torch
from command_line import done, history, read, refused, same, write_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fedsight as fs
from fedsight.coordinator.store import RunStore
from fedsight.core.layout import Kind
from fedsight.engines.protected import adopted_bytes
from fedsight.inference import saved
from fedsight.inference.export import export
from fedsight.models.low_rank import PLACE, merged
from fedsight.program.config import load
from fedsight.program.federation import Federation, federate

EVERY = ["lora", "ffa-lora", "bias"]
# Adapters by name, and the algorithm that needs one.
SECTIONS = {name: {"adapter": {"name": name}} for name in EVERY} | {
    "fedex-lora": {"adapter": {"name": "lora"}, "algorithm": {"name": "fedex-lora"}}
}
ROUNDED = {"secagg": {"name": "secagg", "dropout": 0.3}, "plain": {"name": "quantised"}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapted")


@pytest.fixture(scope="module")
def pretrained(home: Path) -> dict[str, Any]:
    """A network of timm with weights from a file, as users have it."""
    torch.manual_seed(0)
    path = home / "weights.safetensors"
    save_file(timm.create_model("test_efficientnet", in_chans=1, num_classes=7).state_dict(), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "name": "timm",
        "architecture": "test_efficientnet",
        "weights": str(path),
        "sha256": sha256,
    }


@pytest.fixture(scope="module", params=EVERY)
def adapted(request: pytest.FixtureRequest, home: Path, pretrained: dict[str, Any]) -> Path:
    """A finished run from pretrained weights."""
    name = request.param
    sections = {"data": {"size": 32}, "split": {"name": "iid", "sites": 2}, "rounds": {"rounds": 1}}
    path = write_config(home, name, model=pretrained, **SECTIONS[name], **sections)
    done("run", path, "--workers", 1, "--out", home / "runs" / name)
    return home / "runs" / name


def images(count: int = 9) -> torch.Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(5))


def test_bytes_of_each_round_are_those_of_the_adapter_and_the_head(adapted: Path) -> None:
    of = federate(RunStore(adapted).program()[0])
    network = of.network
    learnt = {n: v for n, v in network.module.named_parameters() if n not in network.frozen}
    assert network.head < learnt.keys()
    values = sum(value.numel() for value in learnt.values())
    facts = read(adapted, "run.json")["model"]
    assert facts["travelling"] == values < facts["frozen"]
    # Once, before the first round: only the coordinator has the weights.
    kept = 2 * adopted_bytes(of)
    assert kept >= 2 * 4 * facts["frozen"]
    for number, line in enumerate(history(adapted)):
        assert line["bytes_up"] == 2 * 4 * values
        assert line["bytes_down"] == 2 * 4 * values + (0 if number else kept)


def test_only_the_adapter_and_the_head_have_changed(
    adapted: Path, pretrained: dict[str, Any]
) -> None:
    before, after = load_file(pretrained["weights"]), load_file(adapted / "model.safetensors")
    biases = adapted.name == "bias"
    kept = 0
    for name, value in before.items():
        place = name.replace(".weight", f".{PLACE}.original")
        now = after.get(name, after.get(place))
        if now is None or name.startswith("classifier") or (biases and name.endswith("bias")):
            continue
        assert torch.equal(now, value), name
        kept += 1
    assert kept >= 10


@pytest.mark.parametrize("adapted", SECTIONS, indirect=True)
def test_the_model_opens_merged_and_answers_as_the_run_measured(adapted: Path) -> None:
    one = saved.load(adapted)
    assert not any(PLACE in name for name in one.module.state_dict())
    run = fs.load(adapted)
    assert not run.model.training
    with torch.no_grad():
        assert run.model(images()).shape == (9, 4)
    assert read(adapted)["score"] == history(adapted)[-1]["score"]


@pytest.mark.parametrize("adapted", SECTIONS, indirect=True)
def test_its_exported_weights_load_into_the_plain_network_of_timm(
    adapted: Path, tmp_path: Path
) -> None:
    one = saved.load(adapted)
    state = load_file(export(one, "safetensors", tmp_path / "m.safetensors"))
    plain = timm.create_model("test_efficientnet", in_chans=1, num_classes=4).eval()
    plain.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(plain(images()), one.module(images()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("adapted", ["lora"], indirect=True)
def test_its_onnx_file_answers_alike(adapted: Path, tmp_path: Path) -> None:
    one = saved.load(adapted)
    path = export(one, "onnx", tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [out] = session.run(None, {"pixels": images().numpy()})
    with torch.no_grad():
        answers = one.task.predict(one.module, one.preprocess.normalise(images()))
    np.testing.assert_allclose(out, answers.numpy(), atol=1e-5)


@pytest.mark.parametrize("adapted", SECTIONS, indirect=True)
def test_another_run_can_start_from_its_model_file(adapted: Path, home: Path) -> None:
    path = adapted / "model.safetensors"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    start = {"name": "timm", "architecture": "test_efficientnet", "weights": str(path)}
    config = write_config(home, "next", model={**start, "sha256": sha256}, data={"size": 32})
    network = federate(load(config)[0]).network
    one = saved.load(adapted)
    with torch.no_grad():
        x = images()
        torch.testing.assert_close(network.module.eval()(x), one.module(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_run_that_goes_on_ends_with_the_bits_of_the_whole_and_its_baselines(
    home: Path, name: str
) -> None:
    sections = SECTIONS[name]
    if name != "bias":
        sections = {**sections, "adapter": {**sections["adapter"], "rank": 2}}
    path = write_config(home, f"{name}-whole", **sections)
    part, whole = home / f"{name}-part", home / f"{name}-whole"
    done("compare", path, "--rounds", 1, "--workers", 1, "--out", part)
    done("compare", path, "--rounds", 2, "--workers", 1, "--out", whole)
    done("resume", part, "--rounds", 2, "--workers", 1)
    same(part, whole)
    comparison = read(whole, "comparison.json")
    assert set(comparison["alone"]) == {"site-00", "site-01", "site-02"}
    assert comparison["pooled"]["score"] is not None


def test_a_run_and_check_say_how_much_learns_and_travels(home: Path) -> None:
    path = write_config(home, "said", adapter={"name": "lora", "rank": 1})
    line = "parameters learn and"
    answer = done("check", path)
    [said] = [one for one in answer.said.splitlines() if line in one]
    assert said in done("run", path, "--workers", 1, "--out", home / "said").said
    values = read(home / "said", "run.json")["model"]["travelling"]
    assert said.startswith(f"{values:,} of ")
    assert f"and {values:,} travel: in a round a site receives" in said
    assert line not in done("check", write_config(home, "whole")).said


def test_masked_training_ends_with_the_bits_of_the_same_rounding_without_masks() -> None:
    for adapter in EVERY:
        masked, plain = (
            federations.learn(federations.federation(adapter={"name": adapter}, secure=secure))
            for secure in ROUNDED.values()
        )
        assert federations.sha(masked.vector) == federations.sha(plain.vector)


def test_ffa_lora_of_one_round_is_the_mean_of_the_sites_merged_weights() -> None:
    """Through the real loop: what averaging B does to the merged weights, to rounding."""
    of = federations.federation(
        adapter={"name": "ffa-lora", "rank": 2}, rounds={"rounds": 1, "weighting": "uniform"}
    )
    together = weights_of(of, federations.learn(of).vector)
    each = []
    for site in range(of.population):
        alone = of.alone(site)
        each.append(weights_of(of, federations.learn(alone).vector))
    for name, value in together.items():
        mean = torch.stack([one[name] for one in each]).mean(0)
        torch.testing.assert_close(value, mean, atol=1e-6, rtol=0)


def weights_of(of: Federation, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    return merged(of.layout.state_dict(vector))


def test_dp_sgd_takes_the_gradients_of_the_adapter_alone() -> None:
    privacy = {"name": "example", "noise_multiplier": 1.0, "clip": 1.0}
    of = federations.federation(adapter={"name": "lora"}, privacy=privacy)
    before, after = of.initial, federations.learn(of).vector
    for entry in of.layout.entries:
        moved = not torch.equal(entry.view(after), entry.view(before))
        assert moved == (entry.kind == Kind.SHARED), entry.name


def test_an_algorithm_without_gradients_is_refused(home: Path) -> None:
    path = write_config(
        home, "ridge", algorithm={"name": "ridge"}, rounds={"rounds": 1}, adapter={"name": "lora"}
    )
    said = refused(2, "check", path)
    assert "adapter.name: ridge trains nothing by gradients" in said


def test_an_unknown_adapter_and_setting_are_refused(home: Path) -> None:
    assert "did you mean 'lora'?" in refused(
        2, "check", write_config(home, "a", adapter={"name": "lorra"})
    )
    said = refused(2, "check", write_config(home, "b", adapter={"name": "bias", "rank": 2}))
    assert "adapter.rank: there is no such setting" in said


def test_the_metadata_of_an_export_says_the_network(adapted: Path, tmp_path: Path) -> None:
    path = export(saved.load(adapted), "safetensors", tmp_path / "m.safetensors")
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["model"])["architecture"] == "test_efficientnet"
