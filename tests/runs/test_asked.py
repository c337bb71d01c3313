"""A run that goes on can be asked to pause or to stop, and resumes to the same bits."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import done, refused, same, write_config

from fedsight.coordinator.asked import ASKED, Request, ask, asked
from fedsight.coordinator.callbacks import Callback, Event, RoundBegan, RoundEnded
from fedsight.coordinator.live import LIVE
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import FedSightError, Interrupted, Paused, StoreError
from fedsight.program.config import load
from fedsight.runs import lifecycle
from fedsight.runs.listing import control, look


class Asker(Callback):
    """Asks something when round 2 begins, and waits for `seconds`, as if the round took so long."""

    def __init__(self, folder: Path, request: Request, seconds: float = 0.0) -> None:
        self.folder, self.request, self.seconds = folder, request, seconds
        self.ended: list[int] = []

    def on(self, event: Event) -> None:
        if isinstance(event, RoundBegan) and event.round == 2:
            control(self.folder, self.request)
            until = time.monotonic() + self.seconds
            while time.monotonic() < until:
                time.sleep(0.05)
        elif isinstance(event, RoundEnded):
            self.ended.append(event.line["round"])


class Reader(Callback):
    """Waits in round 2 until the folder tells of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, Any] = {}

    def on(self, event: Event) -> None:
        if isinstance(event, RoundBegan) and event.round == 2:
            while self.seen.get("round") != 2:
                time.sleep(0.05)
                self.seen = dict(look(self.folder).live)


class Held(Callback):
    """Holds the first round until it is interrupted: it would be over before anybody looks."""

    def on(self, event: Event) -> None:
        if isinstance(event, RoundBegan):
            until = time.monotonic() + 60
            while time.monotonic() < until:
                time.sleep(0.05)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("asked"), rounds={"rounds": 4})


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """The run that nobody disturbs."""
    done("run", config, "--out", config.parent / "whole")
    return config.parent / "whole"


def start(config: Path, folder: Path, callback: Callback) -> None:
    program, speed = load(config, ["speed.checkpoint_every=3"])
    lifecycle.start(lifecycle.Start(program, speed, RunStore(folder), "run"), [callback])


def test_it_pauses_after_the_round_and_resumes_to_the_same_bits(config: Path, whole: Path) -> None:
    folder = config.parent / "paused"
    asker = Asker(folder, "pause")
    # It is asked when round 2 has just begun, and round 1 is not on the disk yet.
    with pytest.raises(Paused, match="after round 1") as caught:
        start(config, folder, asker)
    assert f"fedsight resume {folder}" in caught.value.cure
    assert asker.ended == [1]  # all callbacks saw the round
    checkpoint = RunStore(folder).load_checkpoint()
    assert checkpoint is not None
    assert checkpoint.round == 1  # although one is due every 3 rounds
    assert look(folder).state == "paused"
    assert asked(folder) is None
    done("resume", folder)
    assert look(folder).state == "finished"
    assert not list(folder.glob(".*"))
    same(folder, whole)


