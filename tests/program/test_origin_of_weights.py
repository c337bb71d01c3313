"""Weights of other classes: a head that means something else is never taken over unsaid."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import done
from PIL import Image
from safetensors.torch import load_file

from fedsight.inference.export import export
from fedsight.inference.saved import load as load_run
from fedsight.models.origin import classes_of
from fedsight.program.config import load
from fedsight.program.federation import Federation, federate


def folders(root: Path, names: tuple[str, ...]) -> Path:
    """Eight images of each class, and a config."""
    for number, name in enumerate(names):
        (root / "images" / name).mkdir(parents=True)
        for at in range(8):
            image = Image.new("L", (16, 16), 60 * number + 3 * at)
            image.save(root / "images" / name / f"{at}.png")
    config = root / "c.toml"
    config.write_text(
        '[data]\nname = "folder"\npath = "images"\nsize = 16\n[split]\nsites = 2\n'
        "[rounds]\nrounds = 1\n"
    )
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on cats and dogs."""
    root = tmp_path_factory.mktemp("first")
    done("run", folders(root, ("cat", "dog")), "--workers", 1, "--out", root / "run")
    return root / "run"


def started(root: Path, names: tuple[str, ...], weights: Path) -> Federation:
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    sets = [f"model.weights={weights}", f"model.sha256={sha256}"]
    return federate(load(folders(root, names), sets)[0])


def head(federation: Federation) -> torch.Tensor:
    return federation.network.module.get_parameter("head.weight").detach()


def test_the_same_classes_take_over_the_whole_model(finished: Path, tmp_path: Path) -> None:
    path = finished / "model.safetensors"
    again = started(tmp_path, ("cat", "dog"), path)
    assert again.network.notes == ()
    assert torch.equal(head(again), load_file(path)["head.weight"])


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("names", [("ant", "bee"), ("ant", "bee", "cat")])
def test_other_classes_begin_with_a_new_head(
    finished: Path, tmp_path: Path, names: tuple[str, ...], exported: bool
) -> None:
    path = finished / "model.safetensors"
    if exported:
        path = export(load_run(finished), "safetensors", tmp_path / "e.safetensors")
    assert classes_of(path) == ("cat", "dog")
    federation = started(tmp_path, names, path)
    [note] = federation.network.notes
    assert "the head is newly initialised" in note
    assert "trained for cat, dog, and these data have ant, bee" in note
    state, module = load_file(path), federation.network.module
    assert not torch.equal(head(federation)[:2], state["head.weight"])
    assert torch.equal(module.get_parameter("conv0.weight"), state["conv0.weight"])


def test_another_order_is_said(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    facts: dict[str, Any] = json.loads((tmp_path / "run" / "run.json").read_text())
    facts["classes"].reverse()
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    path = tmp_path / "run" / "model.safetensors"
    [note] = started(tmp_path, ("cat", "dog"), path).network.notes
    assert "in another order: dog, cat" in note


def test_a_file_that_states_no_classes(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(finished / "model.safetensors", path)
    assert classes_of(path) is None
    (tmp_path / "run.json").write_text("[")
    assert classes_of(path) is None
    assert classes_of(tmp_path / "none.pth") is None


def test_check_and_run_say_it_once_and_the_report_too(finished: Path, tmp_path: Path) -> None:
    config, path = folders(tmp_path, ("ant", "bee")), finished / "model.safetensors"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    sets = ("--set", f"model.weights={path}", "--set", f"model.sha256={sha256}")
    words = "the head is newly initialised"
    assert done("check", config, *sets).out.count(words) == 1
    answer = done("run", config, *sets, "--workers", 1, "--out", tmp_path / "run")
    assert answer.said.count(words) == 1
    assert words in (tmp_path / "run" / "report.html").read_text()
    assert words in json.loads((tmp_path / "run" / "run.json").read_text())["model"]["notes"][0]
