"""A run folder from elsewhere, and folders in which several processes work.

`memory` in the folder may be a link: `resume` removes what looks like later rounds, and writes, in
whatever folder it leads to. Files that are kept before a run is extended may be links as well, to
something private that goes back with the folder, and so may `delivered`, through which models are
written, too. In a sweep or a series, the folder of a run may be a link to one of the user's own,
which `--force` removes. A report shows the configuration of its run, which may be a link to any
TOML file of the user. And two locks of one name, or two writers of one
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

import federations
import pytest
import tomli_w
import torch
from command_line import done, write_config

from fedsight.client import memory
from fedsight.client.memory import MemoryStore
from fedsight.client.step import Client
from fedsight.coordinator.store import RunStore
from fedsight.core import files, locks
from fedsight.core.errors import FedSightError, StoreError
from fedsight.deploy.membership import federation as membership
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.evaluation.comparison import compare
from fedsight.evaluation.delivery import deliver
from fedsight.evaluation.delivery.deliver import SharedModel
from fedsight.program.program import Speed
from fedsight.report import page, read
from fedsight.runs import extension, series
from fedsight.runs.sweeps import plan
from fedsight.runs.sweeps.plan import Cell, SweepPlan

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
    monkeypatch.setattr(memory, "refuse_links", lambda *_: None)
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


@pytest.mark.parametrize("follows", [True, False])
def test_a_private_folder_is_not_copied_beside_the_results(
    own: Path, monkeypatch: pytest.MonkeyPatch, follows: bool
) -> None:
    run = own.parents[1] / "run"
    (run / "delivered").symlink_to(own)
    if follows:  # as it was
        monkeypatch.setattr(extension, "refuse_links", lambda *_: None)
        extension._keep(RunStore(run), 2)
        assert (run / "rounds-2" / "delivered" / "000009.safetensors").is_file()
        return
    with pytest.raises(StoreError, match="delivered is a link"):
        extension._keep(RunStore(run), 2)
    assert [path.name for path in run.iterdir()] == ["delivered"]


@pytest.mark.parametrize("follows", [True, False])
def test_models_are_not_delivered_to_where_a_link_leads(
    own: Path, monkeypatch: pytest.MonkeyPatch, follows: bool
) -> None:
    run = own.parents[1] / "run"
    (run / "delivered").symlink_to(own)
    federation = federations.federation(rounds={"validation": 0.4})
    client = Client(federation, Speed())
    model = SharedModel(client.vector.clone(), run / "memory", run / "delivered")
    if follows:
        monkeypatch.setattr(deliver, "refuse_links", lambda *_: None)
        assert deliver.deliver(federation, 0, model, client, Speed()) is not None
        assert len(list(own.iterdir())) == 3  # a model, and how far to trust it
        return
    with pytest.raises(StoreError, match="delivered is a link"):
        deliver.deliver(federation, 0, model, client, Speed())
    with pytest.raises(StoreError, match="delivered is a link"):  # before hours of training
        compare(federation, Speed(), RunStore(run), lambda: None, trained=model.vector)
    assert [path.name for path in own.iterdir()] == ["000009.safetensors"]


def test_a_new_run_in_place_of_another_removes_links_and_nothing_behind_them(own: Path) -> None:
    store = RunStore(own.parents[1] / "run")
    for name in ("memory", "delivered", "rounds-2", ".rounds-3.partial"):
        (store.folder / name).symlink_to(own)
    (store.folder / ".rounds-4.partial").mkdir()  # left by a process that was killed
    for name in ("run.toml", "run.json"):
        (store.folder / name).write_text("")
    program = federations.program()
    store.create(program, Speed(), {}, force=True)
    assert {path.name for path in store.folder.iterdir()} == {"run.toml", "run.json"}
    assert [path.name for path in own.iterdir()] == ["000009.safetensors"]


# Links in the folder of several runs --------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A run of the user's own."""
    run = tmp_path / "mine" / "seed-0"
    run.mkdir(parents=True)
    (run / "run.toml").write_text("")
    (tmp_path / "theirs").mkdir()
    return run


def sweep_to(mine: Path, whole: bool) -> SweepPlan:
    """A sweep in which the folder of a configuration, or of its run, leads to the user's own."""
    folder, program = mine.parents[1] / "theirs", federations.program()
    if whole:
        (folder / "lr").symlink_to(mine.parent)
    else:
        (folder / "lr").mkdir()
        (folder / "lr" / "seed-0").symlink_to(mine)
    cell = Cell("lr", {}, "lr/seed-0", program, Speed())
    return SweepPlan("theirs", (cell,), folder)


@pytest.mark.parametrize("whole", [True, False])
def test_a_forced_sweep_removes_the_link_and_not_the_run_behind_it(mine: Path, whole: bool) -> None:
    sweep = sweep_to(mine, whole)
    with pytest.raises(StoreError, match="is a link"):
        plan.refuse_others(sweep)
    plan.clear(sweep)
    assert (mine / "run.toml").is_file()
    plan.refuse_others(sweep)


def test_it_removed_the_run_of_the_user(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "link_on_the_way", lambda *_: None)
    monkeypatch.setattr(plan, "remove", shutil.rmtree)
    with pytest.raises(NotADirectoryError):  # the link to the folder of the configuration is none
        plan.clear(sweep_to(mine, whole=True))
    assert not mine.exists()


@pytest.mark.parametrize("place", [".", "", "../mine/seed-0", "/tmp"])
def test_a_cell_is_within_the_sweep(place: str) -> None:
    program = federations.program()
    facts = {"configuration": "c", "run": place, "seed": 0, "fingerprint": program.fingerprint}
    with pytest.raises(ValueError, match="is not in the sweep's folder"):
        plan._cell(facts, {"c": ({}, program, Speed())})


def test_a_seed_that_is_a_link_is_left_alone(mine: Path) -> None:
    folder, program = mine.parents[1] / "theirs", federations.program()
    (folder / "seed-0").symlink_to(mine)
    runs = series.SeriesPlan(program, Speed(), (0, 1), folder, "run")
    with pytest.raises(StoreError, match="seed-0 is a link"):
        series._repeat(runs, lambda folder, work: None)
    series._clear(runs)
    assert not (folder / "seed-0").is_symlink()
    assert (mine / "run.toml").is_file()


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


# What is shown of them ----------------------------------------------------------------------------


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """A run from elsewhere, whose configuration is a link to a private file of the user's."""
    done("run", write_config(tmp_path, rounds={"rounds": 1}), "--out", tmp_path / "run")
    (tmp_path / "credentials.toml").write_text('token = "s3cr3t"\n')
    (tmp_path / "run" / "run.toml").unlink()
    (tmp_path / "run" / "run.toml").symlink_to(tmp_path / "credentials.toml")
    return tmp_path / "run"


def test_a_private_file_is_not_in_the_report(shown: Path) -> None:
    """The report lies in the folder, and goes back with it."""
    with pytest.raises(StoreError, match=r"run\.toml is a link, not a file") as caught:
        page.build([shown])
    assert caught.value.cure
    (shown / "run.toml").unlink()
    assert "s3cr3t" not in page.build([shown]).read_text()


def test_it_was_shown(shown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "content", lambda path, links: files.content(path))
    assert "s3cr3t" in page.build([shown]).read_text()
