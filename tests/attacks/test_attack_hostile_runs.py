"""A run folder from somebody else whose files hold what no run writes.

`report`, `predict`, `resume` and `load` read it, or refuse it by the file's name with a cure. They
ended with a traceback, or worse, answered: a network of weights that are not numbers finds nothing
in any image, and a model of one number is spread over all weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import done, write_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fedsight
from fedsight.coordinator import store
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import FedSightError, StoreError
from fedsight.inference import saved
from fedsight.report import page
from fedsight.runs.listing import listed
from fedsight.runs.sweeps import sweep

JSON = ("run.json", "summary.json", "evaluation.json", "comparison.json", "history.jsonl")
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 0.5, -1e308, 1e308, float("nan"), float("-inf"), 10**400),
    *("", "x", "\ud800<b>", [], {}, [[]], {"x": 1}, [1e308] * 3),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("theirs")


@pytest.fixture(scope="module")
def given_run(home: Path) -> Path:
    """A finished comparison of three sites."""
    done("compare", write_config(home), "--out", home / "run", "--workers", 1)
    return home / "run"


@pytest.fixture
def theirs(given_run: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(given_run, tmp_path / "run"))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in a JSON value; of a long list, the first ones."""
    yield path
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value[:2])
    for key, one in inner:
        yield from leaves(one, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A JSON value with another value at a place."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def read(folder: Path, name: str) -> Any:
    """What is in a file; of the history, its first line."""
    text = (folder / name).read_text()
    return json.loads(text.splitlines()[0] if name.endswith("l") else text)


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value) + "\n")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_a_file_holds_a_report_is_made_or_refused(
    given_run: Path, tmp_path: Path, data: st.DataObject
) -> None:
    folder = Path(shutil.copytree(given_run, tmp_path / "run", dirs_exist_ok=True))
    name = data.draw(st.sampled_from(JSON))
    value = read(folder, name)
    place = data.draw(st.sampled_from(sorted(leaves(value), key=str)))
    write(folder, name, replaced(value, place, data.draw(st.sampled_from(VALUES))))
    refused = ""
    try:
        page.build([folder])
    except StoreError as error:
        refused = error.cause
    assert name in refused or not refused


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("summary.json", ("bytes_up",), 10**400),
        ("summary.json", ("rounds",), 0),
        ("summary.json", ("score",), 1e100),
        ("history.jsonl", ("loss",), 1e308),
        ("history.jsonl", ("round",), 10**400),
        ("evaluation.json", ("confusion", 0, 0), 10**30),
    ],
)
def test_a_number_of_any_size_is_shown_in_a_few_digits(
    theirs: Path, name: str, place: tuple[Any, ...], value: Any
) -> None:
    write(theirs, name, replaced(read(theirs, name), place, value))
    assert "0" * 30 not in page.build([theirs]).read_text()


# Weights and checkpoints --------------------------------------------------------------------------


def weights(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change the first tensor of the model."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    save_file({**tensors, name: change(tensors[name])}, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(
    theirs: Path, home: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights(theirs, lambda tensor: torch.full_like(tensor, value))
    (theirs / "trust.json").unlink()  # which would be refused first, as another model's
    image = torch.zeros(1, 1, 8, 8)
    with pytest.raises(StoreError, match=r"model\.safetensors holds weights that are not finite"):
        fedsight.load(theirs).predict(image)
    monkeypatch.setattr(saved.torch, "isfinite", lambda tensor: torch.ones(1))
    (answer,) = fedsight.load(theirs).predict(image)
    assert answer.error is None, "the first class, as if it were an answer"


@pytest.mark.parametrize("classes", [[1, 2, 3, 4], [None] * 4, [["a"]] * 4])
def test_names_of_classes_that_are_no_texts_are_refused(theirs: Path, classes: Any) -> None:
    write(theirs, "run.json", {**read(theirs, "run.json"), "classes": classes})
    with pytest.raises(StoreError, match=r"run\.json is broken"):
        fedsight.load(theirs).predict(torch.zeros(1, 1, 8, 8))


CHECKPOINTS: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]] = {
    "a round of text": ({"round": "1"}, {}),
    "a round below 0": ({"round": -1}, {}),
    "a round after the last": ({"round": 99}, {}),
    "seconds of text": ({"seconds": "x"}, {}),
    "no number of bytes": ({"bytes_up": 0.5}, {}),
    "a line that is no object": ({"unmeasured": 7}, {}),
    "a short model": ({}, {"vector": torch.zeros(3)}),
    "a model of one number": ({}, {"vector": torch.zeros(1)}),
    "a model that is not finite": ({}, {"vector": torch.full((1,), float("nan"))}),
    "a model of integers": ({}, {"vector": torch.zeros(3, dtype=torch.int64)}),
    "a short state": ({}, {"state.velocity": torch.zeros(1)}),
}


