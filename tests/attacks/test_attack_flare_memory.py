"""A malicious site exhausts the server's memory by announcements, or ends a job's process.

FLARE allocates what a connection or the first chunk of a stream announces, and keeps chunks of
which the first never comes, for ever. Ours counted a stream as finished with its last chunk, which
may come first: then FLARE waits for the others, and a sender had any number of streams. FLARE ends
a job's process at the server if a stream cannot be decoded.
"""

from __future__ import annotations

import itertools
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from flare_limits import limits_set
from nvflare.fuel.f3.cellnet import cell
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey, MessagePropKey, MessageType
from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.drivers.socket_conn import SocketConnection
from nvflare.fuel.f3.endpoint import Endpoint
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.sfm.conn_manager import ConnManager
from nvflare.fuel.f3.sfm.constants import Types
from nvflare.fuel.f3.sfm.prefix import PREFIX_LEN, Prefix
from nvflare.fuel.f3.streaming import blob_streamer, byte_receiver
from nvflare.fuel.f3.streaming.blob_streamer import BlobHandler, BlobTask
from nvflare.fuel.f3.streaming.byte_receiver import ByteReceiver, RxTask
from nvflare.fuel.f3.streaming.stream_const import (
    STREAM_CHANNEL,
    STREAM_DATA_TOPIC,
    StreamDataType,
    StreamHeaderKey,
)
from nvflare.fuel.f3.streaming.stream_types import StreamError

from fedsight.deploy.flare import routes, streams
from fedsight.deploy.flare.bounds import MAX_FRAME
from fedsight.deploy.flare.routes import Gate
from fedsight.deploy.flare.streams import (
    MAX_BYTES,
    MAX_HEADERS,
    MAX_STREAM,
    MAX_STREAMS,
    BoundedTask,
    Shares,
    weight_of,
)

JOB = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
MALLORY, COORDINATOR = f"mallory.{JOB}", f"server.{JOB}"
FIRST, LAST = StreamDataType.CHUNK, StreamDataType.FINAL


@pytest.fixture
def limited() -> Iterator[None]:
    """The limits that every process of ours sets, for the time of a test."""
    with limits_set():
        yield


def chunk(
    stream: int,
    size: Any = 0,
    kind: int = FIRST,
    payload: bytes = b"x",
    sender: str = MALLORY,
    number: Any = 0,
    **headers: Any,
) -> Message:
    """A chunk of a stream of an answer, which a run needs; `number`: its place in the stream."""
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
            StreamHeaderKey.SEQUENCE: number,
            StreamHeaderKey.DATA_TYPE: kind,
            **headers,
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


@pytest.mark.parametrize("value", [MAX_STREAM + 1, 1 << 40, -1, None, "1", 1.5, True, [1]])
def test_a_stream_of_an_impossible_size_or_order_is_dropped(value: Any) -> None:
    gate = Gate("server")
    assert gate.refuse(chunk(1, value)) is not None
    if type(value) is not int or value < 0:
        assert gate.refuse(chunk(1, number=value)) is not None
    assert gate.refuse(chunk(1, MAX_STREAM)) is None


