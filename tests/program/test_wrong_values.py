"""Wrong values, files and names: one sentence in the user's words, with culprit and cure."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsight.core.errors import ConfigError, DataError, ModelError
from fedsight.data.detection import coco
from fedsight.models.weights import read_weights
from fedsight.program import misread
from fedsight.program.config import SECTIONS, change, check, load

DATA = '[data]\nname = "folder"\npath = "images"\n'
# A library's words, which say nothing of the user's file.
FOREIGN = ("input should", "validation", "valid integer", "Errno", "Expected '='", "pydantic")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "c.toml").write_text(DATA)
    return tmp_path / "c.toml"


def said(config: Path, *sets: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(*load(config, sets))
    text = str(caught.value)
    assert not [words for words in FOREIGN if words in text]
    return text


@pytest.mark.parametrize(
    ("given", "cause", "cure"),
    [
        ("data.size=big", "expected a whole number; or: expected a list", "leave it out for 32"),
        ("data.size=[1,2,3]", "at most 2 values, and there are 3", ""),
        ("data.path=3", "data.path: 3 does not fit: expected a path in quotes", ""),
        ("split.sites=true", "true does not fit: expected a whole number", "leave it out for 10"),
        ("train.batch=2.5", "2.5 does not fit: expected a whole number", "leave it out for 32"),
        ("train.lr=0,1", "'0,1' does not fit: expected a number", "write 0.1, with a point"),
        ('train.lr="0.1"', "'0.1' does not fit", "write 0.1, without quotes"),
        ("train.lr=nan", "expected a finite number", "leave it out for 0.05"),
        ("train.momentum=1.5", "1.5 does not fit: expected less than 1", "0.0"),
        ("train.optimiser=adam", "expected one of 'sgd', 'adamw'", "sgd"),
        ("train.only=head", "expected a list", 'write ["head"]'),
        ("train.groups=3", "expected a list", ""),
        ("data.sites_in_path=yes", "expected true or false", "write true"),
        ("rounds.rounds=0", "expected at least 1", "leave it out for 20"),
        ("model.norm=layer", "expected one of 'auto', 'group', 'batch', 'frozen'", "auto"),
        ("model.width=10", "expected a multiple of 4", "16"),
        ("seed=x", "'x' is not a whole number", "write seed = 0"),
        ("train.lr", "'train.lr' is not of the form key=value", "--set train.lr=0.1"),
        ("train.augment=[flip,shift]", "[flip,shift] is not a list", "in single quotes"),
        ('name="x', '"x is not a text in quotes', "close the quotes"),
        ("model.name=resnet18", "no model 'resnet18'", 'name = "torchvision" and architecture'),
        ("model.name=torchvision:resnet18", "no model", 'architecture = "resnet18"'),
        ("model.name=resnet10t", "no model", 'name = "timm" and architecture = "resnet10t"'),
        ("model.name=small_cn", "no model", "did you mean 'small_cnn'?"),
        ("model.architecture=resnet18", "no such setting", 'model.name = "torchvision"'),
        ("model=resnet18", "model is a section", 'architecture = "resnet18"'),
        ("model=unet", "model is a section", "name = 'unet'"),
        ("model.name=./mine.py", "no model './mine.py'", 'plugins = ["FILE.py"] at the top'),
        ("train.learning_rate=1", "no such setting", "it is called train.lr here"),
        ("train.batch_size=1", "no such setting", "it is called train.batch here"),
        ("num_rounds=3", "no such setting", "it is called rounds.rounds here"),
        ("model.freeze=true", "no such setting", "it is called train.only here"),
        ("data.image_size=32", "no such setting", "it is called data.size here"),
    ],
)
def test_a_wrong_value_has_culprit_and_cure(
    config: Path, given: str, cause: str, cure: str
) -> None:
    text = said(config, given)
    assert cause in text
    assert cure in text


def test_every_other_name_leads_to_a_setting_that_there_is() -> None:
    for meant in misread._SYNONYMS.values():
        section, _, key = meant.rpartition(".")
        kind = SECTIONS.get(section)
        if isinstance(kind, tuple):
            parts = [kind[0].get(name) for name in kind[0].names()]
            assert any(key in part.model_fields for part in parts), meant
        else:
            assert key == "seed" if kind is None else key in kind.model_fields, meant


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("timm", "resnet-18", "resnet18"),
        ("timm", "efficientnetb0", "efficientnet_b0"),
        ("torchvision", "ResNet18", "resnet18"),
    ],
)
def test_an_unknown_architecture_names_the_nearest(
    config: Path, name: str, wrong: str, right: str
) -> None:
    text = said(config, f"model.name={name}", f"model.architecture={wrong}")
    assert f"did you mean '{right}'?" in text


@pytest.mark.parametrize(
    ("name", "content", "cause", "cure"),
    [
        ("c.yaml", "data:\n  name: folder\n", "is YAML, and a config is a TOML file", "[data]"),
        ("c.json", '{"data": {}}', "is JSON, and a config is a TOML file", "[data]"),
        ("photo.png", "\x89PNG", "is an image, not a config file", "data.path"),
        ("none.toml", None, "there is no config file", "TOML"),
        ("c.txt", "[data\n", "is not TOML", "sections as [train]"),
        ("c.toml", "data:\n  name: folder\n", "line 1: 'data:' is YAML", "[data]"),
        ("c.toml", '{"data": 1}', "is JSON, and a config is a TOML file", "[data]"),
        ("c.toml", "[train]\nlr = 0,1\n", "line 2: 'lr = 0,1' has a number with a comma", "0.1"),
        ("c.toml", '[data]\npath = "img\n', "line 2: 'path = \"img' opens quotes", "close"),
        ("c.toml", "rounds = 5\n[rounds]\nquorum = 2\n", "names something again", "once"),
        ("c.toml", "[data]\nname = folder\n", "line 2: 'name = folder' has a text", "quotes"),
        ("c.toml", "[data]\nverify = True\n", "is not a value of TOML", "true or false"),
    ],
)
def test_a_file_that_is_no_config(
    tmp_path: Path, name: str, content: str | None, cause: str, cure: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    text = said(tmp_path / name)
    assert f"{tmp_path / name} {cause}" in text or cause in text
    assert cure in text


@pytest.mark.parametrize(
    ("text", "cause", "cure"),
    [
        ('data = "images"\n', "data is a section", 'name = "folder" and path = "images"'),
        ('data = "my/images"\n', "data is a section", 'path = "my/images"'),
        ('[[data]]\nname = "folder"\n', "data is a list of tables", "[data] with single brackets"),
        (DATA + '[rounds]\nmodel = "unet"\n', "rounds.model", "write [model] and its settings"),
        (DATA + "[rounds]\nseed = 1\n", "rounds.seed", "at the top of the file"),
        (DATA + "[rounds]\nlr = 1\n", "rounds.lr", "It belongs under [train]"),
        (DATA + "augment = []\n", "data.augment", "It belongs under [train]"),
        ("quorum = 2\n" + DATA, "quorum: there is no such setting", "under [rounds]"),
    ],
)
def test_what_stands_in_the_wrong_place_is_sent_to_the_right_one(
    config: Path, text: str, cause: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    config.write_text(text)
    words = said(config)
    assert cause in words
    assert cure in words


def test_a_folder_is_no_config(config: Path) -> None:
    text = said(config.parent / "images")
    assert "is a folder, not a config file" in text
    assert 'name = "folder"' in text
    assert f"give {config}" in said(config.parent)


@pytest.mark.parametrize(
    ("name", "title"),
    [("m.h5", "a Keras or HDF5 file"), ("m.onnx", "an ONNX file"), ("m.tflite", "TensorFlow Lite")],
)
def test_weights_of_another_framework(config: Path, name: str, title: str) -> None:
    (config.parent / name).write_bytes(b"anything")
    text = said(config, f"model.weights={name}", "model.sha256=00000000")
    assert title in text
    assert ".safetensors" in text


def test_a_folder_as_weights_names_the_file_in_it(config: Path) -> None:
    (config.parent / "run").mkdir()
    (config.parent / "run" / "model.safetensors").write_bytes(b"")
    text = said(config, "model.weights=run", "model.sha256=00000000")
    assert "is a folder, not a file of weights" in text
    assert str(config.parent / "run" / "model.safetensors") in text


@pytest.mark.parametrize(
    "words",
    [
        ("model.weights=" + "a" * 300, "model.sha256=00000000"),
        ("algorithm.name=ridge", "algorithm.earlier=" + "a" * 300),
    ],
)
def test_a_name_that_no_file_can_have(config: Path, words: tuple[str, ...]) -> None:
    assert "cannot be opened: File name too long" in said(config, *words)


@pytest.mark.parametrize("whole", [True, False])
def test_a_pickle_with_more_than_tensors(tmp_path: Path, whole: bool) -> None:
    """A whole model saved with torch.save, and a plain pickle."""
    path = tmp_path / "m.pt"
    content: Any = torch.nn.Linear(2, 2) if whole else None
    if whole:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(ModelError) as caught:
        read_weights(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert "weights_only" not in str(caught.value)
    if whole:
        assert "holds Python objects" in caught.value.cause
        assert "state_dict()" in caught.value.cure


@pytest.mark.parametrize(("content", "what"), [([1, 2], "a list"), (3, "a single value")])
def test_a_coco_file_that_is_no_object(tmp_path: Path, content: object, what: str) -> None:
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"top level is {what}"):
        coco.read_coco(path)


def test_lists_and_texts_in_sets_are_toml() -> None:
    table = change({}, ['train.augment=["flip", "erase"]', "name='it is'", "data.path=a b"])
    assert table == {
        "train": {"augment": ["flip", "erase"]},
        "name": "it is",
        "data": {"path": "a b"},
    }
