"""A site, or somebody with the certificate of one that was revoked, sends what FLARE decodes.

FLARE decodes what comes before it asks what it is about. Its format brings files, which nobody
removes; it has the receiver fetch something, for an hour, in one of 64 threads; and values take
seventy times their bytes. A chunk of a stream that is values counts by their number alone.
"""

from __future__ import annotations

import io
import json
import tracemalloc
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest
from flare_limits import limits_set
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.app_common.decomposers.numpy_decomposers import NumpyArrayDecomposer
from nvflare.fuel.f3.cellnet.defs import (
    CellChannel,
    Encoding,
    MessageHeaderKey,
    MessagePropKey,
    MessageType,
)
from nvflare.fuel.f3.cellnet.utils import decode_payload
from nvflare.fuel.f3.endpoint import Endpoint
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import (
    STREAM_CHANNEL,
    STREAM_DATA_TOPIC,
    StreamHeaderKey,
)
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs import dots, lobs
from nvflare.fuel.utils.fobs.decomposers.via_downloader import EncKey, EncType
from nvflare.fuel.utils.fobs.fobs import FOBS_DATA, FOBS_DECOMPOSER, FOBS_TYPE

from fedsight.deploy.flare import routes, streams
from fedsight.deploy.flare.routes import Gate

JOB = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
MALLORY = f"mallory.{JOB}"


@pytest.fixture(params=[True, False], ids=["FLARE's", "ours"])
def weak(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether messages are decoded as FLARE does, or with our bounds."""
    if request.param:
        yield True
        return
    with limits_set():
        yield False


def section(marker: int, dot: int, content: bytes) -> bytes:
    """A section of a message."""
    head: bytes = lobs._Header(marker, dot, len(content)).to_bytes()
    return head + content


def message(*more: bytes, values: bytes = b"\xc0") -> bytes:
    """A message with these values, by default None, and more sections."""
    return section(lobs.MARKER_MAIN, 0, values) + b"".join(more)


def datum(marker: int, content: bytes, dot: int = 0) -> bytes:
    return section(marker, dot, uuid.uuid4().bytes + content)


def test_a_message_writes_files(
    weak: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lobs, "DEFAULT_DATUM_DIR", str(tmp_path))
    monkeypatch.setattr(lobs.ConfigService, "_var_values", {})  # what FLARE was told before
    found = message(datum(lobs.MARKER_DATUM_FILE, bytes(1 << 20)))
    if weak:
        fobs.loads(found)
        assert [path.stat().st_size for path in tmp_path.iterdir()] == [1 << 20]
        return
    with pytest.raises(ValueError, match="brings no files"):
        fobs.loads(found)
    assert not [*tmp_path.iterdir()]


def array() -> bytes:
    """A message that is an array. FLARE registers who reads arrays, and fetches them, with the
    first that comes."""
    stream, kind = io.BytesIO(), NumpyArrayDecomposer
    np.save(stream, np.zeros(1))
    content = {EncKey.TYPE: EncType.NATIVE, EncKey.DATA: stream.getvalue()}
    name = f"{kind.__module__}.{kind.__name__}"
    table = {FOBS_TYPE: "numpy.ndarray", FOBS_DECOMPOSER: name, FOBS_DATA: content}
    return message(values=msgpack.packb(table))


def test_a_message_has_its_receiver_wait_for_what_it_names(
    weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class WaitedError(Exception):
        """The thread would have waited, ten minutes four times."""

    def download(**given: Any) -> None:
        asked.append(given["from_fqcn"])
        raise WaitedError

    monkeypatch.setattr(numpy_decomposers, "download_arrays", download)
    assert fobs.loads(array()).tolist() == [0.0]
    reference = json.dumps({"fqcn": "mallory", "ref_id": "x"}).encode()
    found = message(datum(lobs.MARKER_DATUM_TEXT, reference, dots.NUMPY_DOWNLOAD))
    with pytest.raises(WaitedError if weak else RuntimeError):
        fobs.loads(found, fobs_ctx={"cell": SimpleNamespace()})
    assert asked == (["mallory"] if weak else [])


def test_values_take_many_times_their_bytes(weak: bool) -> None:
    number = (1 << 20) + 1
    found = message(values=b"\xdd" + number.to_bytes(4, "big") + b"\x80" * number)
    tracemalloc.start()
    try:
        if weak:
            fobs.loads(found)
        else:
            with pytest.raises(ValueError, match="at most 1,048,576 bytes"):
                fobs.loads(found)
        assert (tracemalloc.get_traced_memory()[1] > 50 * len(found)) is weak
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("same", [False, True], ids=["own IDs", "one ID"])
def test_so_do_sections(weak: bool, same: bool) -> None:
    sections = [datum(lobs.MARKER_DATUM_TEXT, b"x") for _ in range(2000)]
    found = message(*(sections[:1] * 2000 if same else sections))
    if weak:
        assert fobs.loads(found) is None
        return
    with pytest.raises(ValueError, match="have the same ID" if same else "at most 1,000 sections"):
        fobs.loads(found)


def test_ours_reads_what_runs_send() -> None:
    """Large texts and bytes are no values."""
    names = [f"site-{number}" for number in range(10_000)]
    sent = {"text": "x" * (3 << 20), "bytes": bytes(32 << 20), "names": names}
    with limits_set():
        assert fobs.loads(fobs.dumps(sent)) == sent


def chunk_of_values() -> Message:
    """A chunk of a stream that is three texts of a megabyte, or so its sender says."""
    found = Message(
        {
            MessageHeaderKey.ORIGIN: MALLORY,
            MessageHeaderKey.DESTINATION: f"server.{JOB}",
            MessageHeaderKey.MSG_TYPE: MessageType.REQ,
            MessageHeaderKey.CHANNEL: STREAM_CHANNEL,
            MessageHeaderKey.TOPIC: STREAM_DATA_TOPIC,
            MessageHeaderKey.PAYLOAD_ENCODING: Encoding.FOBS,
            StreamHeaderKey.CHANNEL: CellChannel.RETURN_ONLY,
            StreamHeaderKey.TOPIC: "collab:call",
            StreamHeaderKey.STREAM_ID: 1,
            StreamHeaderKey.SIZE: 0,
            StreamHeaderKey.SEQUENCE: 5,
        },
        message(values=msgpack.packb(["x" * (1 << 18)] * 3)),
    )
    found.set_prop(MessagePropKey.ENDPOINT, Endpoint(MALLORY))
    return found


def test_a_chunk_that_is_values_counts_as_their_number_and_ours_takes_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Gate("server").refuse(chunk_of_values()) is not None
    monkeypatch.setattr(routes, "is_sound", lambda message: True)
    found = chunk_of_values()
    assert Gate("server").refuse(found) is None
    decode_payload(found)
    held = sum(map(len, found.payload))
    assert held == 3 << 18
    assert streams.size_of(found) < held / 100