@pytest.fixture(scope="module")
def with_state(home: Path) -> Path:
    """A run whose algorithm keeps a state at the coordinator."""
    config = write_config(home, "state", algorithm={"name": "fedavgm"}, rounds={"rounds": 1})
    done("run", config, "--out", home / "state", "--workers", 1)
    return home / "state"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_is_not_of_this_program_is_refused(
    given_run: Path, with_state: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(with_state if "state" in name else given_run, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    path = tmp_path / "run" / "checkpoint.safetensors"
    meta, changed = CHECKPOINTS[name]
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["fedsight"])
    tensors = load_file(path)
    assert changed.keys() <= tensors.keys()
    save_file({**tensors, **changed}, path, {"fedsight": json.dumps({**told, **meta})})
    with pytest.raises(StoreError, match=r"checkpoint") as caught:
        fedsight.resume(tmp_path / "run", workers=1)
    assert caught.value.cure


LOSSES = {
    "too few": torch.zeros(1, dtype=torch.float64),
    "of two numbers each": torch.zeros(3, 2, dtype=torch.float64),
    "one number": torch.tensor(1.0, dtype=torch.float64),
    "whole numbers": torch.zeros(3, dtype=torch.int64),
}


def test_losses_that_are_not_one_number_for_each_site_are_refused(
    home: Path, tmp_path: Path
) -> None:
    """They decide who takes part next (power of choice)."""
    tables = {"rounds": {"rounds": 1, "cohort": 1}, "participation": {"name": "power-of-choice"}}
    done("run", write_config(home, "losses", **tables), "--out", home / "losses", "--workers", 1)
    for name, value in LOSSES.items():
        folder = Path(shutil.copytree(home / "losses", tmp_path / name))
        (folder / "summary.json").unlink()
        path = folder / "checkpoint.safetensors"
        with safe_open(path, "pt") as file:
            told = file.metadata()
        assert "losses" in load_file(path)
        save_file({**load_file(path), "losses": value}, path, told)
        load = partial(fedsight.resume, folder, workers=1)
        if name != "too few":  # for this program; the others are for none
            load = RunStore(folder).load_checkpoint
        with pytest.raises(StoreError, match=r"the losses of the sites") as caught:
            load()
        assert caught.value.cure


@pytest.mark.parametrize("value", VALUES)
def test_no_run_keeps_the_others_from_being_listed(theirs: Path, value: Any) -> None:
    for name in ("summary.json", "run.json", "history.jsonl"):
        told = read(theirs, name)
        write(theirs, name, dict.fromkeys(told, value))
    assert [one.folder for one in listed(theirs.parent)] == [theirs]


@pytest.fixture(scope="module")
def given_sweep(home: Path) -> Path:
    """A finished sweep of two runs."""
    made = fedsight.sweep(
        write_config(home, "swept", rounds={"rounds": 1}),
        {"train.lr": [0.1, 0.05]},
        out=home / "sweep",
        jobs=1,
    )
    return made.folder


@pytest.mark.parametrize(
    ("name", "place", "values"),
    [
        ("sweep.json", ("configurations", 0, "settings"), (True, 1e308, "x")),
        ("summary.json", ("score",), ("x", 10**400, float("nan"))),
        ("summary.json", ("bytes_up",), (None, {}, True)),
        ("summary.json", ("headline",), ({}, None)),
        ("run.json", ("data",), (True, 7, {})),
    ],
)
def test_a_sweep_that_holds_what_no_run_writes_is_refused(
    given_sweep: Path, tmp_path: Path, name: str, place: tuple[Any, ...], values: tuple[Any, ...]
) -> None:
    for number, value in enumerate(values):
        folder = Path(shutil.copytree(given_sweep, tmp_path / str(number)))
        told = read(folder, "sweep.json")
        told.pop("differences")  # as if it had been interrupted just before its end
        write(folder, "sweep.json", told)
        of = folder if name == "sweep.json" else folder / told["cells"][0]["run"]
        write(of, name, replaced(read(of, name), place, value))
        with pytest.raises(StoreError, match=name.replace(".", r"\.")) as caught:
            sweep.resume(folder, jobs=1)
        assert caught.value.cure


@pytest.mark.parametrize("parent", [7, [], "x", {}, {"fingerprint": None}])
def test_a_parent_that_no_extension_writes_is_passed_over(theirs: Path, parent: Any) -> None:
    write(theirs, "run.json", {**read(theirs, "run.json"), "parent": parent})
    assert fedsight.resume(theirs, workers=1).summary["rounds"] == 2


@pytest.mark.parametrize("rounds", [None, "9", -1, 0, 2, 1e9, True])
def test_an_extension_to_no_number_of_rounds_is_refused(theirs: Path, rounds: Any) -> None:
    facts = read(theirs, "run.json")
    parent = {"fingerprint": facts["fingerprint"], "extended_to": rounds}
    write(theirs, "run.json", {**facts, "parent": parent})
    (theirs / "summary.json").unlink()
    with pytest.raises(StoreError, match=r"run\.json is broken: parent\.extended_to"):
        fedsight.resume(theirs, workers=1)


@pytest.mark.parametrize("value", ["x", None, 1.5, [1]])
def test_a_history_whose_rounds_are_no_numbers_is_refused(theirs: Path, value: Any) -> None:
    write(theirs, "history.jsonl", {"round": value})
    with pytest.raises(StoreError, match=r"history\.jsonl is broken"):
        RunStore(theirs).history()


def test_a_memory_with_other_files_in_it_is_read(tmp_path: Path) -> None:
    """Names that begin with a digit and are no version."""
    memory = RunStore(tmp_path).memory / "a"
    memory.mkdir(parents=True)
    for stem in ("0x", "1²", "000001"):
        save_file({"a": torch.ones(1)}, memory / f"{stem}.safetensors")
    from fedsight.client.memory import MemoryStore

    assert MemoryStore(tmp_path / "memory").load("a", 5)["a"].tolist() == [1.0]
    MemoryStore(tmp_path / "memory").rewind(1)


def test_what_another_build_believed(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks, the same files end in an error that nobody wrote."""
    monkeypatch.setattr(store, "_require_sound", lambda found: None)
    path = theirs / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["fedsight"])
    save_file(load_file(path), path, {"fedsight": json.dumps({**told, "round": "1"})})
    (theirs / "summary.json").unlink()
    with pytest.raises(Exception, match=r"not supported|must be") as caught:
        fedsight.resume(theirs, workers=1)
    assert not isinstance(caught.value, FedSightError)
