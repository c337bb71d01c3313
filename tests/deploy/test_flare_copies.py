"""Large messages of FLARE's take less work, and are the same on the connection and at its ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa
from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.drivers.socket_conn import SocketConnection
from nvflare.fuel.f3.sfm.constants import Types
from nvflare.fuel.f3.sfm.prefix import PREFIX_LEN, Prefix
from nvflare.fuel.f3.sfm.sfm_conn import SfmConnection
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs import datum
from nvflare.lighter.utils import sign_content
from nvflare.private.fed.utils import identity_utils
from nvflare.private.fed.utils.identity_utils import TokenVerifier

from fedsight.deploy.flare import copies
from fedsight.deploy.flare.copies import LARGE, MAX_VERIFIED, Chunks, read_frame, send_frame, verify

HEADERS = {"origin": "north", "sequence": 3}
SIZES = [0, 1, LARGE - 1, LARGE, 3 * LARGE + 5]


class Line:
    """Both ends of a connection."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        connector = SimpleNamespace(handle=None, driver=None, params={})
        self.here, self.there = (
            SocketConnection(ours, connector),
            SocketConnection(theirs, connector),
        )
        self.sends = SfmConnection(self.here, SimpleNamespace(name="north", properties={}))

    def send(self, method: Any, payload: bytes | None) -> None:
        """Send a message in the background: more than the connection holds waits for its reader."""
        prefix = Prefix(0, 0, Types.DATA, 0, 0, 7, 1, 0)
        threading.Thread(target=method, args=(self.sends, prefix, HEADERS, payload)).start()


@pytest.fixture
def line() -> Iterator[Line]:
    """A connection within this process."""
    found = Line()
    yield found
    found.here.close()
    found.there.close()