class Receiver:
    """FLARE's receiver of streams in a coordinator's process, behind our gate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bounded: bool) -> None:
        self.now = 0.0
        self.calls = 0
        monkeypatch.setattr(streams, "SHARES", Shares(lambda: self.now))
        monkeypatch.setattr(RxTask, "rx_task_map", {})
        # Who is told of a stream is told at once, and reads nothing.
        now = SimpleNamespace(submit=lambda work, *args: work(*args))
        monkeypatch.setattr(byte_receiver, "stream_thread_pool", now)
        if bounded:
            monkeypatch.setattr(byte_receiver, "RxTask", BoundedTask)
            monkeypatch.setattr(ByteReceiver, "_callback_wrapper", staticmethod(streams.called))
            monkeypatch.setattr(BlobHandler, "_run_blob_cb", streams.called_with_whole)
        else:
            monkeypatch.setattr(routes, "is_sound", lambda message: True)
        core = SimpleNamespace(
            my_info=SimpleNamespace(fqcn=COORDINATOR),
            register_request_cb=lambda **_: None,
            fire_and_forget=lambda *_, **__: {},
        )
        self._gate, self._receiver = Gate("server"), ByteReceiver(core)
        self.receive(self._called)

    def receive(self, callback: Callable[..., Any]) -> None:
        """Have streams handed over to somebody else."""
        self._receiver.register_callback(CellChannel.RETURN_ONLY, "*", callback)

    def _called(self, *_: Any) -> None:
        self.calls += 1

    def take(self, *chunks: Message) -> None:
        """Chunks come, one after the other."""
        for one in chunks:
            if self._gate.refuse(one) is None:
                self._receiver._data_handler(one)

    @property
    def tasks(self) -> list[RxTask]:
        """The streams that FLARE knows."""
        return list(RxTask.rx_task_map.values())

    @property
    def held(self) -> int:
        """Bytes of chunks that it keeps, and of what it has allocated."""
        found = 0
        for task in self.tasks:
            early = [payload for _, payload in task.out_seq_chunks.values()]
            chunks = sum(len(one or b"") for one in (*early, *(one for _, one in task.chunks)))
            open_size = 0 if task.completed or task.failed else task.size
            found += max(chunks, open_size)
        return found


@pytest.fixture(params=[False, True], ids=["FLARE's", "ours"])
def receiver(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Receiver, bool]]:
    """A receiver as FLARE has it, and as it is with our bounds; and which of the two it is."""
    yield Receiver(monkeypatch, request.param), request.param
    for task in list(RxTask.rx_task_map.values()):
        task._remove_task()  # ends the threads of FLARE's own


MIB = bytes(1 << 20)
KEPT: dict[str, Callable[[int], list[Message]]] = {
    "announced": lambda n: [chunk(n, 1 << 20)],
    "announced, and the last chunk comes early": lambda n: [
        chunk(n, 1 << 20),
        chunk(n, 1 << 20, LAST, number=2),
    ],
    "the first never comes": lambda n: [chunk(n, payload=MIB, number=5)],
    "the last is all that comes": lambda n: [chunk(n, 0, LAST, MIB, number=5)],
    "more than is read": lambda n: [chunk(n, payload=MIB, number=5), chunk(n, 0, LAST)],
}


@pytest.mark.parametrize("way", KEPT)
def test_a_sender_fills_the_memory_by_streams_that_do_not_end(
    receiver: tuple[Receiver, bool], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS", 1000)
    found, ours = receiver
    for number in range(200):
        found.take(*KEPT[way](number))
    assert (found.held >> 20 >= 200) is not ours
    assert found.held <= MAX_BYTES or not ours
    before, honest = found.held, f"ward.{JOB}"  # whom that does not concern
    found.take(chunk(0, 16 << 20, sender=honest))
    assert found.held == before + (16 << 20)


def test_the_number_of_streams_is_bounded_too(receiver: tuple[Receiver, bool]) -> None:
    found, ours = receiver
    found.take(*(chunk(number) for number in range(200)))
    assert len(found.tasks) == (MAX_STREAMS if ours else 200)


def test_headers_count_as_what_they_take(receiver: tuple[Receiver, bool]) -> None:
    """A frame of 16 MiB may be nothing else, and FLARE keeps the headers of the first chunk."""
    found, ours = receiver
    for size in (100_000, 8 << 20):
        long = [{"a": "x" * (size // 4)}, ["y" * (size // 2)], {"z" * (size // 4): 1}]
        found.take(*(chunk(number + size, more=long, number=7) for number in range(40)))
        assert weight_of(long) >= min(size, MAX_HEADERS)
    held = sum(weight_of(task.headers) for task in found.tasks)
    assert (held > 40 * MAX_HEADERS) is not ours
    assert len(found.tasks) == (40 if ours else 80)


def test_headers_of_many_entries_are_not_looked_through() -> None:
    """A frame has room for millions, and each takes longer to count than to send."""
    looked: list[int] = []

    class Entries(list[int]):
        def __iter__(self) -> Iterator[int]:
            looked.append(len(self))
            return super().__iter__()

    assert weight_of({"a": Entries(range(100_000))}) > MAX_HEADERS
    assert looked == []
    assert weight_of({"a": Entries(range(10))}) < 1 << 14


def test_who_answers_reliably_takes_no_thread_and_little_memory(
    receiver: tuple[Receiver, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLARE knows such streams for an hour, if the sender says so, with a thread for each."""
    monkeypatch.setattr(streams, "MAX_ENDED", 20)
    found, ours = receiver
    said = {StreamHeaderKey.RETRY_TIMEOUT: 3500.0, StreamHeaderKey.RETRY_WAIT: 5.0}
    before = threading.active_count()
    for number in range(60):
        found.take(chunk(number, 1, LAST, **{StreamHeaderKey.RELIABLE: True}, **said))
    assert all(task.completed for task in found.tasks)
    assert len(found.tasks) == (20 if ours else 60)
    timers = sum(isinstance(one, threading.Timer) for one in threading.enumerate())
    assert timers == (0 if ours else 60), before
    if ours:
        found.now += 3506.0
        found.take(chunk(99, 1, LAST, **{StreamHeaderKey.RELIABLE: True}))
        assert [task.sid for task in found.tasks] == [99]


def test_what_is_finished_counts_no_longer_in_whatever_order_it_came(
    receiver: tuple[Receiver, bool],
) -> None:
    found, _ = receiver
    for number, order in enumerate([*itertools.permutations(range(3))] * 60):
        chunks = [
            chunk(number, 3 << 20, LAST if at == 2 else FIRST, MIB, number=at) for at in range(3)
        ]
        found.take(*(chunks[at] for at in order))
        found.take(chunks[0]) if number % 2 else None  # it begins again, or is answered as known
        for task in found.tasks:
            task.stop(StreamError("as when its reader has waited for too long"))
    found.take(chunk(9999, 16 << 20))
    assert any(task.sid == 9999 for task in found.tasks)


