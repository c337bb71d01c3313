"""A run folder from elsewhere, and folders in which several processes work.

`memory` in the folder may be a link: `resume` removes what looks like later rounds, and writes, in
whatever folder it leads to. Files that are kept before a run is extended may be links as well, to
something private that goes back with the folder. And two locks of one name, or two writers of one
file of events, are met by waiting for the right moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from fedsight.client import memory
from fedsight.client.memory import MemoryStore
from fedsight.coordinator.store import RunStore
from fedsight.core import locks
from fedsight.core.errors import FedSightError, StoreError
from fedsight.deploy.membership import federation as membership
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.runs import extension

# Links in a run folder ----------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The memory of the user's own run, to which that of somebody else's leads."""
    home = tmp_path / "own" / "site"
    home.mkdir(parents=True)
    (home / "000009.safetensors").write_text("years of training")
    (tmp_path / "run").mkdir()
    return home


def do(store: MemoryStore) -> list[Callable[[], Any]]:
    """All that touches the folder."""
    return [
        lambda: store.rewind(2),
        lambda: store.rewind(2, "site"),
        lambda: store.rewind(0, "site"),
        lambda: store.prune("site", 9),
        lambda: store.load("site", 10),
        lambda: store.save("site", 3, {"a": torch.zeros(1)}),
    ]


@pytest.mark.parametrize("whole", [True, False])
def test_a_memory_that_is_a_link_is_left_alone(own: Path, whole: bool) -> None:
    folder = own.parents[1] / "run" / "memory"
    if whole:
        folder.symlink_to(own.parent)
    else:
        folder.mkdir()
        (folder / "site").symlink_to(own)
    for step in do(MemoryStore(folder))[not whole :]:  # of all sites, links within are not followed
        with pytest.raises(StoreError, match="is a link"):
            step()
    MemoryStore(folder).rewind(2) if not whole else None
    assert [path.name for path in own.iterdir()] == ["000009.safetensors"]


def test_it_was_emptied_and_filled(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_refuse_link", lambda folder: None)
    folder = own.parents[1] / "run" / "memory"
    folder.symlink_to(own.parent)
    MemoryStore(folder).rewind(2)
    assert not list(own.iterdir())
    MemoryStore(folder).save("site", 3, {"a": torch.zeros(1)})
    assert [path.name for path in own.iterdir()] == ["000003.safetensors"]


@pytest.mark.parametrize("follows", [True, False])
def test_a_private_file_is_not_copied_beside_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, follows: bool
) -> None:
    (tmp_path / "key").write_text("private")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").symlink_to(tmp_path / "key")
    if follows:  # as it was
        copy = shutil.copy2
        monkeypatch.setattr(shutil, "copy2", lambda a, b, follow_symlinks: copy(a, b))
    extension._keep(RunStore(tmp_path / "run"), 2)
    kept = tmp_path / "run" / "rounds-2" / "report.html"
    assert kept.is_symlink() is not follows


# The right moment ---------------------------------------------------------------------------------


@pytest.mark.parametrize("checked", [False, True])
def test_a_lock_whose_file_was_removed_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: bool
) -> None:
    """A process opens the file, its holder removes it and ends, and only then it is locked."""
    path, real, late = tmp_path / ".lock", fcntl.flock, [True]

    def flock(file: Any, how: int) -> None:
        if late:
            late.clear()
            path.unlink()
        real(file, how)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    if not checked:
        monkeypatch.setattr(locks, "_is_at", lambda path, file: True)
    with locks.hold(path, 0.0, FedSightError("busy")), contextlib.ExitStack() as second:
        if checked:
            with pytest.raises(FedSightError, match="busy"):
                locks.hold(path, 0.0, FedSightError("busy"))
        else:
            second.enter_context(locks.hold(path, 0.0, FedSightError("busy")))


@pytest.mark.parametrize("locked", [False, True])
def test_what_an_operator_did_is_kept_while_another_process_shortens_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    invitation = {"federation": "wards", "host": "localhost", "port": 8002, "fingerprint": "00"}
    (tmp_path / "invitation.toml").write_text(tomli_w.dumps(invitation))
    folder, operators, trim = (
        FederationFolder.open(tmp_path),
        list[threading.Thread](),
        membership.trim,
    )

    def meanwhile(path: Path, most: int, keep: Callable[[bytes], bool]) -> None:
        def kept(line: bytes) -> bool:  # between reading and writing
            if not operators:
                operator = threading.Thread(target=folder.log_event, args=("revoked",))
                operators.append(operator)
                operator.start()
                operator.join(0.3)
            return keep(line)

        trim(path, most, kept)

    for _ in range(40):
        folder.log_event("absent", why="x" * 100)
    monkeypatch.setattr(membership, "EVENT_BYTES", 4000)
    monkeypatch.setattr(membership, "trim", meanwhile)
    if not locked:
        monkeypatch.setattr(membership.locks, "hold", lambda *_: contextlib.nullcontext())
    folder.log_event("absent", why="the last")
    operators[0].join()
    found = [event["event"] for event in folder.events()]
    assert ("revoked" in found) is locked