@pytest.fixture
def heeded() -> Iterator[None]:
    """Ctrl-C interrupts, as in a terminal: a shell lets jobs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_it_stops_in_the_middle_of_a_round_and_resumes_to_the_same_bits(
    config: Path, whole: Path
) -> None:
    folder = config.parent / "stopped"
    asker = Asker(folder, "stop", seconds=60)
    began = time.monotonic()
    with pytest.raises(Interrupted, match="stopped; the last checkpoint"):
        start(config, folder, asker)
    assert time.monotonic() - began < 55  # it did not wait for the round
    assert look(folder).state == "stopped"
    assert asked(folder) is None
    done("resume", folder)
    same(folder, whole)


def test_outside_the_main_thread_it_stops_with_the_next_event_and_disturbs_nobody(
    config: Path, whole: Path
) -> None:
    folder = config.parent / "threaded"
    caught: list[BaseException] = []

    def work() -> None:
        try:
            start(config, folder, Asker(folder, "stop", seconds=1.0))
        except BaseException as error:  # the thread's own
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(caught[0], Interrupted)
    done("resume", folder)
    same(folder, whole)


def test_its_folder_tells_who_is_asked_and_who_has_answered(config: Path) -> None:
    folder = config.parent / "told"
    reader = Reader(folder)
    start(config, folder, reader)
    seen = reader.seen
    assert (seen["phase"], seen["round"], seen["rounds"]) == ("training", 2, 4)
    assert (seen["asked"], seen["answered"], seen["refused"]) == (3, 0, {})
    assert seen["waiting"] == ["site-00", "site-01", "site-02"]
    assert not (folder / LIVE).exists()  # a finished run's summary says it all


class Broken(Callback):
    def on(self, event: Event) -> None:
        if isinstance(event, RoundEnded):
            raise FedSightError("the tracker is gone", "bring it back")


def test_a_run_that_fails_says_why_in_its_folder(config: Path) -> None:
    folder = config.parent / "failed"
    with pytest.raises(FedSightError, match="gone"):
        start(config, folder, Broken())
    found = look(folder)
    assert (found.state, found.cause, found.cure) == (
        "failed",
        "the tracker is gone",
        "bring it back",
    )


def test_a_resume_that_is_refused_changes_nothing_of_what_the_run_says(config: Path) -> None:
    folder = config.parent / "refused"
    with pytest.raises(Paused):
        start(config, folder, Asker(folder, "pause"))
    before = (folder / LIVE).read_bytes()
    assert "cannot be extended" in refused(7, "resume", folder, "--rounds", 4)
    assert (folder / LIVE).read_bytes() == before
    assert look(folder).state == "paused"


def test_a_request_to_an_earlier_process_is_not_met_by_the_next(config: Path, whole: Path) -> None:
    folder = config.parent / "stale"
    with pytest.raises(Paused):
        start(config, folder, Asker(folder, "pause"))
    ask(folder, "stop")
    done("resume", folder)
    same(folder, whole)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("request_", ["pause", "stop"])
def test_what_is_asked_while_a_resume_reads_the_run_is_met(
    config: Path, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run counts as running as soon as a process has its folder."""
    folder = config.parent / f"early {request_}"
    with pytest.raises(Paused):
        start(config, folder, Asker(folder, "pause"))
    settle = lifecycle.settle

    def slowly(store: RunStore) -> None:
        assert look(folder).state == "running"
        control(folder, request_)
        settle(store)

    monkeypatch.setattr(lifecycle, "settle", slowly)
    with pytest.raises(Interrupted):
        lifecycle.resume(RunStore(folder), None, [Held()] if request_ == "stop" else [])
    assert look(folder).state == {"pause": "paused", "stop": "stopped"}[request_]


@pytest.mark.usefixtures("heeded")
def test_a_resume_that_is_stopped_before_it_goes_on_is_stopped(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C there: what the run said before, of an earlier process, holds no longer."""
    folder = config.parent / "opening"
    with pytest.raises(Paused):
        start(config, folder, Asker(folder, "pause"))

    def for_ever(program: object) -> object:
        control(folder, "stop")
        while True:
            time.sleep(0.05)

    monkeypatch.setattr(lifecycle, "federate", for_ever)
    with pytest.raises(Interrupted):
        lifecycle.resume(RunStore(folder), None, [])
    assert look(folder).state == "stopped"


@pytest.mark.parametrize("request_", ["pause", "stop"])
def test_what_does_not_run_cannot_be_asked(whole: Path, tmp_path: Path, request_: Request) -> None:
    with pytest.raises(StoreError, match="it is finished"):
        control(whole, request_)
    assert not (whole / ASKED).exists()
    with pytest.raises(StoreError, match="not a run folder"):
        control(tmp_path, request_)


def test_a_file_that_is_not_a_request_is_none(tmp_path: Path) -> None:
    (tmp_path / ASKED).write_bytes(b"\xff\xfe dance")
    assert asked(tmp_path) is None
