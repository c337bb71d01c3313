"""What sites remember: versions by round, so that nothing is lost or applied twice."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.client.memory import MemoryStore
from fedsight.core.errors import StoreError


def filled(folder: Path, rounds: list[int], site: str = "a") -> MemoryStore:
    store = MemoryStore(folder)
    for round in rounds:
        store.save(site, round, {"control": torch.tensor([float(round)])})
    return store


def seen(store: MemoryStore, round: int, site: str = "a") -> float | None:
    memory = store.load(site, round)
    return memory["control"].item() if memory else None


def test_a_round_sees_only_what_earlier_rounds_wrote(tmp_path: Path) -> None:
    store = filled(tmp_path, [1, 3, 12])
    assert [seen(store, round) for round in (1, 2, 3, 4, 12, 13)] == [None, 1, 1, 3, 3, 12]
    assert store.load("b", 99) == {}


def test_a_round_run_again_replaces_its_version(tmp_path: Path) -> None:
    store = filled(tmp_path, [1])
    store.save("a", 1, {"control": torch.tensor([7.0])})
    assert seen(store, 2) == 7


def test_going_back_forgets_what_came_after(tmp_path: Path) -> None:
    store = filled(tmp_path, [1, 2, 3])
    filled(tmp_path, [2], "b")
    store.rewind(2)
    assert seen(store, 99) == 2
    assert seen(store, 99, "b") == 2
    store.rewind(1)
    assert (seen(store, 99), seen(store, 99, "b")) == (1, None)
    store.rewind(0)
    assert seen(store, 99) is None
    assert not tmp_path.exists()
    store.rewind(0)


@pytest.mark.parametrize("natural", ["a", "../ward", "a/b"])
def test_one_site_can_go_back_alone(tmp_path: Path, natural: str) -> None:
    store = filled(tmp_path, [1, 2, 3], natural)
    filled(tmp_path, [1, 2, 3], "other")
    store.rewind(2, natural)
    assert seen(store, 99, natural) == 2
    store.rewind(0, natural)
    assert (seen(store, 99, natural), seen(store, 99, "other")) == (None, 3)
    store.rewind(1, "nobody")
    store.rewind(1)
    assert seen(store, 99, "other") == 1


@pytest.mark.parametrize("spoil", [b"", b"torn", None])
def test_a_broken_memory_is_named(tmp_path: Path, spoil: bytes | None) -> None:
    store = filled(tmp_path, [1, 2])
    path = tmp_path / "a" / "000002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] if spoil is None else spoil)
    with pytest.raises(StoreError, match=f"the memory of site 'a', {path}, is broken") as caught:
        store.load("a", 3)
    assert "start the run again" in caught.value.cure
    assert seen(store, 2) == 1


@pytest.mark.parametrize("durable", [0, 1, 2, 3, 4])
def test_pruning_keeps_all_that_a_resume_from_a_durable_round_can_need(
    tmp_path: Path, durable: int
) -> None:
    rounds = [1, 2, 4]
    whole, pruned = filled(tmp_path / "whole", rounds), filled(tmp_path / "pruned", rounds)
    pruned.prune("a", durable)
    for resumed in range(durable, 5):
        assert seen(pruned, resumed + 1) == seen(whole, resumed + 1)
    versions = len(list((tmp_path / "pruned").rglob("*.safetensors")))
    assert versions == sum(r > durable for r in rounds) + any(r <= durable for r in rounds)


NATURAL = st.text("ab./% _\\-é0", min_size=1, max_size=6)


@pytest.mark.parametrize("name", ["ward/3", "../ward", "..", ".", "a%2Fb", "Zürich West", "/abs"])
def test_natural_site_ids_never_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run" / "memory"
    store = filled(folder, [1, 2], name)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.parent.parent == folder for path in files)
    assert [unquote(path.name) for path in folder.iterdir()] == [name]
    assert seen(store, 3, name) == 2
    store.rewind(1)
    assert seen(store, 3, name) == 1


@given(st.sets(NATURAL, min_size=2, max_size=4))
def test_different_site_ids_have_different_homes(names: set[str]) -> None:
    store = MemoryStore(Path("memory"))
    assert len({store._home(name) for name in names}) == len(names)


def test_place_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot create the folder"):
        filled(tmp_path / "file", [1])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
