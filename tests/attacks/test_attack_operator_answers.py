"""A malicious server answers an operator, whose machine is another one.

The process of a session is one of FLARE's as well: what it is told to allocate it would allocate,
and what comes it would decode, before anybody asks what it is about. What it passes on need not be
what FLARE's commands give.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flare_limits import taken_back
from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.drivers.socket_conn import SocketConnection
from nvflare.fuel.f3.sfm.prefix import PREFIX_LEN, Prefix
from nvflare.fuel.f3.streaming import byte_receiver
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs import lobs

from fedsight.core.errors import FedSightError
from fedsight.deploy.flare import addresses
from fedsight.deploy.flare.bounds import MAX_FRAME
from fedsight.deploy.flare.streams import BoundedTask
from fedsight.deploy.server import operator, operator_session
from fedsight.deploy.server.operator import OperatorSession


@pytest.fixture(params=[True, False], ids=["as it was", "ours"])
def weak(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[bool]:
    """FLARE as the process of a session has it once it has tried to log in; as it was, it had the
    addresses alone."""
    with taken_back():
        if request.param:
            monkeypatch.setattr(operator_session, "set_bounds", addresses.use_both_kinds)
        said = io.StringIO()
        operator_session.serve(str(tmp_path / "none"), "anna", [], said)  # no kit, so no session
        assert "error" in json.loads(said.getvalue())
        yield request.param


def test_an_answer_brings_a_file(
    weak: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = uuid.uuid4().bytes + bytes(1 << 20)
    found = b"".join(
        lobs._Header(marker, 0, len(content)).to_bytes() + content
        for marker, content in ((lobs.MARKER_MAIN, b"\xc0"), (lobs.MARKER_DATUM_FILE, file))
    )
    if weak:
        monkeypatch.setattr(lobs, "get_datum_dir", lambda: str(tmp_path))
        fobs.loads(found)
    else:
        with pytest.raises(ValueError, match="brings no files"):
            fobs.loads(found)
    assert [path.stat().st_size for path in tmp_path.iterdir()] == ([1 << 20] if weak else [])


def test_a_frame_is_announced_that_fills_the_memory(weak: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        made: Any = object.__new__(SocketConnection)
        made.sock, made.name, made.closing = ours, "to the server", False
        head = bytearray(PREFIX_LEN)
        Prefix(length=4 * MAX_FRAME).to_buffer(head, 0)
        theirs.sendall(head)
        theirs.shutdown(socket.SHUT_WR)
        # FLARE waits for the rest of what it has allocated, and hears that nothing comes.
        with pytest.raises(CommError, match="closed" if weak else "exceeds limit"):
            made.read_frame()


def test_streams_are_begun_and_not_finished(weak: bool) -> None:
    assert (byte_receiver.RxTask is not BoundedTask) is weak


class Told(OperatorSession):
    """A session whose process passes on what the server says, one line for each call."""

    def __init__(self, *answers: str) -> None:
        self._calls, theirs = socket.socketpair()
        self._answers = self._calls.makefile("rb")
        theirs.sendall("".join(f'{{"answer": {one}}}\n' for one in answers).encode())
        self._theirs = theirs

    def close(self) -> None:
        """End it."""
        self._answers.close()
        self._calls.close()
        self._theirs.close()


@pytest.mark.parametrize(
    "answer", ["null", "7", '"x"', "[7]", "[null]", '{"error": 7}', '{"error": ["a"]}', "[" * 9999]
)
def test_no_answer_ends_a_command_with_a_traceback(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They did: what FLARE's own commands give was taken for what they give."""
    for ask in (
        lambda session: session.view("status"),
        lambda session: session.ask("stop", "first"),
        lambda session: session.status("job"),
        lambda session: session.jobs_of("anna"),
    ):
        session = Told(answer, answer)
        with contextlib.closing(session), contextlib.suppress(FedSightError):
            ask(session)
    monkeypatch.setattr(operator, "_table", lambda found: found)  # the weakened build
    if answer in ("null", "7"):
        with contextlib.closing(Told(answer)) as session, pytest.raises(AttributeError):
            session.status("job")
