"""The run folder: nothing of a stranger's is touched, and what is written is whole or absent."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federations
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from fedsight.coordinator.store import Checkpoint, RunStore
from fedsight.core.errors import StoreError
from fedsight.program.program import Speed

PROGRAM = federations.program()
FACTS = {"fingerprint": PROGRAM.fingerprint}


def checkpoint(round: int = 3) -> Checkpoint:
    vector = torch.arange(5.0) + round
    sums = torch.tensor([[2**62 + round, -(2**63)]])  # integers that no float holds
    state = {"m": vector * 2, "v.w": vector * 3, "sums": sums}
    return Checkpoint(round, vector, state, 1.5, 10, 20)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    one = RunStore(tmp_path / "run")
    one.folder.mkdir()
    return one


# ---------------------------------------------------------------- whose folder it is


def created(folder: Path, program: Any = PROGRAM) -> RunStore:
    one = RunStore(folder)
    one.create(program, Speed(workers=3), FACTS)
    return one


def real(monkeypatch) -> Any:
    """A program that can be read back from its file."""
    from fedsight.program.config import example

    return example("fashion")[0]


def test_a_folder_is_made_with_all_above_it(tmp_path: Path) -> None:
    one = created(tmp_path / "a" / "b")
    assert sorted(path.name for path in one.folder.iterdir()) == ["run.json", "run.toml"]
    assert "workers = 3" in (one.folder / "run.toml").read_text()
    assert one.read_json("run.json") == FACTS


def test_strangers_are_refused_and_left_alone(tmp_path: Path, monkeypatch) -> None:
    program = real(monkeypatch)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="cannot create the folder"):
        created(tmp_path / "file", program)
    with pytest.raises(StoreError, match="cannot create the folder"):
        created(tmp_path / "file" / "sub", program)
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "history.jsonl").write_text("mine")
    with pytest.raises(StoreError, match="is not empty and not a run") as caught:
        created(stranger, program)
    assert "--out" in caught.value.cure
    for text in ('name = "x"', "no TOML"):
        (stranger / "run.toml").write_text(text)
        with pytest.raises(StoreError, match="is not empty and not a run"):
            created(stranger, program)
        with pytest.raises(StoreError, match="is not empty and not a run"):
            RunStore(stranger).create(program, Speed(), FACTS, force=True)
    assert (stranger / "history.jsonl").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_left_of_a_start_that_was_killed_is_no_stranger(
    tmp_path: Path, monkeypatch
) -> None:
    program = real(monkeypatch)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".run.toml.123.partial").write_text("[da")
    created(folder, program)
    (folder / "run.json").unlink()  # killed between the two files
    created(folder, program)
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "run.toml"]


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_is_replaced_only_by_force(tmp_path: Path, monkeypatch, finished: bool) -> None:
    program = real(monkeypatch)
    folder = created(tmp_path / "run", program).folder
    (folder / "history.jsonl").write_text("{}\n")
    (folder / "memory" / "a").mkdir(parents=True)
    (folder / "rounds-3").mkdir()
    if finished:
        (folder / "summary.json").write_text("{}")
    words = "is finished" if finished else "is not finished"
    with pytest.raises(StoreError, match=words) as caught:
        created(folder, program)
    assert "--force" in caught.value.cure
    assert ("fedsight resume" in caught.value.cure) == (not finished)
    assert (folder / "history.jsonl").read_text() == "{}\n"
    RunStore(folder).create(program, Speed(), FACTS, force=True)
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "run.toml"]


def test_a_program_is_read_back(tmp_path: Path, monkeypatch) -> None:
    program = real(monkeypatch)
    one = created(tmp_path / "run", program)
    assert one.program() == (program, Speed(workers=3))
    with pytest.raises(StoreError, match="is not a run folder"):
        RunStore(tmp_path).program()


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_comes_back_bit_for_bit(store: RunStore) -> None:
    assert store.load_checkpoint() is None
    store.save_checkpoint(checkpoint())
    found, wanted = store.load_checkpoint(), checkpoint()
    assert found is not None
    assert (found.round, found.seconds, found.bytes_up, found.bytes_down) == (3, 1.5, 10, 20)
    assert torch.equal(found.vector, wanted.vector)
    assert found.state.keys() == wanted.state.keys()
    assert all(torch.equal(found.state[name], wanted.state[name]) for name in wanted.state)
    assert found.state["sums"].dtype == torch.int64


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" * len(data),
        lambda data: save({"vector": torch.zeros(2)}),
        lambda data: save({"vector": torch.zeros(2)}, {"fedsight": "{"}),
        lambda data: save({"vector": torch.zeros(2)}, {"fedsight": "[1]"}),
        lambda data: save({"vector": torch.zeros(2)}, {"fedsight": '{"rnd": 1}'}),
        lambda data: save({"other": torch.zeros(2)}, {"fedsight": '{"round": 1}'}),
    ],
)
def test_a_broken_checkpoint_is_named(store: RunStore, spoil: Callable[[bytes], bytes]) -> None:
    store.save_checkpoint(checkpoint())
    path = store.folder / "checkpoint.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(StoreError, match=f"the checkpoint {path} is broken") as caught:
        store.load_checkpoint()
    assert "--out" in caught.value.cure


@pytest.mark.parametrize("place", ["fsync", "write", "replace"])
def test_a_full_disk_leaves_the_last_checkpoint(store: RunStore, monkeypatch, place: str) -> None:
    store.save_checkpoint(checkpoint(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if place == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif place == "replace":
        monkeypatch.setattr(Path, "replace", full)
    else:
        opened = os.fdopen

        def open_full(number: int, mode: str) -> Any:
            with opened(number, mode) as file:
                file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fdopen", open_full)
    with pytest.raises(StoreError, match="No space left on device") as caught:
        store.save_checkpoint(checkpoint(2))
    monkeypatch.undo()
    assert "fedsight resume" in caught.value.cure
    found = store.load_checkpoint()
    assert found is not None
    assert found.round == 1
    assert [path.name for path in store.folder.iterdir()] == ["checkpoint.safetensors"]


# ---------------------------------------------------------------- history and JSON


LINES = st.lists(
    st.dictionaries(
        st.text(max_size=5).filter("sites".__ne__),  # which is a list, or refused
        st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    ),
    max_size=6,
)


@given(lines=LINES, torn=st.binary(max_size=20), cut=st.integers(0, 7))
def test_history_is_what_was_appended_less_what_is_torn(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]], torn: bytes, cut: int
) -> None:
    store = RunStore(tmp_path_factory.mktemp("history"))
    assert store.history() == []
    written = [{**line, "round": number} for number, line in enumerate(lines, 1)]
    for line in written:
        store.append_history(line)
    with (store.folder / "history.jsonl").open("ab") as file:
        file.write(torn.replace(b"\n", b""))
    assert store.history() == written
    store.rewind_history(cut)
    assert store.history() == written[:cut]
    assert (store.folder / "history.jsonl").read_bytes().count(b"\n") == min(cut, len(written))


@pytest.mark.parametrize("middle", [b"{", b"\0\0", b"\xff", b"[1]", b"3", b'"a"'])
def test_a_history_that_is_broken_before_its_end_is_named(store: RunStore, middle: bytes) -> None:
    path = store.folder / "history.jsonl"
    path.write_bytes(b'{"round": 1}\n' + middle + b'\n{"round": 3}\n')
    with pytest.raises(StoreError, match=f"the history {path} is broken"):
        store.rewind_history(2)
    assert path.read_bytes().startswith(b'{"round": 1}\n')


def test_a_full_disk_while_the_history_is_written(store: RunStore, monkeypatch) -> None:
    store.append_history({"round": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*history.jsonl: No space") as caught:
        store.append_history({"round": 2})
    assert "fedsight resume" in caught.value.cure


def test_json_has_no_nan(store: RunStore) -> None:
    nan, inf = float("nan"), float("inf")
    value = {"a": nan, "b": [1.5, inf, {"c": -inf}], "d": (nan, "x"), "e": None, "f": 2}
    store.write_json("x.json", value)
    text = (store.folder / "x.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, None, {"c": None}],
        "d": [None, "x"],
        "e": None,
        "f": 2,
    }
    store.append_history({"round": 1, "loss": nan})
    assert store.history() == [{"round": 1, "loss": None}]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff"])
def test_broken_json_is_named(store: RunStore, content: bytes) -> None:
    (store.folder / "x.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"cannot read .*x.json"):
        store.read_json("x.json")
    with pytest.raises(StoreError, match=r"none.json: No such file"):
        store.read_json("none.json")


def test_the_same_weights_make_the_same_bytes(store: RunStore) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(3, 4, generator=generator) for name in ("b", "a")}
    first = store.save_model(state).read_bytes()
    copies = {name: value.clone() for name, value in state.items()}
    assert store.save_model(copies).read_bytes() == first