@pytest.mark.parametrize("size", SIZES)
def test_the_bytes_on_the_connection_are_those_that_flare_sends(size: int) -> None:
    payload = bytes(range(251)) * (size // 251 + 1)
    frames = []
    for method in (copies._send_frame, send_frame):
        line = Line()
        line.send(method, payload[:size] or None)
        frames.append(bytes(copies._read_frame(line.there)))
        line.here.close()
        line.there.close()
    assert frames[0] == frames[1]
    assert len(frames[0]) > size + PREFIX_LEN


@pytest.mark.parametrize("size", SIZES)
def test_a_frame_is_read_whole_and_a_large_one_without_copies_of_its_parts(
    line: Line, size: int
) -> None:
    line.send(send_frame, b"x" * size or None)
    frame = read_frame(line.there)
    prefix = Prefix.from_bytes(frame)
    payload = frame[PREFIX_LEN + prefix.header_len :]
    assert bytes(payload) == b"x" * size
    if isinstance(frame, memoryview):
        assert payload.obj is frame.obj
    assert isinstance(frame, memoryview) == (len(frame) >= LARGE)


def test_a_connection_ends_with_a_frame_that_was_only_begun(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    whole = SocketConnection.send_frame

    def fail(self: SocketConnection, frame: Any) -> None:
        if sent:
            raise CommError(CommError.ERROR, "the second part fails")
        sent.append(len(frame))
        whole(self, frame)

    monkeypatch.setattr(SocketConnection, "send_frame", fail)
    with pytest.raises(CommError, match="second part"):
        send_frame(line.sends, Prefix(0, 0, Types.DATA, 0, 0, 7, 1, 0), HEADERS, b"x" * LARGE)
    assert line.here.closing
    assert line.sends.get_send_stall_seconds() == 0.0
    with pytest.raises(CommError, match="closed"):
        read_frame(line.there)


def test_the_text_of_a_message_does_not_hold_its_content() -> None:
    chunks = Chunks([bytearray(LARGE), bytearray(LARGE)])
    assert f"{chunks}" == repr(chunks) == "<2 chunks>"


@pytest.mark.parametrize("size", SIZES)
def test_values_of_any_size_come_as_they_were(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(datum, "TEN_MEGA", LARGE)
    sent = {"args": ["fetch", "{}", b"y" * size], "text": "t" * size}
    parts = fobs.dumps(sent, buffer_list=True)
    assert fobs.loads(Chunks([memoryview(b"".join(parts))])) == sent
    assert fobs.loads(b"".join(parts)) == sent  # what the other end may do


# -- signatures ------------------------------------------------------------------------------------


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was verified, in turn."""
    found: list[str] = []
    whole = identity_utils.verify_content

    def counted(content: str, signature: str, public_key: Any) -> None:
        found.append(content)
        whole(content=content, signature=signature, public_key=public_key)

    monkeypatch.setattr(identity_utils, "verify_content", counted)
    return found


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    """The server's."""
    return rsa.generate_private_key(65537, 2048)


def verifier(key: rsa.RSAPrivateKey) -> TokenVerifier:
    """As the server makes one."""
    return TokenVerifier(SimpleNamespace(public_key=key.public_key))


def test_a_valid_signature_is_verified_once_and_an_invalid_one_each_time(
    key: rsa.RSAPrivateKey, verified: list[str]
) -> None:
    north, one = sign_content("north" + "token", key), verifier(key)
    assert [verify(one, "north", "token", north) for _ in range(3)] == [True] * 3
    assert verified == ["northtoken"]
    for asked in (("south", "token"), ("north", "tokens"), ("nort", "token")):
        assert [verify(one, *asked, north) for _ in range(2)] == [False] * 2
    assert len(verified) == 7
    assert not verify(one, "north", "token", north[:-4] + "AAA=")
    assert not verify(verifier(rsa.generate_private_key(65537, 2048)), "north", "token", north)


def test_a_long_signature_is_not_remembered_though_it_is_valid(
    key: rsa.RSAPrivateKey, verified: list[str]
) -> None:
    """What is no base64 is passed over in it, so a site could make as many as it likes."""
    one = verifier(key)
    padded = sign_content("north" + "token", key) + "\N{PINEAPPLE}" * copies.MAX_ASKED
    assert [verify(one, "north", "token", padded) for _ in range(3)] == [True] * 3
    assert len(verified) == 3


@dataclass(frozen=True, eq=False)
class Certificate:
    """A server's."""

    key: rsa.RSAPrivateKey

    def public_key(self) -> rsa.RSAPublicKey:
        """What its signatures are verified with."""
        return self.key.public_key()


def test_all_verifiers_of_a_certificate_know_what_one_has_verified(
    monkeypatch: pytest.MonkeyPatch, key: rsa.RSAPrivateKey, verified: list[str]
) -> None:
    """FLARE's server makes one for each message."""
    monkeypatch.setattr(TokenVerifier, "__init__", copies.begin_verifier)
    monkeypatch.setattr(copies, "_VERIFIERS", {})
    ours, signed = Certificate(key), sign_content("north" + "token", key)
    made = [TokenVerifier(ours) for _ in range(3)]
    assert all(verify(one, "north", "token", signed) for one in made)
    assert verified == ["northtoken"]
    theirs = Certificate(rsa.generate_private_key(65537, 2048))
    assert not verify(TokenVerifier(theirs), "north", "token", signed)
    for _ in range(2 * copies.MAX_VERIFIERS):
        TokenVerifier(Certificate(key))
        assert len(copies._VERIFIERS) <= copies.MAX_VERIFIERS
    assert verify(TokenVerifier(ours), "north", "token", signed)


@pytest.mark.parametrize("asked", [(None, "t", "s"), ("n", ["t"], "s"), ("n", "t", {"s": 1})])
def test_what_is_not_text_is_not_valid(key: rsa.RSAPrivateKey, asked: tuple[Any, ...]) -> None:
    assert not verify(verifier(key), *asked)


def test_the_oldest_signatures_are_forgotten(
    monkeypatch: pytest.MonkeyPatch, key: rsa.RSAPrivateKey, verified: list[str]
) -> None:
    monkeypatch.setattr(copies, "MAX_VERIFIED", 2)
    one = verifier(key)
    signed = {name: sign_content(name + "t", key) for name in ("a", "b", "c")}
    for name in ("a", "b", "c", "c", "b", "a"):
        assert verify(one, name, "t", signed[name])
    assert verified == ["at", "bt", "ct", "at"]
    assert MAX_VERIFIED > 1000


def test_a_wrong_signature_raises_where_it_is_verified(key: rsa.RSAPrivateKey) -> None:
    with pytest.raises(InvalidSignature):
        identity_utils.verify_content("other", sign_content("one", key), key.public_key())
