"""A malicious site exhausts the server's memory by announcements, or ends a job's process.

FLARE allocates what a connection or the first chunk of a stream announces, and keeps chunks of
which the first never comes. It ends a job's process at the server if a stream cannot be decoded.
"""

from __future__ import annotations

import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.fuel.f3.cellnet import cell, core_cell
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey, MessagePropKey, MessageType
from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.drivers import socket_conn
from nvflare.fuel.f3.drivers.socket_conn import SocketConnection
from nvflare.fuel.f3.endpoint import Endpoint
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.sfm.prefix import PREFIX_LEN, Prefix
from nvflare.fuel.f3.streaming.blob_streamer import BlobTask
from nvflare.fuel.f3.streaming.stream_const import (
    STREAM_CHANNEL,
    STREAM_DATA_TOPIC,
    StreamDataType,
    StreamHeaderKey,
)
from nvflare.fuel.sec import audit

from fedsight.deploy.flare import streams
from fedsight.deploy.flare.process import MAX_FRAME, set_limits
from fedsight.deploy.flare.routes import Gate
from fedsight.deploy.flare.streams import MAX_BYTES, MAX_STREAM, MAX_STREAMS, OpenStreams

JOB = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
MALLORY, COORDINATOR = f"mallory.{JOB}", f"server.{JOB}"
FIRST, LAST = StreamDataType.CHUNK, StreamDataType.FINAL


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits that every process of ours sets, for the time of a test."""
    for owner, name in (
        *((socket_conn, "MAX_FRAME_SIZE"), (cell, "_is_server_job_cell"), (audit, "Auditor")),
        (core_cell.CoreCell, "start"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    set_limits()


def chunk(
    stream: int, size: int, kind: int = FIRST, payload: bytes = b"x", sender: str = MALLORY
) -> Message:
    """A chunk of a stream of an answer, which a run needs."""
    found = Message(
        {
            MessageHeaderKey.ORIGIN: sender,
            MessageHeaderKey.DESTINATION: COORDINATOR,
            MessageHeaderKey.MSG_TYPE: MessageType.REQ,
            MessageHeaderKey.CHANNEL: STREAM_CHANNEL,
            MessageHeaderKey.TOPIC: STREAM_DATA_TOPIC,
            StreamHeaderKey.CHANNEL: CellChannel.RETURN_ONLY,
            StreamHeaderKey.TOPIC: "collab:call",
            StreamHeaderKey.STREAM_ID: stream,
            StreamHeaderKey.SIZE: size,
            StreamHeaderKey.DATA_TYPE: kind,
        },
        payload,
    )
    found.set_prop(MessagePropKey.ENDPOINT, Endpoint(sender))
    return found


def allocated(work: Callable[[], Any]) -> int:
    """The bytes that `work` holds when it is done."""
    tracemalloc.start()
    kept = work()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept is not None
    return size


def test_flare_allocates_what_a_tiny_chunk_announces() -> None:
    def receive() -> list[BlobTask]:
        stream = SimpleNamespace(get_size=lambda: 8 << 20)
        return [BlobTask(SimpleNamespace(), stream, 64 << 20) for _ in range(4)]

    assert allocated(receive) >= 32 << 20


def test_ours_drops_what_exceeds_a_senders_share() -> None:
    gate = Gate("server")
    passed = [gate.refuse(chunk(n, 16 << 20)) is None for n in range(30)]
    assert passed == [True] * (MAX_BYTES // (16 << 20)) + [False] * (30 - MAX_BYTES // (16 << 20))
    honest = f"ward.{JOB}"  # whom that does not concern
    assert gate.refuse(chunk(0, 16 << 20, sender=honest)) is None


@pytest.mark.parametrize("size", [MAX_STREAM + 1, 1 << 40, -1, None, "1", 1.5, True])
def test_a_stream_of_an_impossible_size_is_dropped(size: Any) -> None:
    assert Gate("server").refuse(chunk(1, size)) is not None


def test_what_is_finished_counts_no_longer() -> None:
    found = OpenStreams()
    for number in range(1000):
        assert found.admit(chunk(number, 16 << 20), "mallory")
        assert found.admit(chunk(number, 16 << 20, LAST), "mallory")


def test_chunks_whose_stream_announced_nothing_count_as_what_they_are() -> None:
    found, payload = OpenStreams(), bytes(1 << 20)
    assert sum(found.admit(chunk(n, 0, payload=payload), "mallory") for n in range(200)) == 128
    found = OpenStreams()
    assert sum(found.admit(chunk(1, 0, payload=payload), "mallory") for _ in range(200)) == 128


def test_the_number_of_streams_is_bounded_too() -> None:
    found = OpenStreams()
    assert sum(found.admit(chunk(n, 1), "mallory") for n in range(2 * MAX_STREAMS)) == MAX_STREAMS


def test_a_stream_that_broke_off_is_forgotten_when_flare_has_given_it_up() -> None:
    now = [0.0]
    found = OpenStreams(lambda: now[0])
    assert found.admit(chunk(1, MAX_STREAM), "mallory")
    assert found.admit(chunk(2, MAX_STREAM), "mallory")
    assert not found.admit(chunk(3, MAX_STREAM), "mallory")
    now[0] = streams.FORGOTTEN_AFTER + 1
    assert found.admit(chunk(3, MAX_STREAM), "mallory")


# -- frames ----------------------------------------------------------------------------------------


@pytest.fixture
def connection() -> Iterator[tuple[SocketConnection, socket.socket]]:
    """A connection as FLARE reads it, and its other end."""
    ours, theirs = socket.socketpair()
    made: Any = object.__new__(SocketConnection)
    made.sock, made.name, made.closing = ours, "from mallory", False
    yield made, theirs
    ours.close()
    theirs.close()


def announce(other: socket.socket, size: int) -> None:
    head = bytearray(PREFIX_LEN)
    Prefix(length=size).to_buffer(head, 0)
    other.sendall(head)


def test_flare_allocates_what_a_connection_announces(
    connection: tuple[SocketConnection, socket.socket],
) -> None:
    found, other = connection
    announce(other, 4 * MAX_FRAME)
    tracemalloc.start()
    reader = threading.Thread(target=found.read_loop)  # it ends when the connection is closed
    reader.start()
    while tracemalloc.get_traced_memory()[1] < 4 * MAX_FRAME:
        assert reader.is_alive()
    tracemalloc.stop()
    other.close()
    reader.join()


@pytest.mark.usefixtures("limited")
def test_ours_closes_a_connection_that_announces_too_much(
    connection: tuple[SocketConnection, socket.socket],
) -> None:
    found, other = connection
    announce(other, MAX_FRAME + 1)
    with pytest.raises(CommError, match="exceeds limit"):
        found.read_frame()


# -- the job's process -----------------------------------------------------------------------------


class EndedError(Exception):
    """The process would have ended."""


@pytest.fixture
def job_cell(monkeypatch: pytest.MonkeyPatch) -> Any:
    """FLARE's connections of a job's process at the server."""

    def end(code: int) -> None:
        raise EndedError(code)

    monkeypatch.setattr(cell.os, "_exit", end)
    made: Any = object.__new__(cell.Cell)
    made.requests_dict = {}
    made.core_cell = SimpleNamespace(my_info=SimpleNamespace(fqcn=COORDINATOR))
    made.logger = SimpleNamespace(debug=print, critical=print)
    return made


def says_too_large() -> Message:
    """What a site says of a stream, be there one or not."""
    return Message({StreamHeaderKey.ERROR_TYPE: "BlobSizeError"})


def test_a_site_ends_a_jobs_process_by_a_word_with_flare(job_cell: Any) -> None:
    with pytest.raises(EndedError):
        job_cell._process_stream_error(says_too_large())


@pytest.mark.usefixtures("limited")
def test_with_ours_it_does_not(job_cell: Any) -> None:
    job_cell._process_stream_error(says_too_large())


def undecodable(job_cell: Any) -> cell.Adapter:
    """Receives a result that cannot be decoded."""
    adapter: Any = cell.Adapter(None, job_cell.core_cell.my_info, job_cell)
    job_cell.decode_pass_through_channels = job_cell.decode_pass_through_topics = set()
    job_cell.get_fobs_context = lambda props: props
    return adapter


RESULT = {
    StreamHeaderKey.CHANNEL: CellChannel.SERVER_COMMAND,
    StreamHeaderKey.TOPIC: "submit_update",
    StreamHeaderKey.PAYLOAD_ENCODING: "fobs",
}
GARBAGE = SimpleNamespace(headers=RESULT, result=lambda: b"\xff\xff not what it seems")


def test_a_site_ends_a_jobs_process_by_an_undecodable_result_with_flare(job_cell: Any) -> None:
    with pytest.raises(EndedError):
        undecodable(job_cell).call(GARBAGE)


@pytest.mark.usefixtures("limited")
def test_with_ours_the_result_alone_fails(job_cell: Any) -> None:
    with pytest.raises(Exception, match=r".") as error:  # whatever FLARE's decoder raises
        undecodable(job_cell).call(GARBAGE)
    assert not isinstance(error.value, EndedError)