def test_a_chunk_that_comes_twice_counts_once(receiver: tuple[Receiver, bool]) -> None:
    found, _ = receiver
    found.take(*(chunk(1, payload=MIB, number=3) for _ in range(200)))
    found.take(*(chunk(1, payload=MIB) for _ in range(200)))
    found.take(chunk(2, MAX_STREAM))
    assert [task.sid for task in found.tasks] == [1, 2]


def test_a_stream_that_broke_off_is_given_up(receiver: tuple[Receiver, bool]) -> None:
    """FLARE gives up those that somebody reads, and no others."""
    found, ours = receiver
    found.take(*(chunk(number, payload=MIB, number=4) for number in range(40)))
    assert found.held == 40 << 20
    found.now = streams.FORGOTTEN_AFTER + 1
    found.take(chunk(99, 1))
    assert found.held == (1 if ours else (40 << 20) + 1)
    found.take(chunk(0, payload=MIB, number=5))
    assert found.held == (1 if ours else (41 << 20) + 1), "what comes late is not kept"


# -- threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weak", [True, False])
def test_what_waits_for_a_thread_counts(weak: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sites have all threads wait for streams that they do not finish; then whole ones wait."""
    monkeypatch.setattr(streams, "MAX_BYTES", 8 << 20)
    if weak:
        monkeypatch.setattr(Shares, "complete", lambda self, task, held: self.release(task))
    found, begun, used = Receiver(monkeypatch, bounded=True), [], []
    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(1) as callers:
        monkeypatch.setattr(blob_streamer, "stream_thread_pool", readers)
        monkeypatch.setattr(blob_streamer, "callback_thread_pool", callers)
        handler = BlobHandler(lambda future: used.append(future.result()))

        def begin(*given: Any) -> int:
            begun.append(given)
            return handler.handle_blob_cb(*given)

        begin.__self__ = handler  # type: ignore[attr-defined]
        found.receive(begin)
        found.take(chunk(0, 1 << 20, sender=f"trudy.{JOB}"))
        (unfinished,) = found.tasks
        for number in range(1, 41):
            found.take(chunk(number, 1 << 20, LAST, MIB))
        assert len(begun) == (41 if weak else 8)
        unfinished.stop(StreamError("as when its reader has waited for too long"), notify=False)
    assert len(used) == len(begun) - 1
    assert streams.SHARES.has_room(MALLORY.partition(".")[0], 8 << 20, new=True)


# -- frames ----------------------------------------------------------------------------------------


def padded(message: Message) -> bytes:
    """A frame in which a header comes twice, first with all the bytes that there is room for."""
    headers = msgpack.packb(message.headers)
    assert 0x80 < headers[0] < 0x8E, "a map of a few entries"
    room = (1 << 16) - 1 - len(headers) - 18  # FLARE gives headers two bytes for their length
    both = msgpack.packb("twice") + msgpack.packb(bytes(room)), msgpack.packb("twice") + b"\0"
    packed = bytes([0xDE, 0, (headers[0] & 0xF) + 2]) + b"".join(both) + headers[1:]
    assert len(packed) == (1 << 16) - 1
    head = bytearray(PREFIX_LEN)
    size = PREFIX_LEN + len(packed) + len(message.payload)
    Prefix(size, len(packed), Types.DATA, app_id=1).to_buffer(head, 0)
    return bytes(head + packed + message.payload)


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("weak", [True, False])
def test_a_byte_that_keeps_its_frame_counts_as_much(
    weak: bool, connection: tuple[SocketConnection, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes is not copied, so of each frame all stays as long as a byte of it is needed."""
    monkeypatch.setattr(streams, "MAX_BYTES", 4 << 20)
    if weak:
        seen = lambda one: len(one.payload) + weight_of(one.headers)  # noqa: E731
        monkeypatch.setattr(streams, "size_of", seen)
    found, (reader, other) = Receiver(monkeypatch, bounded=True), connection

    def process_message(*given: Any) -> None:
        message: Message = given[-1]
        message.set_prop(MessagePropKey.ENDPOINT, Endpoint(MALLORY))
        found.take(message)

    receivers = {1: SimpleNamespace(process_message=process_message)}
    manager = SimpleNamespace(stopped=False, receivers=receivers)
    end = SimpleNamespace(endpoint=Endpoint(MALLORY))
    link = SimpleNamespace(conn="from mallory", sfm_endpoint=end)
    frames = [padded(chunk(at // 15, number=1 + at % 15)) for at in range(300)]
    sender = threading.Thread(target=lambda: other.sendall(b"".join(frames)))
    sender.start()
    for _ in frames:
        ConnManager.process_frame_task(manager, link, reader.read_frame())
    sender.join()
    kept = [payload for task in found.tasks for _, payload in task.out_seq_chunks.values()]
    assert len(kept) == 300 if weak else 50 < len(kept) < 64
    assert (sum(len(one.obj) for one in kept) > 4 << 20) is weak


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
