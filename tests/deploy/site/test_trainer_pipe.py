"""Messages between a site's job and its trainer: whole, writable, and an error if one end goes."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from fedsight.core.types import Order
from fedsight.deploy.processes import spawn
from fedsight.deploy.site import trainer
from fedsight.deploy.site.trainer import (
    NoTrainerError,
    TrainedUpdate,
    Trainer,
    TrainStep,
    receive,
    send,
)


def passed(message: object) -> Any:
    """What comes out at the other end; more than a pipe holds waits for its reader."""
    ours, theirs = Pipe()
    with ours, theirs:
        sending = threading.Thread(target=send, args=(ours, message))
        sending.start()
        found = receive(theirs)
        sending.join()
    return found


@pytest.mark.parametrize("size", [0, 1, 1000, 3_000_000])
def test_vectors_of_any_size_come_as_they_are(size: int) -> None:
    vector, whole = torch.randn(size), torch.arange(size) - 5
    order = Order(3, vector, {"control": vector * 2})
    step = passed(TrainStep(order, accepted=2, durable=1))
    assert torch.equal(step.order.vector, vector)
    assert torch.equal(step.order.shared["control"], vector * 2)
    update = passed(TrainedUpdate({"delta": vector, "counts": whole}, 4, {}))
    assert torch.equal(update.payload["counts"], whole)
    update.payload["delta"].add_(1)  # whoever receives it may change it
    assert torch.equal(update.payload["delta"], vector + 1)


def test_a_vector_that_is_a_part_or_turned_comes_as_its_values() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    found = passed({"part": whole[:, 1], "turned": whole.T})
    assert torch.equal(found["part"], whole[:, 1])
    assert torch.equal(found["turned"], whole.T)


def test_messages_one_after_another_are_kept_apart() -> None:
    ours, theirs = Pipe()
    sent = [torch.ones(2), "then this", torch.zeros(0), None, [torch.arange(5), b"bytes"]]
    with ours, theirs:
        for message in sent:
            send(ours, message)
        found = [receive(theirs) for _ in sent]
    assert found[1] == sent[1]
    assert torch.equal(found[4][0], torch.arange(5))
    assert found[4][1] == b"bytes"


def test_an_end_that_goes_in_the_middle_of_a_vector_is_an_error() -> None:
    ours, theirs = Pipe()
    failed: list[BaseException] = []

    def sending() -> None:
        try:
            send(ours, torch.zeros(5_000_000))
        except OSError as error:
            failed.append(error)

    with ours:
        thread = threading.Thread(target=sending)
        thread.start()
        with theirs:
            theirs.recv_bytes()
            theirs.recv_bytes()
        thread.join()
    assert isinstance(failed[0], BrokenPipeError | ConnectionResetError)


def test_a_sender_that_goes_in_the_middle_of_a_vector_is_the_end() -> None:
    ours, theirs = Pipe()
    with theirs:
        with ours:
            send(theirs, torch.zeros(8))  # as an example of the head of a message
            head = [ours.recv_bytes(), ours.recv_bytes()]
            for part in head:
                ours.send_bytes(part)
        with pytest.raises((EOFError, ConnectionResetError)):
            receive(theirs)


class Silent:
    """In place of a trainer's process: nothing, with the other end of its pipe."""

    pid = os.getpid()

    def __init__(self, descriptor: int) -> None:
        self._pipe = Connection(os.dup(descriptor))

    def kill(self) -> None:
        self._pipe.close()

    def wait(self, timeout: float | None = None) -> int:
        return -9


def _failing(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize(
    ("what", "error"),
    [("receive", MemoryError()), ("trim", OSError(errno.EMFILE, os.strerror(errno.EMFILE)))],
)
def test_a_trainer_that_cannot_be_talked_to_says_nothing_of_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, error: Exception
) -> None:
    monkeypatch.setattr(spawn, "start", lambda *given: Silent(given[3][0]))
    one = Trainer(tmp_path / "trainer.txt")
    step = TrainStep(Order(1, torch.zeros(3)), 0, 0)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, what, _failing(error))
        with pytest.raises(NoTrainerError):
            one.ask(step, "training")
    one._pipe.close()
    one.close()
